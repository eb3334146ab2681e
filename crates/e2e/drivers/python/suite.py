"""psycopg's own tests, once with a server itself and once through a gateway: only what differs counts.

    suite.py <psycopg's source, of the version in requirements.txt> \
        <conninfo of the server> <conninfo of the gateway>

The source distribution has no tests: the source is a checkout of the tag. The two conninfos name
different databases. Prints lines as checks.py does: a test that passes with the server and not
through the gateway is `skip` where DIFFERENT says why, else `not ok`. Some are a matter of timing
(psycopg marks a few as "flakey"): what fails without a reason is run again, and has to pass each time.
"""

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

# Everything but what has no server in it, or another one.
LEFT_OUT = ["crdb", "pool", "scripts", "test_typing.py", "test_dns.py", "test_dns_srv.py"]
# Fewer tests that pass with the server itself mean that something else is wrong.
PASSED_MIN = 3000
FAILED = ("failure", "error")

# Tests that cannot pass through a pool, by why.
DIFFERENT = {
    "counts rows of pg_prepared_statements, where the server shows the gateway's own": [
        r"test_prepared(_async)?\.py::test_(dont_prepare|do_prepare|auto_prepare|prepare_disable)",
        r"test_prepared(_async)?\.py::test_(no_prepare_multi|no_prepare_error|misc_statement)",
        r"test_prepared(_async)?\.py::test_(params_types|evict_lru|different_types|untyped_json)",
        r"test_pipeline(_async)?\.py::test_(prepared|auto_prepare)",
    ],
    "ends its own server process and wants to lose its connection, which the gateway keeps": [
        r"test_connection(_async)?\.py::test_(broken|broken_connection)(\[|$)",
        r"test_connection(_async)?\.py::test_right_exception_on_server_disconnect",
        r"test_context_inerror_rollback_no_clobber",
        r"pq/test_pgconn\.py::test_reset(_async)?$",
    ],
    "is a race in psycopg, lost now and then with the server itself too": [
        r"test_pipeline(_async)?\.py::test_errors_raised_on_commit",
    ],
    "wants a new password to be known at once; it is within seconds": [
        r"pq/test_pgconn\.py::test_change_password$",
    ],
}


def results(source, conninfo, tests=("tests",)):
    """What became of each test, by its name."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", "--timeout", "30", "--tb=line"]
        command += ["-o", "addopts=", f"--junitxml={report.name}"]
        command += ["-m", "not slow and not proxy and not crdb", "--test-dsn", conninfo, *tests]
        command += [f"--ignore=tests/{name}" for name in LEFT_OUT]
        # The conninfo says all.
        env = {name: v for name, v in os.environ.items() if not name.startswith("PG")}
        env["PSYCOPG_IMPL"] = "binary"
        run = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True)
        if run.returncode not in (0, 1):
            # Neither passed nor failed: it did not run.
            print(f"pytest ended with {run.returncode}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
            sys.exit(1)
        tree = xml.etree.ElementTree.parse(report.name)
    found = {}
    for case in tree.iter("testcase"):
        file = case.get("classname").removeprefix("tests.").replace(".", "/")
        bad = {child.tag: child.get("message") for child in case if child.tag != "properties"}
        outcome = next((tag for tag in ("failure", "error", "skipped") if tag in bad), "passed")
        found[f"{file}.py::{case.get('name')}"] = (outcome, bad.get(outcome))
    return found


def reason(name):
    for why, patterns in DIFFERENT.items():
        if any(re.search(pattern, name) for pattern in patterns):
            return why
    return None


def passed(found):
    return {name for name, (outcome, _) in found.items() if outcome == "passed"}


def summary(found):
    outcomes = [outcome for outcome, _ in found.values()]
    words = [f"{outcomes.count(o)} {o}" for o in ("passed", "failure", "error", "skipped")]
    return f"{len(found)} tests, {', '.join(words)}"


def main():
    source, server, gateway = sys.argv[1:]
    alone = results(source, server)
    print(f"with the server itself: {summary(alone)}", flush=True)
    shared = results(source, gateway)
    print(f"through the gateway: {summary(shared)}", flush=True)
    for name in sorted(name for name, (outcome, _) in alone.items() if outcome in FAILED):
        print(f"fails with the server itself: {name}")
    wrong = len(passed(alone)) < PASSED_MIN
    if wrong:
        print(f"not ok with the server itself -- less than {PASSED_MIN} tests passed")
    for name in sorted(passed(alone) - passed(shared)):
        outcome, message = shared.get(name, ("not there", None))
        if why := reason(name):
            print(f"skip {name} -- {why}")
        else:
            why = f"{outcome}: {' '.join(str(message).split())[:300]}"
            wrong = True
            print(f"not ok {name} -- {why}")
    if not wrong:
        print(f"ok {len(passed(alone) & passed(shared))} tests that pass with the server itself")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
