"""psycopg's own tests, once with a server itself and once through a gateway: only what differs counts.

    PYTHONPATH=<packages> suite.py <psycopg's source, of the version in requirements.txt> \
        <conninfo of the server> <conninfo of the gateway>

The source distribution has no tests: the source is a checkout of the tag. The two conninfos name
different databases. Ends with 1 when a test fails through the gateway that passes with the server
and that is not named below.
"""

import os
import re
import subprocess
import sys

FILES = """
    test_connection.py test_cursor.py test_cursor_common.py test_cursor_client.py
    test_cursor_raw.py test_cursor_server.py test_prepared.py test_pipeline.py test_copy.py
    test_transaction.py test_adapt.py test_notify.py test_connection_info.py test_rows.py
    test_query.py test_errors.py test_typeinfo.py pq
""".split()

# Tests that cannot pass through a pool, by why.
DIFFERENT = {
    "counts rows of pg_prepared_statements, where the server shows the gateway's own": [
        r"test_prepared\.py::test_(dont_prepare|do_prepare|auto_prepare|prepare_disable)",
        r"test_prepared\.py::test_(no_prepare_multi|misc_statement|params_types|evict_lru)",
        r"test_prepared\.py::test_(different_types|untyped_json|change_type)",
        r"test_pipeline\.py::test_(prepared|auto_prepare)",
    ],
    "ends its own server process and wants to lose its connection, which the gateway keeps": [
        r"test_connection\.py::test_(broken|broken_connection)$",
        r"test_connection\.py::test_right_exception_on_server_disconnect",
        r"test_context_inerror_rollback_no_clobber",
        r"pq/test_pgconn\.py::test_reset(_async)?$",
    ],
    "compares the notifier's process id with that of its own connection": [
        r"test_notify\.py::test_notify_handlers",
        r"pq/test_pgconn\.py::test_notify$",
    ],
    "wants a new password to be known at once; it is within seconds": [
        r"pq/test_pgconn\.py::test_change_password$",
    ],
}


def failures(source, conninfo):
    """Names of the tests that fail, and the last line of the report."""
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "20", "--tb=no", "-rfE"]
    command += ["-o", "addopts=", "-m", "not slow and not proxy and not crdb"]
    command += ["--test-dsn", conninfo] + [f"tests/{name}" for name in FILES]
    env = {**os.environ, "PSYCOPG_IMPL": "binary", "COLUMNS": "500"}
    run = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True)
    report = run.stdout
    if run.returncode not in (0, 1):
        # Neither passed nor failed: it did not run.
        sys.exit(f"pytest ended with {run.returncode}:\n{report[-2000:]}{run.stderr[-2000:]}")
    names = re.findall(r"^(?:FAILED|ERROR) tests/(\S+?)(?: - |$)", report, re.MULTILINE)
    return set(names), report.strip().splitlines()[-1]


def reason(name):
    for why, patterns in DIFFERENT.items():
        if any(re.search(pattern, name) for pattern in patterns):
            return why
    return None


def main():
    source, server, gateway = sys.argv[1:]
    alone, words = failures(source, server)
    print(f"with the server: {words}")
    shared, words = failures(source, gateway)
    print(f"through the gateway: {words}")
    expected = {name: reason(name) for name in shared - alone}
    for name in sorted(name for name, why in expected.items() if why):
        print(f"  as expected: {name}: it {expected[name]}")
    wrong = sorted(name for name, why in expected.items() if not why)
    for name in wrong:
        print(f"  WRONG: {name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
