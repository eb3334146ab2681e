"""What check.py asks of the fuzzing client: count answers, and ask for nothing that takes a day."""

import atexit
import json
import os
from collections import Counter

import schemathesis

# Longest that an order may be waited for. The client itself gives up after a minute.
WAIT_SECONDS = 5
WAITED_FOR = ["/api/restart", "/api/remove"]

counted = Counter()


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.operation.path not in WAITED_FOR or not isinstance(case.body, dict):
        return
    # Only what would be taken is made shorter: what is refused must stay as it is.
    wait = case.body.setdefault("wait_seconds", WAIT_SECONDS)
    if isinstance(wait, (int, float)) and not isinstance(wait, bool) and WAIT_SECONDS < wait <= 86400:
        case.body["wait_seconds"] = WAIT_SECONDS


@schemathesis.hook
def after_call(context, case, response):
    counted[f"{case.operation.method.upper()} {case.operation.path} {response.status_code}"] += 1


@atexit.register
def write():
    with open(os.environ["QUORATE_API_COUNTS"], "w") as file:
        json.dump(counted, file)
