"""A receiver of OpenTelemetry's own make: prints each span that it is sent as a line of JSON."""

import json
import logging
import sys

from google.protobuf.json_format import MessageToDict
from oteltest.sink import GrpcSink
from oteltest.sink.handler import RequestHandler


class Lines(RequestHandler):
    def handle_logs(self, request, headers):
        raise AssertionError("no logs are sent")

    def handle_metrics(self, request, headers):
        raise AssertionError("no metrics are sent")

    def handle_trace(self, request, headers):
        for resource_spans in request.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    line = {
                        "service": attributes.get("service.name", ""),
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "failed": span.status.code == 2,
                        "nanos": span.end_time_unix_nano - span.start_time_unix_nano,
                        "attributes": MessageToDict(span).get("attributes", []),
                    }
                    print(json.dumps(line), flush=True)


sink = GrpcSink(Lines(), logging.getLogger("sink"), port=int(sys.argv[1]))
sink.start()
print("ready", flush=True)
sink.wait_for_termination()
