#!/bin/sh
# The REST API against its own description: schemathesis makes requests from /openapi.json, and every answer must be
# one that the description has. Environment: DISPENSE_ADDRESS (host:port), DISPENSE_API_KEY, PYTHONPATH.
#
# Left out: the stream of events, which does not end, and the wait, which may rightly take an hour; bounded.py bounds
# the waits of the other requests, and names the key that may be rotated and revoked.
set -eu
SCHEMATHESIS_HOOKS="$(cd "$(dirname "$0")" && pwd)/bounded.py"
export SCHEMATHESIS_HOOKS
cd "$(mktemp -d)"
curl --silent --show-error --fail --output key.json --header "x-api-key: $DISPENSE_API_KEY" \
  --header 'content-type: application/json' --data '{"name": "contract"}' "http://$DISPENSE_ADDRESS/api/v1/keys"
exec python3 -m schemathesis.cli run "http://$DISPENSE_ADDRESS/openapi.json" \
  --header "x-api-key: $DISPENSE_API_KEY" \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
  --exclude-path /api/v1/events --exclude-path '/v1/sandboxes/{identifier}/wait' \
  --max-examples 20 --seed 1 --request-timeout 20 --no-color
