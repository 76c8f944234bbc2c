"""/metrics as Prometheus' own parsers read it.

Environment: DISPENSE_ADDRESS (host:port), DISPENSE_API_KEY."""

import os
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families

request = urllib.request.Request(f"http://{os.environ['DISPENSE_ADDRESS']}/metrics")
request.add_header("authorization", "Bearer " + os.environ["DISPENSE_API_KEY"])
for _ in range(2):
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["content-type"].startswith("application/openmetrics-text"), answer.headers
        text = answer.read().decode()

families = {family.name: family for family in text_string_to_metric_families(text)}
for name, kind in {
    "dispense_requests": "counter",
    "dispense_request_duration_seconds": "histogram",
    "dispense_open_requests": "gauge",
    "dispense_sandboxes": "gauge",
    "dispense_jobs": "gauge",
    "dispense_runner_connected": "gauge",
    "dispense_runner_silence_seconds": "gauge",
    "dispense_store_commit_seconds": "histogram",
    "dispense_store_changes": "counter",
}.items():
    assert families[name].type == kind, (name, families.keys())
    assert families[name].documentation, name

own = {"door": "rest", "method": "GET /metrics", "code": "ok"}
counted = [sample.value for sample in families["dispense_requests"].samples if sample.labels == own]
assert counted == [1.0], families["dispense_requests"].samples
assert [sample.value for sample in families["dispense_runner_connected"].samples] == [1.0]
print("ok", len(families), "families")
