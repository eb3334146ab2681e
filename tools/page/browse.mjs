// Looks at the page of a made-up cluster with a headless Chromium: see README.md.
import { spawn } from "node:child_process";
import { Browser, BEHIND_MS_MAX, answers, judge, must, option, silent, within } from "./browser.mjs";

const BYTES_MAX = 150 * 1024;
const port = option("--port") ?? "16434", origin = `http://127.0.0.1:${port}`;

// The server: a test of the program, in a process group of its own so that it can be ended whole.
function serve(nodes) {
  const program = option("--program");
  const [command, ...rest] = program
    ? [program, "a_page_for_a_browser"]
    : ["cargo", "test", "-q", "-p", "quorate", "--bins", "a_page_for_a_browser"];
  const env = { ...process.env, QUORATE_PAGE_AT: `127.0.0.1:${port}`, QUORATE_PAGE_NODES: String(nodes) };
  const child = spawn(command, rest, { env, detached: true, stdio: "ignore" });
  return { stop: () => { try { process.kill(-child.pid, "SIGKILL"); } catch { /* it ended by itself */ } } };
}

async function first(browser) {
  const tab = await browser.tab(origin);
  await tab.look(1280, 1500, false, "light");
  await tab.paint();
  const fresh = await browser.tab(origin);
  await fresh.send("Network.setCacheDisabled", { cacheDisabled: true });
  await fresh.go("/");
  must(fresh.bytes > 1000 && fresh.bytes <= BYTES_MAX, `${fresh.bytes} bytes in all`);
  await tab.shot("light");
  await live(tab);
  await keyboard(tab);
  for (const scheme of ["light", "dark"]) {
    await tab.look(1280, 1500, false, scheme);
    await tab.contrast(scheme);
  }
  await tab.shot("dark");
  await tab.look(390, 844, true, "light");
  await tab.narrow("light");
  await tab.shot("phone");
  tab.clean("looking");
  return tab;
}

async function live(tab) {
  must(await tab.until(`document.getElementById("link").textContent === "live"`, 5000), "the page is live");
  const sentence = `document.querySelector(".sentence").textContent`;
  const well = `${sentence}.includes("All is well")`;
  await tab.until(well, 6000);
  await tab.ask(`document.querySelector("#cluster details").open = true; window.same = true; document.querySelector("#cluster summary").focus()`);
  must(await tab.until(`!${well}`, 6000), "what goes wrong is told without a reload");
  must(await tab.ask(`document.title.startsWith("! ")`), "in the title, too");
  must(await tab.ask(`window.same && document.querySelector("#cluster details").open`), "what is unfolded stays");
  must(await tab.ask(`document.activeElement.nodeName === "SUMMARY"`), "the focus stays");
  // The made-up cluster turns each two seconds of its server's life: two turns are that far apart.
  const turns = await tab.ask(`new Promise((done) => { const seen = []; new MutationObserver(() => { seen.push(performance.now()); if (seen.length > 3) done(seen); })
    .observe(document.querySelector("#now .live"), { subtree: true, childList: true, characterData: true, attributes: true }); })`);
  const late = Math.max(...turns.slice(1).map((at, i) => (at - turns[i]) % 2000).map((ms) => Math.min(ms, 2000 - ms)));
  within(late, BEHIND_MS_MAX, "turns come within");
}

async function keyboard(tab) {
  await tab.go("/");
  await tab.tabulate();
  must(await tab.ask(`document.activeElement.className === "skip"`), "the first stop skips to the content");
  must(await tab.ask(`document.activeElement.getBoundingClientRect().left >= 0`), "and shows itself");
  await tab.enter();
  must(await tab.until(`document.activeElement.id === "main"`, 1000), "and leads there");
  let stops = 0;
  for (; stops < 12; stops++) {
    await tab.tabulate();
    if (!await tab.ask(`getComputedStyle(document.activeElement).outlineStyle !== "none"`)) break;
  }
  must(stops === 12, "every stop shows itself");
}

async function plain(browser) {
  const tab = await browser.tab(origin);
  await tab.send("Emulation.setScriptExecutionDisabled", { value: true });
  await tab.go("/");
  const { root } = await tab.send("DOM.getDocument", { depth: -1 });
  const { outerHTML } = await tab.send("DOM.getOuterHTML", { nodeId: root.nodeId });
  must(outerHTML.includes("Zone b") && outerHTML.includes('http-equiv="refresh"'), "without a script everything is there, and comes again");
}

async function deed(browser) {
  const tab = await browser.tab(origin);
  const fill = (token) => tab.ask(`document.getElementById("token").value = "${token}"; document.querySelector("main form").submit()`);
  await tab.go("/page/login");
  await fill("nonsense");
  must(await tab.until(`document.querySelector(".bad")?.textContent.includes("not this node's")`, 3000), "a wrong token is refused");
  await fill("secret");
  must(await tab.until(`document.querySelector(".said:not([hidden])")?.textContent.includes("logged in")`, 3000), "the right one logs in");
  must(!await tab.ask(`document.cookie.includes("quorate")`), "scripts do not see the login");
  await tab.ask(`document.querySelector('[name=deed][value=pause], [name=deed][value=resume]').form.submit()`);
  must(await tab.until(`document.querySelector("h1")?.textContent.includes("utomation?")`, 3000), "a deed asks again");
  must(await tab.ask(`document.querySelector(".ask").textContent.includes("nobody takes over")`), "and says what it leads to");
  await tab.look(1280, 700, false, "light");
  await tab.shot("question");
  await tab.ask(`document.querySelector("main form").submit()`);
  must(await tab.until(`document.querySelector(".said:not([hidden])")`, 3000), "a yes is taken from our own page");
}

async function lost(tab, server) {
  await tab.go("/");
  await tab.until(`document.getElementById("link").textContent === "live"`, 5000);
  server.stop();
  must(await tab.until(`document.getElementById("link").textContent.startsWith("not connected since")`, 9000), "a lost server is told");
  const again = serve(3);
  await answers(origin);
  must(await tab.until(`document.getElementById("link").textContent === "live"`, 25000), "and found again");
  return again;
}

// Fifty nodes in five zones and five hundred slots: it is still small and quick, and can be read.
async function huge(browser) {
  const tab = await browser.tab(origin);
  await tab.look(1280, 1000, false, "light");
  await tab.paint();
  const fresh = await browser.tab(origin);
  await fresh.send("Network.setCacheDisabled", { cacheDisabled: true });
  await fresh.go("/");
  must(fresh.bytes > 1000 && fresh.bytes <= BYTES_MAX, `fifty nodes: ${fresh.bytes} bytes in all`);
  must(await tab.ask(`document.querySelectorAll(".zone").length === 5 && document.querySelectorAll(".zone [id^=node-]").length === 49`), "fifty nodes: each is there, by zone");
  const spilt = `[...document.querySelectorAll(".card, .chip")].filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.id).join(" ")`;
  for (const [width, height, phone, screens] of [[1280, 1000, false, 8], [390, 844, true, 24]]) {
    const name = phone ? "phone" : "desktop";
    for (const scheme of ["light", "dark"]) {
      await tab.look(width, height, phone, scheme);
      await tab.contrast(`fifty nodes, ${name}, ${scheme}`);
      await tab.shot(`fifty-${name}-${scheme}`);
    }
    const long = await tab.ask(`document.documentElement.scrollHeight / ${height}`);
    must(long <= screens, `fifty nodes: ${long.toFixed(1)} screens of a ${name}, at most ${screens}`);
    must(await tab.ask(spilt) === "", `fifty nodes: nothing spills out of its place on a ${name} ${await tab.ask(spilt)}`);
  }
  await tab.narrow("fifty nodes");
  await tab.ask(`document.querySelectorAll("details").forEach((e) => { e.open = true; })`);
  await tab.narrow("fifty nodes, all unfolded");
  tab.clean("fifty nodes");
}

let server = serve(3);
const browser = new Browser();
// However this ends, nothing of it stays.
process.on("exit", () => { server.stop(); browser.child.kill("SIGKILL"); });
try {
  await answers(origin);
  const tab = await first(browser);
  await plain(browser);
  await deed(browser);
  server = await lost(tab, server);
  server.stop();
  await silent(origin);
  server = serve(50);
  await answers(origin);
  await huge(browser);
} finally {
  server.stop();
  await browser.stop();
}
judge();
