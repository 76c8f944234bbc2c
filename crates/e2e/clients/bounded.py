"""A hook of schemathesis: what a request asks to be waited for is bounded below the time that an answer may take, and
the only key that is rotated or revoked is one that nobody needs.

A wait of an hour for a runner with room is a valid request, and its answer comes after an hour. The end of the key that
makes the requests is valid too, and then there is nothing more to see.
"""

import schemathesis

WAIT_SECS = 5
WAIT_MAX_SECS = 3600
# Its name; contract.sh makes it.
KEY = "contract"


def bounded(arguments):
    """The same arguments with a short wait, where they ask for a wait that the server would accept."""
    if not isinstance(arguments, dict) or arguments.get("wait") not in (True, "true"):
        return arguments
    try:
        secs = int(arguments.get("timeoutSecs", 0))
    except (TypeError, ValueError):
        return arguments
    if secs != 0 and not WAIT_SECS < secs <= WAIT_MAX_SECS:
        return arguments
    return {**arguments, "timeoutSecs": WAIT_SECS}


@schemathesis.hook
def before_call(ctx, case, kwargs):
    case.body = bounded(case.body)
    case.query = bounded(case.query)
    if "key" in (case.path_parameters or {}):
        case.path_parameters["key"] = KEY
