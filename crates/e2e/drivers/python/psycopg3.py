"""psycopg 3 through the gateways of a cluster. Started by `cargo xtask drivers`, which says in the
environment where everything is: libpq's own variables lead to all gateways with
sslmode=verify-full; QUORATE_SOCKETS has the servers' private sockets."""

import asyncio
import os
import subprocess
import sys
import threading

import psycopg
from checks import Skip, check, expect, refuses, run, until
from psycopg import errors, pq

PORTS = os.environ["PGPORT"].split(",")
SOCKETS = os.environ["QUORATE_SOCKETS"].split(",")
PLACE = "SELECT standby FROM psycopg_place"


def connect(port=0, **options):
    """A session through one of the gateways."""
    return psycopg.connect(host="127.0.0.1", port=PORTS[port], **options)


def direct(socket):
    """A session with a server itself."""
    return psycopg.connect(host=socket, port="5432", sslmode="disable", autocommit=True)


def value(conn, sql, params=None):
    return conn.execute(sql, params).fetchone()[0]


def rows(conn):
    """The sum of what is in the table, asked for where nothing can be missed."""
    return value(conn, "SELECT /* quorate: strong */ coalesce(sum(id), 0) FROM psycopg_rows")


@check("setup")
def setup():
    with connect(autocommit=True) as conn:
        conn.execute("DROP VIEW IF EXISTS psycopg_place")
        conn.execute("DROP TABLE IF EXISTS psycopg_rows")
        conn.execute("CREATE TABLE psycopg_rows (id int PRIMARY KEY)")
        # A view does not give away that it depends on where it is read.
        conn.execute("CREATE VIEW psycopg_place AS SELECT pg_is_in_recovery() AS standby")


@check("login: any of several hosts")
def several_hosts():
    with psycopg.connect() as conn:
        expect(conn.info.port, int(PORTS[0]))
    # A port that nobody listens on is passed over.
    with psycopg.connect(host="127.0.0.1,127.0.0.1", port=f"1,{PORTS[1]}") as conn:
        expect(conn.info.port, int(PORTS[1]))
    with psycopg.connect(target_session_attrs="read-write") as conn:
        expect(value(conn, "SELECT 1"), 1)


@check("login: SCRAM password")
def password():
    with connect(require_auth="scram-sha-256") as conn:
        expect(conn.pgconn.used_password, True)
    wrong = lambda: connect(password="wrong")
    refuses(psycopg.OperationalError, wrong, "password authentication failed")


@check("TLS: verify-full")
def tls():
    with connect(sslmode="verify-full") as conn:
        expect(conn.pgconn.ssl_in_use, True)
    other = lambda: connect(sslrootcert=os.environ["QUORATE_OTHER_CA"])
    refuses(psycopg.OperationalError, other, "certificate verify failed")


@check("TLS: channel_binding=require")
def channel_binding():
    with connect(channel_binding="require", require_auth="scram-sha-256") as conn:
        expect(conn.pgconn.ssl_in_use, True)
    plain = lambda: connect(channel_binding="require", sslmode="disable")
    refuses(psycopg.OperationalError, plain, "channel binding")


@check("TLS: sslnegotiation=direct")
def direct_tls():
    if pq.version() < 170000:
        raise Skip(f"libpq {pq.version()} has no direct TLS; 17 has")
    with connect(sslnegotiation="direct") as conn:
        expect(conn.pgconn.ssl_in_use, True)


@check("transaction: commit")
def commit():
    with connect() as conn:
        conn.execute("INSERT INTO psycopg_rows VALUES (1)")
        expect(conn.info.transaction_status, pq.TransactionStatus.INTRANS)
        conn.commit()
        conn.execute("DELETE FROM psycopg_rows")
        conn.rollback()
    with connect(1) as conn:
        expect(rows(conn), 1)


@check("transaction: rollback")
def rollback():
    with connect() as conn:
        before = rows(conn)
        conn.execute("INSERT INTO psycopg_rows VALUES (2)")
        conn.rollback()
        expect(rows(conn), before)
        with conn.transaction(force_rollback=True):
            conn.execute("INSERT INTO psycopg_rows VALUES (2)")
        expect(rows(conn), before)


@check("transaction: an error inside")
def error_inside():
    with connect() as conn:
        before = rows(conn)
        conn.execute("INSERT INTO psycopg_rows VALUES (3)")
        refuses(errors.UniqueViolation, lambda: conn.execute("INSERT INTO psycopg_rows VALUES (3)"))
        expect(conn.info.transaction_status, pq.TransactionStatus.INERROR)
        refuses(errors.InFailedSqlTransaction, lambda: conn.execute("SELECT 1"))
        conn.rollback()
        expect(rows(conn), before)
        # A savepoint loses only what came after it.
        with conn.transaction():
            conn.execute("INSERT INTO psycopg_rows VALUES (3)")
            try:
                with conn.transaction():
                    conn.execute("INSERT INTO psycopg_rows VALUES (3)")
            except errors.UniqueViolation:
                pass
        expect(rows(conn), before + 3)


@check("prepared statements")
def prepared():
    with connect(autocommit=True, prepare_threshold=0) as conn, connect(autocommit=True) as other:
        for i in range(20):
            expect(value(conn, "SELECT %s::int + 1", [i]), i + 1)
            # Somebody else's transaction takes the server connection meanwhile.
            with other.transaction():
                other.execute("LOCK psycopg_rows")
                expect(value(conn, "SELECT %s::text || 'x'", ["a"]), "ax")
        expect(len(conn._prepared._names), 2)
        # What it is about changes: the text stays, the columns do not.
        conn.execute("CREATE TABLE psycopg_wide AS SELECT 1 AS a")
        select = "SELECT /* quorate: strong */ * FROM psycopg_wide"
        expect(conn.execute(select).fetchone(), (1,))
        conn.execute("ALTER TABLE psycopg_wide ADD b int DEFAULT 2")
        expect(conn.execute(select).fetchone(), (1, 2))
        conn.execute("DROP TABLE psycopg_wide")


def asleep(mark):
    """Whether a statement with this mark runs on any server."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"
    for socket in SOCKETS:
        with direct(socket) as conn:
            if value(conn, sql + " AND pid <> pg_backend_pid()", [f"%{mark}%"]):
                return True
    return False


@check("cancel")
def cancel():
    for way in ("cancel", "cancel_safe"):
        with connect(autocommit=True) as conn:
            mark = f"psycopg {way}"
            waits = lambda: until(lambda: asleep(mark), "it runs") and getattr(conn, way)()
            canceller = threading.Thread(target=waits)
            canceller.start()
            sleep = lambda: conn.execute(f"SELECT pg_sleep(60) /* {mark} */")
            refuses(errors.QueryCanceled, sleep)
            canceller.join()
            expect(value(conn, "SELECT 1"), 1)


@check("pipeline mode")
def pipeline():
    with connect(autocommit=True) as conn:
        with conn.pipeline():
            cursors = [conn.execute("SELECT %s::int", [i]) for i in range(100)]
        expect([c.fetchone()[0] for c in cursors], list(range(100)))
    with connect() as conn:
        before = rows(conn)
        conn.commit()

        def fails():
            with conn.pipeline():
                conn.execute("INSERT INTO psycopg_rows VALUES (1000)")
                conn.execute("SELECT 1 / 0")
                conn.execute("INSERT INTO psycopg_rows VALUES (2000)")

        refuses(errors.DivisionByZero, fails)
        conn.rollback()
        expect(rows(conn), before)
        with conn.pipeline():
            conn.cursor().executemany(
                "INSERT INTO psycopg_rows VALUES (%s)", [(i,) for i in range(1000, 1100)]
            )
        conn.commit()
        expect(value(conn, "SELECT count(*) FROM psycopg_rows WHERE id >= 1000"), 100)


@check("COPY in and out")
def copy():
    with connect() as conn:
        cursor = conn.cursor()
        cursor.execute("CREATE TABLE IF NOT EXISTS psycopg_copy (a int, b text)")
        cursor.execute("TRUNCATE psycopg_copy")
        with cursor.copy("COPY psycopg_copy FROM STDIN") as copy:
            for i in range(10000):
                copy.write_row((i, f"row {i}\t\\"))
        expect(cursor.rowcount, 10000)
        conn.commit()
        for form in ("", " (FORMAT binary)"):
            with cursor.copy(f"COPY (SELECT * FROM psycopg_copy ORDER BY a) TO STDOUT{form}") as copy:
                copy.set_types(["int4", "text"])
                read = list(copy.rows())
            expect(read == [(i, f"row {i}\t\\") for i in range(10000)], True)
        # What the client gives up leaves nothing.
        def gives_up():
            with cursor.copy("COPY psycopg_copy FROM STDIN") as copy:
                copy.write_row((1, "x"))
                raise ZeroDivisionError

        refuses(ZeroDivisionError, gives_up)
        conn.rollback()
        expect(value(conn, "SELECT /* quorate: strong */ count(*) FROM psycopg_copy"), 10000)


@check("server-side cursors")
def cursors():
    with connect() as conn:
        with conn.cursor("inside") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT generate_series(1, 1000)")
            expect(sum(row[0] for row in cursor), 500500)
        with conn.cursor("scrolls", scrollable=True) as cursor:
            cursor.execute("SELECT generate_series(1, 1000)")
            cursor.scroll(500)
            expect(cursor.fetchone()[0], 501)
            cursor.scroll(-1)
            expect(cursor.fetchone()[0], 501)


@check("server-side cursors WITH HOLD")
def held_cursors():
    with connect() as conn, connect() as other:
        cursor = conn.cursor("held", withhold=True)
        cursor.execute("SELECT generate_series(1, 1000)")
        cursor.fetchmany(10)
        conn.commit()
        # It lives on after its transaction, while others use the pool.
        for i in range(11, 1001):
            if i % 100 == 0:
                other.execute("SELECT count(*) FROM psycopg_rows")
            expect(cursor.fetchone()[0], i)
            conn.commit()
        expect(cursor.fetchone(), None)
        cursor.close()
        conn.commit()
        refuses(errors.InvalidCursorName, lambda: conn.execute('FETCH 1 FROM "held"'))


@check("async: transactions, pipeline, COPY, cancel")
def asynchronous():
    async def everything():
        conn = await psycopg.AsyncConnection.connect(host="127.0.0.1", port=PORTS[0])
        async with conn:
            expect(conn.pgconn.ssl_in_use, True)
            await conn.execute("CREATE TABLE IF NOT EXISTS psycopg_async (id int)")
            await conn.execute("TRUNCATE psycopg_async")
            await conn.commit()
            async with conn.transaction(force_rollback=True):
                await conn.execute("INSERT INTO psycopg_async VALUES (1)")
            try:
                async with conn.transaction():
                    await conn.execute("INSERT INTO psycopg_async VALUES (2)")
                    await conn.execute("SELECT 1 / 0")
            except errors.DivisionByZero:
                pass
            async with conn.pipeline():
                for i in range(10):
                    await conn.execute("INSERT INTO psycopg_async VALUES (%s)", [10 + i])
            async with conn.cursor() as cursor:
                async with cursor.copy("COPY psycopg_async FROM STDIN") as copy:
                    await copy.write_row((100,))
            await conn.commit()
            count = await conn.execute("SELECT sum(id), count(*) FROM psycopg_async")
            expect(await count.fetchone(), (10 * 10 + 45 + 100, 11))
            running = asyncio.create_task(conn.execute("SELECT pg_sleep(60) /* psycopg async */"))
            await asyncio.to_thread(until, lambda: asleep("psycopg async"), "it runs")
            await conn.cancel_safe()
            try:
                await running
                raise AssertionError("was not cancelled")
            except errors.QueryCanceled:
                pass
            await conn.rollback()
            # A task that is cancelled cancels its statement, and the connection can be used again.
            running = asyncio.create_task(conn.execute("SELECT pg_sleep(60) /* psycopg task */"))
            await asyncio.to_thread(until, lambda: asleep("psycopg task"), "it runs")
            running.cancel()
            try:
                await running
            except asyncio.CancelledError:
                pass
            await asyncio.to_thread(until, lambda: not asleep("psycopg task"), "it ends")

        many = [psycopg.AsyncConnection.connect(host="127.0.0.1", port=port) for port in PORTS * 5]
        many = await asyncio.gather(*many)
        answers = await asyncio.gather(*(c.execute("SELECT 7") for c in many))
        expect([(await a.fetchone())[0] for a in answers], [7] * len(many))
        await asyncio.gather(*(c.close() for c in many))

    asyncio.run(everything())


@check("LISTEN and NOTIFY")
def notifications():
    with connect(autocommit=True) as ear, connect(1, autocommit=True) as mouth:
        ear.execute("LISTEN psycopg")
        mouth.execute("NOTIFY psycopg, 'word'")
        heard = list(ear.notifies(timeout=20, stop_after=1))
        expect([(n.channel, n.payload) for n in heard], [("psycopg", "word")])


@check("reads go to a replica")
def replica():
    for port in range(len(PORTS)):
        with connect(port, autocommit=True) as conn:
            until(lambda: value(conn, PLACE), "a replica answers")
            conn.execute("SET quorate.read_from = 'writer'")
            expect(value(conn, PLACE), False)


@check("reads see the session's own writes")
def own_writes():
    standbys = []
    for socket in SOCKETS:
        with direct(socket) as conn:
            if value(conn, "SELECT pg_is_in_recovery()"):
                standbys.append(socket)
    expect(len(standbys), len(SOCKETS) - 1)
    for socket in standbys:
        with direct(socket) as conn:
            conn.execute("SELECT pg_wal_replay_pause()")
            paused = "SELECT pg_get_wal_replay_pause_state() = 'paused'"
            until(lambda: value(conn, paused), "replay stands still")
    there = "SELECT count(id) FROM psycopg_place LEFT JOIN psycopg_rows ON id = %s"
    try:
        with connect(autocommit=True) as conn:
            for i in range(5000, 5020):
                conn.execute("INSERT INTO psycopg_rows VALUES (%s)", [i])
                expect(value(conn, there, [i]), 1)
                with conn.transaction():
                    conn.execute("INSERT INTO psycopg_rows VALUES (%s)", [i + 1000])
                expect(value(conn, there, [i + 1000]), 1)
            # The replicas do lack it: who does not ask to see it misses it.
            conn.execute("SET quorate.consistency = 'eventual'")
            expect(value(conn, PLACE), True)
            expect(value(conn, there, [5019]), 0)
            conn.execute("SET quorate.consistency = 'read_your_writes'")
            expect(value(conn, there, [5019]), 1)
            expect(value(conn, PLACE), False)
    finally:
        for socket in standbys:
            with direct(socket) as conn:
                conn.execute("SELECT pg_wal_replay_resume()")
    with connect(autocommit=True) as conn:
        conn.execute("INSERT INTO psycopg_rows VALUES (7000)")
        both = "SELECT standby, count(id) FROM psycopg_place LEFT JOIN psycopg_rows ON id = 7000"
        caught_up = lambda: conn.execute(both + " GROUP BY standby").fetchone() == (True, 1)
        until(caught_up, "a replica has it")


@check("a switchover is a pause")
def switchover():
    before = next(socket for socket in SOCKETS if not in_recovery(socket))
    command = [os.environ["QUORATE_BIN"], "switchover", "--dir", os.environ["QUORATE_DIR"]]
    with connect(0) as one, connect(1) as two, connect(2, autocommit=True) as three:
        one.execute("TRUNCATE psycopg_rows")
        one.commit()
        written = 0

        def round_():
            nonlocal written
            for conn in (one, two):
                written += 2
                with conn.transaction():
                    conn.execute("INSERT INTO psycopg_rows VALUES (%s)", [written])
                    conn.execute("INSERT INTO psycopg_rows VALUES (%s)", [written + 1])
            written += 2
            three.execute("INSERT INTO psycopg_rows VALUES (%s)", [written])
            three.execute("INSERT INTO psycopg_rows VALUES (%s)", [written + 1])
            expect(value(three, "SELECT count(*) FROM psycopg_rows"), written)

        for _ in range(20):
            round_()
        moving = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while moving.poll() is None:
            round_()
        expect((moving.returncode, moving.stdout.read() if moving.returncode else b""), (0, b""))
        for _ in range(20):
            round_()
        expect(value(one, "SELECT count(*) FROM psycopg_rows"), written)
    until(lambda: in_recovery(before), "the former writer follows")


def in_recovery(socket):
    """Whether a server is a standby; not while it starts."""
    try:
        with direct(socket) as conn:
            return value(conn, "SELECT pg_is_in_recovery()")
    except psycopg.OperationalError:
        return False


if __name__ == "__main__":
    sys.exit(1 if run() else 0)
