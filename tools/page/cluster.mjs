// A real cluster of three nodes on this machine's loopback, made and ended by whoever looks at its page.
import { execFile, spawn } from "node:child_process";
import { mkdirSync, openSync, readFileSync, rmSync, closeSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { sleep } from "./browser.mjs";

const run = promisify(execFile);
const START_MS_MAX = 180000, END_MS_MAX = 30000, SETTLED_MS = 3000, WRITE_EVERY_MS = 100;

export class Cluster {
  // A node has three ports in a row: for applications, for other nodes, for the page.
  constructor(program, dir, port) {
    Object.assign(this, { program, dir, port, names: ["n1", "n2", "n3"], children: {}, over: false });
  }
  home(name) { return join(this.dir, name); }
  address(name, kind) { return `127.0.0.1:${this.port + 3 * this.names.indexOf(name) + kind}`; }
  origin(name) { return `http://${this.address(name, 2)}`; }
  token(name) { return readFileSync(join(this.home(name), "admin.token"), "utf8").trim(); }
  async quorate(...words) { return (await run(this.program, words)).stdout.trim(); }
  async get(name, path) { return (await fetch(this.origin(name) + path)).json(); }

  async begin() {
    rmSync(this.dir, { recursive: true, force: true });
    mkdirSync(this.dir, { recursive: true });
    for (const [i, name] of this.names.entries()) {
      const words = ["--dir", this.home(name), "--name", name, "--advertise", "127.0.0.1", "--zone", "abc"[i],
        "--gateway", this.address(name, 0), "--link", this.address(name, 1), "--web", this.address(name, 2)];
      if (i === 0) await this.quorate("init", ...words);
      else await this.quorate("join", this.address("n1", 1), "--token", await this.quorate("token", "--dir", this.home("n1")), ...words);
      this.start(name);
      await this.until(name, (status) => i > 0 || serving(status));
    }
    await this.settled("n1");
    this.work();
  }
  start(name) {
    const log = openSync(join(this.dir, `${name}.log`), "a");
    this.children[name] = spawn(this.program, ["run", "--dir", this.home(name)], { stdio: ["ignore", log, log] });
    closeSync(log);
  }
  // Its PostgreSQL goes with it, as its kernel sees to.
  async kill(name, signal = "SIGKILL") {
    const child = this.children[name];
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((done) => child.once("exit", done));
    child.kill(signal);
    await gone;
  }
  // What a node says of the cluster, once that holds.
  async until(name, holds, ms = START_MS_MAX, every = 100) {
    let last;
    for (const end = Date.now() + ms; Date.now() < end; await sleep(every)) {
      try { last = await this.get(name, "/api/status"); } catch { continue; }
      if (holds(last)) return last;
    }
    throw new Error(`${name} does not see in time that ${holds}; it sees ${JSON.stringify(last).slice(0, 2000)}`);
  }
  whole(status) {
    return serving(status) && this.names.every((n) => ["writing", "following"].includes(status.nodes[n]?.status?.doing) && status.nodes[n].heard_ms < 1000)
      && status.voters.length === this.names.length && status.candidates.filter((c) => c.eligible).length === this.names.length - 1;
  }
  // Every node is in its place, and stays there: who was away may have to find its place twice.
  async settled(name, ms = START_MS_MAX) {
    let since = null;
    return this.until(name, (status) => {
      since = this.whole(status) ? since ?? Date.now() : null;
      return since && Date.now() - since >= SETTLED_MS;
    }, ms);
  }
  // Something to see: a client that writes a row now and then, through one gateway or the next.
  work() {
    const password = readFileSync(join(this.home("n1"), "superuser.password"), "utf8").trim();
    const hosts = this.names.map(() => "127.0.0.1").join(), ports = this.names.map((n) => this.address(n, 0).split(":")[1]).join();
    const again = () => {
      if (this.over) return;
      const env = { ...process.env, PGPASSWORD: password, PGCONNECT_TIMEOUT: "5" };
      const psql = spawn("psql", ["-qX", `host=${hosts} port=${ports} user=postgres dbname=postgres`], { env, stdio: ["pipe", "ignore", "ignore"] });
      this.psql = psql;
      psql.stdin.on("error", () => {});
      psql.stdin.write("create table if not exists seen (at timestamptz default now());\n");
      const timer = setInterval(() => psql.stdin.write("insert into seen default values;\n"), WRITE_EVERY_MS);
      psql.on("error", () => clearInterval(timer));
      psql.on("exit", () => { clearInterval(timer); setTimeout(again, 500); });
    };
    again();
  }
  // At once: nothing of it stays, whatever happens.
  drop() {
    this.over = true;
    this.psql?.kill("SIGKILL");
    for (const child of Object.values(this.children)) child.kill("SIGKILL");
  }
  async end() {
    this.over = true;
    this.psql?.kill();
    const stopped = Promise.all(this.names.map((name) => this.kill(name, "SIGTERM")));
    await Promise.race([stopped, sleep(END_MS_MAX)]);
    this.drop();
    await sleep(500);
  }
}

// Who takes writes, as one node sees it.
export function serving(status) {
  const word = status.nodes[status.writer]?.status?.writer;
  return status.phase === "serving" && word?.serving && word.term === status.term ? status.writer : null;
}
