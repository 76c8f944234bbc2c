"""/metrics as Prometheus' own parsers read it.

Environment: DISPENSE_ADDRESS (host:port), DISPENSE_API_KEY."""

import os
import urllib.request

from prometheus_client import parser as plain
from prometheus_client.openmetrics import parser as openmetrics


def open_url(path, accept):
    request = urllib.request.Request(f"http://{os.environ['DISPENSE_ADDRESS']}{path}")
    request.add_header("authorization", "Bearer " + os.environ["DISPENSE_API_KEY"])
    if accept:
        request.add_header("accept", accept)
    return urllib.request.urlopen(request, timeout=10)


def families_of(accept, content_type, parser):
    with open_url("/metrics", accept) as answer:
        assert answer.headers["content-type"].startswith(content_type), answer.headers
        text = answer.read().decode()
    return {family.name: family for family in parser.text_string_to_metric_families(text)}


# As a scraper asks that knows both formats, and as one that knows nothing newer.
both = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
families_of(both, "application/openmetrics-text", openmetrics)
# A stream that goes on while they are read.
events = open_url("/api/v1/events", "text/event-stream")
families = families_of(both, "application/openmetrics-text", openmetrics)
older = families_of(None, "text/plain; version=0.0.4", plain)
for name, kind in {
    "dispense_requests": "counter",
    "dispense_request_duration_seconds": "histogram",
    "dispense_open_requests": "gauge",
    "dispense_open_streams": "gauge",
    "dispense_sandboxes": "gauge",
    "dispense_jobs": "gauge",
    "dispense_runner_connected": "gauge",
    "dispense_runner_silence_seconds": "gauge",
    "dispense_store_commit_seconds": "histogram",
    "dispense_store_changes": "counter",
}.items():
    assert families[name].type == kind, (name, families.keys())
    assert families[name].documentation, name
    # Where there is nothing yet, neither format has a sample.
    assert older[name].type == kind and older[name].documentation, (name, older.keys())
assert older.keys() == families.keys(), older.keys() ^ families.keys()

own = {"door": "rest", "method": "GET /metrics", "code": "ok"}
counted = [sample.value for sample in families["dispense_requests"].samples if sample.labels == own]
assert counted == [1.0], families["dispense_requests"].samples
streams = [sample.value for sample in families["dispense_open_streams"].samples if sample.labels == {"door": "rest"}]
assert streams == [1.0], families["dispense_open_streams"].samples
events.close()
assert [sample.value for sample in families["dispense_runner_connected"].samples] == [1.0]
print("ok", len(families), "families")
