// What the scripts beside share: what they judge by, and a headless Chromium by its debugging pipe.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PAINT_MS_MAX = 200, CONTRAST_MIN = 4.5, LOAD_MS_MAX = 60000;
export const BEHIND_MS_MAX = 1000;
const args = process.argv.slice(2);
export const option = (name) => { const at = args.indexOf(name); return at < 0 ? null : args[at + 1]; };
const lenient = args.includes("--lenient"), times = args.includes("--times"), shots = option("--shots");
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const problems = [];
export function must(holds, what) {
  console.log(`${holds ? "ok  " : "NOT "} ${what}`);
  if (!holds) problems.push(what);
}
// A time, which is only printed where the machine is busy with something else.
export function within(ms, most, what) {
  const text = `${what} ${Math.round(ms)} ms`;
  if (lenient) console.log(`     ${text}`); else must(ms <= most, text);
}
// The end of a script.
export function judge() {
  if (problems.length) { console.error(`\n${problems.length} things are not as they must be`); process.exit(1); }
}
export async function answers(origin) {
  for (let i = 0; i < 6000; i++) {
    try { await fetch(`${origin}/page/icon.svg`); return; } catch { await sleep(100); }
  }
  throw new Error(`${origin} is not served`);
}
export async function silent(origin) {
  for (let i = 0; i < 100; i++) {
    try { await fetch(`${origin}/page/icon.svg`); await sleep(100); } catch { return; }
  }
  throw new Error(`${origin} is still served`);
}

export class Browser {
  constructor() {
    this.home = mkdtempSync(join(tmpdir(), "quorate-page-"));
    const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
      "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
      `--user-data-dir=${this.home}`, "about:blank"];
    const name = process.env.CHROMIUM ?? "chromium";
    this.child = spawn(name, flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
    this.waiting = new Map(); this.listeners = []; this.number = 0;
    let rest = "";
    this.child.stdio[4].setEncoding("utf8").on("data", (data) => {
      const parts = (rest + data).split("\0");
      rest = parts.pop();
      parts.map((part) => JSON.parse(part)).forEach((message) => this.take(message));
    });
  }
  take(message) {
    if (!message.id) { this.listeners.forEach((hear) => hear(message)); return; }
    const { done, fail } = this.waiting.get(message.id);
    this.waiting.delete(message.id);
    if (message.error) fail(new Error(JSON.stringify(message.error))); else done(message.result);
  }
  send(method, params = {}, sessionId = undefined) {
    const id = ++this.number;
    this.child.stdio[3].write(JSON.stringify({ id, method, params, sessionId }) + "\0");
    return new Promise((done, fail) => this.waiting.set(id, { done, fail }));
  }
  async tab(origin) {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    return new Tab(this, sessionId, origin).begin();
  }
  async stop() {
    this.child.kill("SIGKILL");
    await sleep(300);
    rmSync(this.home, { recursive: true, force: true, maxRetries: 5 });
  }
}

class Tab {
  constructor(browser, session, origin) { Object.assign(this, { browser, session, origin, foreign: [], errors: [], bytes: 0 }); }
  send(method, params) { return this.browser.send(method, params, this.session); }
  async begin() {
    this.browser.listeners.push(({ method, params, sessionId }) => {
      if (sessionId !== this.session) return;
      if (method === "Network.requestWillBeSent" && !params.request.url.startsWith(`${this.origin}/`)) this.foreign.push(params.request.url);
      if (method === "Network.loadingFinished") this.bytes += params.encodedDataLength;
      if (method === "Log.entryAdded" && params.entry.level === "error") this.errors.push(params.entry.text);
      if (method === "Runtime.exceptionThrown") this.errors.push(params.exceptionDetails.text);
      if (method === "Page.loadEventFired") this.loaded?.();
    });
    await this.send("Page.bringToFront");
    for (const domain of ["Page", "Network", "Log", "Runtime"]) await this.send(`${domain}.enable`);
    return this;
  }
  // What leads to another page, until it is there.
  async leads(deed) {
    const loaded = new Promise((done) => { this.loaded = done; });
    await deed();
    const late = sleep(LOAD_MS_MAX).then(() => { throw new Error("no page came in time"); });
    late.catch(() => {});
    await Promise.race([loaded, late]);
  }
  go(path) { return this.leads(() => this.send("Page.navigate", { url: this.origin + path })); }
  async ask(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }
  // A page that is just being left has nothing to ask.
  async until(expression, ms) {
    for (const end = Date.now() + ms; Date.now() < end; await sleep(20)) if (await this.ask(expression).catch(() => false)) return true;
    return false;
  }
  text(selector) { return this.ask(`document.querySelector(${JSON.stringify(selector)})?.textContent ?? ""`); }
  async key(key, code, modifiers = 0) {
    const text = key === "Enter" ? "\r" : key.length === 1 ? key : undefined;
    for (const type of ["keyDown", "keyUp"]) {
      await this.send("Input.dispatchKeyEvent", { type, key, code: key, modifiers, windowsVirtualKeyCode: code, text: type === "keyDown" ? text : undefined });
    }
  }
  tabulate(back = false) { return this.key("Tab", 9, back ? 8 : 0); }
  enter() { return this.key("Enter", 13); }
  type(text) { return this.send("Input.insertText", { text }); }
  look(width, height, phone, scheme) {
    return Promise.all([
      this.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: phone }),
      this.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] }),
    ]);
  }
  show(selector) { return this.ask(`document.querySelector(${JSON.stringify(selector)}).scrollIntoView({ behavior: "instant" })`); }
  async shot(name, whole = false) {
    if (!shots) return;
    mkdirSync(shots, { recursive: true });
    const { data } = await this.send("Page.captureScreenshot", { format: "png", captureBeyondViewport: whole });
    writeFileSync(join(shots, `${name}.png`), Buffer.from(data, "base64"));
  }

  // Nothing was asked of anybody else, and nothing went wrong that the console tells.
  clean(where) {
    must(this.foreign.length === 0, `${where}: no request to anybody else ${this.foreign.join(" ")}`);
    must(this.errors.length === 0, `${where}: no error in the console ${this.errors.join(" ")}`);
  }
  // Once the style and the script are in the browser's memory, as for everybody who was here before.
  async paint() {
    await this.go("/");
    await this.go("/");
    const entry = `performance.getEntriesByName("first-contentful-paint")[0]?.startTime`;
    await this.until(`${entry} > 0`, 10000);
    within(await this.ask(entry), PAINT_MS_MAX, "first paint after");
    const marks = `JSON.stringify((({ responseStart, responseEnd, domInteractive, domContentLoadedEventEnd, loadEventEnd }) =>
      ({ responseStart, responseEnd, domInteractive, domContentLoadedEventEnd, loadEventEnd }))(performance.getEntriesByType("navigation")[0]))`;
    if (times) console.log(`     ${await this.ask(marks)}`);
  }
  async contrast(where) {
    const [ratio, text] = await this.ask(CONTRAST);
    must(ratio >= CONTRAST_MIN, `${where}: least contrast ${ratio.toFixed(1)} (${text})`);
  }
  async narrow(where) {
    const width = await this.ask("document.documentElement.scrollWidth");
    must(width <= 390, `${where}: a phone of 390 pixels shows ${width}`);
  }
}

// The least contrast of text with what is behind it, by the rules of WCAG 2.
const CONTRAST = `(() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.nodeValue.trim()) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), paint = e.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const [a, b] = [light(parse(paint)), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < worst[0]) worst = [ratio, e.textContent.trim().slice(0, 40)];
  }
  return worst;
})()`;
