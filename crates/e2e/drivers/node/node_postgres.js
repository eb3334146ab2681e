// node-postgres through the gateways of a cluster. Started by `cargo xtask drivers`, which says in
// the environment where everything is.
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const { spawn } = require("node:child_process");
const { once } = require("node:events");
const { pipeline } = require("node:stream/promises");
const { Readable } = require("node:stream");
const { Client, Pool, Query } = require("pg");
const Cursor = require("pg-cursor");
const { from: copyFrom, to: copyTo } = require("pg-copy-streams");
const { check, run, refuses, until } = require("./checks.js");

const env = process.env;
const PORTS = env.PGPORT.split(",").map(Number);
const SOCKETS = env.QUORATE_SOCKETS.split(",");
const CA = fs.readFileSync(env.PGSSLROOTCERT, "utf8");
const OTHER_CA = fs.readFileSync(env.QUORATE_OTHER_CA, "utf8");
const PLACE = "SELECT standby FROM pgjs_place";

/** How to connect through a gateway. An authority alone means what verify-full means to libpq. */
function gateway(port, more = {}) {
  return { host: "127.0.0.1", port: PORTS[port], user: env.PGUSER, password: env.PGPASSWORD, database: env.PGDATABASE, ssl: { ca: CA }, ...more };
}

async function session(options, body) {
  const client = new Client(options);
  // A connection that is cut while it is idle tells it here.
  let lost = null;
  client.on("error", (error) => (lost = error));
  await client.connect();
  try {
    const found = await body(client);
    assert.strictEqual(lost, null);
    return found;
  } finally {
    await client.end();
  }
}

const direct = (socket, body) => session(gateway(0, { host: socket, port: 5432, ssl: false }), body);

async function value(client, text, values) {
  const { rows } = await client.query({ text, values, rowMode: "array" });
  return rows[0][0];
}

const sum = (client) => value(client, "SELECT /* quorate: strong */ coalesce(sum(id), 0)::int FROM pgjs_rows");

check("setup", () =>
  session(gateway(0), async (client) => {
    await client.query("DROP VIEW IF EXISTS pgjs_place; DROP TABLE IF EXISTS pgjs_rows");
    await client.query("CREATE TABLE pgjs_rows (id int PRIMARY KEY)");
    // A view does not give away that it depends on where it is read.
    await client.query("CREATE VIEW pgjs_place AS SELECT pg_is_in_recovery() AS standby");
  }));

check("login: SCRAM password", async () => {
  assert.strictEqual(await session(gateway(0), (client) => value(client, "SELECT 1")), 1);
  await refuses(session(gateway(0, { password: "wrong" }), async () => {}), "28P01");
});

check("TLS: verify-full", async () => {
  await session(gateway(0), async (client) => {
    assert.strictEqual(client.connection.stream.authorized, true);
    assert.match(client.connection.stream.getProtocol(), /^TLSv1\.[23]$/);
  });
  await refuses(session(gateway(0, { ssl: { ca: OTHER_CA } }), async () => {}), "certificate");
  // As a connection string says it.
  const auth = `${env.PGUSER}:${env.PGPASSWORD}`;
  const url = (ca) =>
    `postgresql://${auth}@127.0.0.1:${PORTS[1]}/${env.PGDATABASE}?sslmode=verify-full&sslrootcert=${ca}`;
  await session({ connectionString: url(env.PGSSLROOTCERT) }, async (client) => {
    assert.strictEqual(client.connection.stream.authorized, true);
  });
  await refuses(session({ connectionString: url(env.QUORATE_OTHER_CA) }, async () => {}), "certificate");
});

check("TLS: channel binding", async () => {
  const client = new Client(gateway(0, { enableChannelBinding: true }));
  const sends = client.connection.sendSASLInitialResponseMessage;
  let mechanism;
  client.connection.sendSASLInitialResponseMessage = function (name, first) {
    mechanism = name;
    return sends.call(this, name, first);
  };
  await client.connect();
  await client.end();
  assert.strictEqual(mechanism, "SCRAM-SHA-256-PLUS");
});

check("transaction: commit", async () => {
  await session(gateway(0), async (client) => {
    await client.query("BEGIN");
    await client.query("INSERT INTO pgjs_rows VALUES ($1)", [1]);
    await client.query("COMMIT");
  });
  assert.strictEqual(await session(gateway(1), sum), 1);
});

check("transaction: rollback", () =>
  session(gateway(0), async (client) => {
    const before = await sum(client);
    await client.query("BEGIN");
    await client.query("INSERT INTO pgjs_rows VALUES ($1)", [2]);
    await client.query("ROLLBACK");
    assert.strictEqual(await sum(client), before);
  }));

check("transaction: an error inside", () =>
  session(gateway(0), async (client) => {
    const before = await sum(client);
    await client.query("BEGIN");
    await client.query("INSERT INTO pgjs_rows VALUES ($1)", [3]);
    await refuses(client.query("INSERT INTO pgjs_rows VALUES ($1)", [3]), "23505");
    await refuses(client.query("SELECT 1"), "25P02");
    await client.query("ROLLBACK");
    assert.strictEqual(await sum(client), before);
    assert.strictEqual((await client.query("COMMIT")).command, "COMMIT");
  }));

check("prepared statements", () =>
  session(gateway(0), (client) =>
    session(gateway(0), async (other) => {
      const plus = { name: "plus", text: "SELECT $1::int + 1 AS n" };
      for (let i = 0; i < 20; i++) {
        const { rows } = await client.query({ ...plus, values: [i] });
        assert.strictEqual(rows[0].n, i + 1);
        // Somebody else's transaction takes the server connection meanwhile, with the same name.
        await other.query("BEGIN; LOCK pgjs_rows");
        const theirs = await other.query({ name: "plus", text: "SELECT $1::int - 1 AS n", values: [i] });
        assert.strictEqual(theirs.rows[0].n, i - 1);
        const meanwhile = await client.query({ ...plus, values: [-i] });
        assert.strictEqual(meanwhile.rows[0].n, 1 - i);
        await other.query("COMMIT");
      }
    })));

/** Waits until a statement with this mark runs on any server; its server process there. */
function runs(mark) {
  const sql = "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE $1 AND pid <> pg_backend_pid()";
  return until(async () => {
    for (const socket of SOCKETS) {
      const { rows } = await direct(socket, (client) => client.query(sql, [`%${mark}%`]));
      if (rows.length) return rows[0].pid;
    }
  }, "it runs");
}

check("cancel", () =>
  session(gateway(0), async (client) => {
    const query = new Query("SELECT pg_sleep(60) /* pgjs cancel */");
    const refused = refuses(once(query, "end"), "57014");
    client.query(query);
    await runs("pgjs cancel");
    // The driver sends no cancel request over TLS.
    new Client(gateway(0, { ssl: false })).cancel(client, query);
    await refused;
    assert.strictEqual(await value(client, "SELECT 1"), 1);
  }));

check("cancel: pg_cancel_backend", () =>
  session(gateway(0), async (client) => {
    const refused = refuses(client.query("SELECT pg_sleep(60) /* pgjs backend */"), "57014");
    const pid = await runs("pgjs backend");
    for (const socket of SOCKETS) await direct(socket, (c) => c.query("SELECT pg_cancel_backend($1)", [pid]));
    await refused;
    assert.strictEqual(await value(client, "SELECT 1"), 1);
  }));

check("COPY in and out", () =>
  session(gateway(0), async (client) => {
    await client.query("CREATE TABLE IF NOT EXISTS pgjs_copy (a int, b text); TRUNCATE pgjs_copy");
    const lines = Array.from({ length: 10000 }, (_, i) => `${i}\trow ${i}\n`);
    await pipeline(Readable.from(lines), client.query(copyFrom("COPY pgjs_copy FROM STDIN")));
    let read = "";
    const out = client.query(copyTo("COPY (SELECT * FROM pgjs_copy ORDER BY a) TO STDOUT"));
    for await (const chunk of out) read += chunk;
    assert.ok(read === lines.join(""), `${read.length} bytes came back`);
    await refuses(pipeline(Readable.from(["x\ty\n"]), client.query(copyFrom("COPY pgjs_copy FROM STDIN"))), "22P02");
    assert.strictEqual(await value(client, "SELECT count(*)::int FROM pgjs_copy"), 10000);
  }));

check("portals (pg-cursor)", () =>
  session(gateway(0), async (client) => {
    const cursor = client.query(new Cursor("SELECT n FROM generate_series(1, 1000) AS n"));
    let total = 0;
    for (;;) {
      const rows = await cursor.read(100);
      if (!rows.length) break;
      for (const { n } of rows) total += n;
    }
    await cursor.close();
    assert.strictEqual(total, 500500);
    assert.strictEqual(await value(client, "SELECT 1"), 1);
  }));

check("a pool of its own", async () => {
  const pool = new Pool({ ...gateway(0), max: 10 });
  const answers = await Promise.all(Array.from({ length: 200 }, (_, i) => pool.query("SELECT $1::int AS n", [i])));
  assert.deepStrictEqual(answers.map((a) => a.rows[0].n), Array.from({ length: 200 }, (_, i) => i));
  await pool.end();
});

check("LISTEN and NOTIFY", () =>
  session(gateway(0), (ear) =>
    session(gateway(1), async (mouth) => {
      await ear.query("LISTEN pgjs");
      const heard = once(ear, "notification", { signal: AbortSignal.timeout(20_000) });
      await mouth.query("NOTIFY pgjs, 'word'");
      assert.strictEqual((await heard)[0].payload, "word");
    })));

check("reads go to a replica and see the session's own writes", async () => {
  for (const port of PORTS.keys()) {
    await session(gateway(port), async (client) => {
      await until(() => value(client, PLACE), "a replica answers");
      for (let i = 0; i < 50; i++) {
        const id = 5000 + 50 * port + i;
        await client.query("INSERT INTO pgjs_rows VALUES ($1)", [id]);
        assert.strictEqual(await value(client, "SELECT count(*)::int FROM pgjs_rows WHERE id = $1", [id]), 1);
      }
      await until(() => value(client, PLACE), "a replica answers again");
    });
  }
});

check("a switchover is a pause", async () => {
  const moves = () => {
    const moving = spawn(env.QUORATE_BIN, ["switchover", "--dir", env.QUORATE_DIR], { stdio: ["ignore", "pipe", "pipe"] });
    let said = "";
    for (const stream of [moving.stdout, moving.stderr]) stream.on("data", (chunk) => (said += chunk));
    return once(moving, "close").then(([code]) => assert.strictEqual(code, 0, said));
  };
  const standby = (socket) => direct(socket, (client) => value(client, "SELECT pg_is_in_recovery()"));
  const before = await Promise.all(SOCKETS.map(standby));
  const writer = SOCKETS[before.indexOf(false)];
  const pool = new Pool({ ...gateway(0), max: 4 });
  const lost = [];
  pool.on("error", (error) => lost.push(error));
  await pool.query("TRUNCATE pgjs_rows");
  await session(gateway(1), async (client) => {
    let id = 0;
    const round = async () => {
      const [a, b, c] = [++id, ++id, ++id];
      await client.query("BEGIN");
      await client.query("INSERT INTO pgjs_rows VALUES ($1)", [a]);
      const theirs = pool.query("INSERT INTO pgjs_rows VALUES ($1)", [b]);
      await client.query({ name: "insert", text: "INSERT INTO pgjs_rows VALUES ($1)", values: [c] });
      await client.query("COMMIT");
      await theirs;
      assert.strictEqual(await value(client, "SELECT count(*)::int FROM pgjs_rows WHERE id IN ($1, $2)", [a, c]), 2);
    };
    for (let i = 0; i < 20; i++) await round();
    let moved = false;
    const moving = moves().finally(() => (moved = true));
    while (!moved) await round();
    await moving;
    for (let i = 0; i < 20; i++) await round();
    assert.strictEqual(await value(client, "SELECT /* quorate: strong */ count(*)::int FROM pgjs_rows"), id);
  });
  await pool.end();
  assert.deepStrictEqual(lost, []);
  // Not while it starts.
  await until(() => standby(writer).catch(() => false), "the former writer follows");
});

run();
