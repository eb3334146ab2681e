// Looks at the page of a real cluster with a headless Chromium, while its writer is lost and while
// somebody acts: see README.md.
import { rmSync } from "node:fs";
import { Browser, BEHIND_MS_MAX, judge, must, option, sleep, within } from "./browser.mjs";
import { Cluster, serving } from "./cluster.mjs";
import { Behind } from "./behind.mjs";

// What the cluster itself may take, on a machine that is busy; and what the browser may.
const TURN_MS_MAX = 180000, PAGE_MS_MAX = 30000;
// The page is looked at on this node, which is not hurt but at the end; and this one is.
const HERE = "n2", VICTIM = "n1";
const SIZES = { desk: [1200, 760, false], phone: [390, 844, true] };

const sentence = `document.querySelector(".sentence").lastChild.nodeValue`;
const isLive = `document.getElementById("link").textContent === "live"`;

async function looks(tab) {
  await tab.look(...SIZES.desk, "light");
  await tab.paint();
  must(await tab.until(isLive, PAGE_MS_MAX), "the page is live");
  must(await tab.until(`${sentence}.includes("All is well: ${VICTIM} writes")`, PAGE_MS_MAX), "and says that all is well");
  await sleep(12000);
  await tab.shot("normal");
  for (const [what, size] of Object.entries(SIZES)) {
    for (const scheme of ["light", "dark"]) {
      await tab.look(...size, scheme);
      await tab.contrast(`${what}, ${scheme}`);
      if (what === "phone") await tab.narrow(`${what}, ${scheme}`);
      await tab.shot(`${what}-${scheme}`);
      await tab.shot(`${what}-${scheme}-whole`, true);
    }
  }
  await tab.look(...SIZES.desk, "light");
}

async function secret(browser, cluster) {
  const tab = await browser.tab(cluster.origin(HERE).replace("http:", "https:"));
  await tab.send("Security.setIgnoreCertificateErrors", { ignore: true });
  await tab.go("/");
  must(await tab.until(isLive, PAGE_MS_MAX), "by https it is live, too");
  await logIn(tab, cluster.token(HERE));
  const { cookies } = await tab.send("Network.getCookies");
  must(cookies.length === 1 && cookies[0].secure && cookies[0].httpOnly && cookies[0].sameSite === "Strict", "its login is secret to scripts, to other sites and to http");
  await reach(tab, `#door button`);
  await tab.leads(() => tab.enter());
  must((await tab.text("#door")).includes("read-only"), "who logs out may only look");
  tab.clean("by https");
}

// Who is not logged in, or not by a page of ours.
async function refused(cluster, tab) {
  must(!await tab.ask(`document.querySelector("#act form, #act button")`), "without a login nothing is offered");
  must((await tab.text("#act")).includes("log in"), "but to log in");
  const origin = cluster.origin(HERE);
  const ask = async (path, headers = {}, body = undefined) => {
    const answer = await fetch(origin + path, { method: path.includes("?") ? "GET" : "POST", headers, body, redirect: "manual" });
    return [answer.status, answer.headers.get("location"), await answer.text(), answer.headers.get("set-cookie")];
  };
  const form = (fields) => new URLSearchParams(fields);
  const [, asked] = await ask("/page/act?deed=pause");
  const [, yes] = await ask("/page/act", {}, form({ deed: "pause" }));
  must(asked === "/page/login" && yes === "/page/login", "who asks without a login is sent there");
  const [bare, , why] = await ask("/api/pause");
  must(bare === 401 && why.includes("admin token"), `the API refuses, too: ${why}`);
  const [wrong] = await ask("/api/pause", { authorization: "Bearer nonsense" });
  must(wrong === 401, "also with a wrong token");
  const [, , , cookie] = await ask("/page/login", { origin }, form({ token: cluster.token(HERE) }));
  const login = cookie.split(";")[0];
  const [foreign] = await ask("/page/act", { cookie: login, origin: "http://elsewhere.example" }, form({ deed: "pause" }));
  must(foreign === 403, "a login is of no use to a foreign page");
  const [unread, , again] = await ask("/page/act", { cookie: login, origin }, form({ deed: "pause", read: "something else" }));
  must(unread === 409 && again.includes("Nothing was done"), "who says yes to something else is asked again");
  const [status, events] = [await cluster.get(HERE, "/api/status"), await cluster.get(HERE, "/api/events")];
  must(!status.paused && !events.some((e) => e.kind === "operator"), "and nothing of all that was done");
}

async function failover(cluster, tab, behind) {
  await behind.anew();
  await tab.ask(`window.same = true`);
  await cluster.kill(VICTIM);
  // A failover may be over within half a second.
  must(await tab.until(`"nobody writes" in window.shown`, PAGE_MS_MAX), "a lost writer is told without a reload");
  await tab.shot("lost");
  const next = serving(await cluster.until(HERE, (s) => s.writer !== VICTIM && serving(s), TURN_MS_MAX, 20));
  must(await tab.until(`${sentence}.startsWith("${next} writes")`, BEHIND_MS_MAX * 5), `and then that ${next} writes`);
  must((await tab.text(`#node-${VICTIM}`)).includes("gone") && (await tab.text(".source .name")) === next, "the picture shows both");
  must((await tab.text("#events")).includes("election"), "the events tell of the election");
  await sleep(2000);
  await tab.shot("after");
  await behind.report("the loss of the writer");
  await behind.anew();
  cluster.start(VICTIM);
  await cluster.settled(HERE, TURN_MS_MAX);
  await sleep(2000);
  must(await tab.until(`document.getElementById("node-${VICTIM}").textContent.includes("following")`, PAGE_MS_MAX), "the lost node follows again");
  await behind.report("its return");
  must(await tab.ask(`window.same === true`), "all that without a reload");
  await tab.shot("back");
}

// Goes on with the keyboard until it is there; every stop must show itself.
async function reach(tab, selector, back = false) {
  for (let stops = 0; stops < 120; stops++) {
    if (await tab.ask(`document.activeElement.matches(${JSON.stringify(selector)})`)) return true;
    await tab.tabulate(back);
    const seen = `(() => { const e = document.activeElement, r = e.getBoundingClientRect();
      return e === document.body || e === document.documentElement || (getComputedStyle(e).outlineStyle !== "none" && r.width > 0 && r.bottom > 0 && r.top < innerHeight && r.right > 0); })()`;
    if (!await tab.until(seen, 2000)) must(false, `a stop does not show itself: ${await tab.ask("document.activeElement.outerHTML.slice(0, 120)")}`);
  }
  return false;
}

async function logIn(tab, token) {
  await tab.go("/");
  must(await reach(tab, `#door a`), "the keyboard leads to the login");
  await tab.leads(() => tab.enter());
  must(await tab.until(`document.activeElement.id === "token"`, PAGE_MS_MAX), "where it can be typed at once");
  await tab.type(token);
  await tab.leads(() => tab.enter());
}

async function wrongToken(cluster, tab) {
  await logIn(tab, "nonsense");
  must((await tab.text(".bad")).includes("not this node's admin token"), "a wrong token gets a clear word");
  await tab.shot("wrong-token");
  // The browser's own word of an answer that refuses.
  tab.errors = tab.errors.filter((e) => !e.includes("401"));
  await tab.type(cluster.token(HERE));
  await tab.leads(() => tab.enter());
  must((await tab.text(".said:not([hidden])")).includes("logged in") && (await tab.text("#door")).includes("may act"), "the right one logs in");
  must(await tab.until(`document.querySelector("#act form") && !location.search`, PAGE_MS_MAX), "and acting is offered");
  await tab.show("#act");
  await tab.shot("act");
}

// Asks by keyboard for something, up to its question.
async function ask(tab, deed, choose = undefined) {
  const form = `#act form:has([name=deed][value=${deed}])`;
  must(await reach(tab, `${form} ${choose ? "select" : "button"}`), `the keyboard leads to ${deed}`);
  if (choose) {
    await tab.ask(`document.activeElement.value = ${JSON.stringify(choose)}`);
    await reach(tab, `${form} button`);
  }
  await tab.leads(() => tab.enter());
  return tab.text(".ask");
}

async function yes(tab) {
  must(await reach(tab, ".ask form button", true), "the keyboard leads to the yes");
  await tab.leads(() => tab.enter());
}

// It is in the history who asked for what.
async function told(cluster, tab, words) {
  const by = `somebody at the page of ${HERE} asked ${words}, from 127.0.0.1`;
  const events = await cluster.get(HERE, "/api/events");
  must(events.some((e) => e.kind === "operator" && e.because.sentence === by), `it is recorded: ${by}`);
  must(await tab.until(`document.getElementById("events").textContent.includes(${JSON.stringify(by)})`, PAGE_MS_MAX), "and the page shows that");
}

async function switchover(cluster, tab, behind) {
  const from = serving(await cluster.settled(HERE, TURN_MS_MAX));
  const text = await ask(tab, "switchover", VICTIM);
  must(text.includes(`Hand the writing over from ${from} to ${VICTIM}?`) && text.includes("Writes pause"), `a question says what a yes leads to: ${text}`);
  must(await tab.until(`document.activeElement.id === "leave"`, PAGE_MS_MAX), "the keyboard begins at the way back");
  await tab.shot("question");
  await tab.leads(() => tab.key("Escape", 27));
  must(await tab.ask(`location.hash === "#act"`), "Escape leaves it");
  must(serving(await cluster.get(HERE, "/api/status")) === from, "and nothing was done");
  await ask(tab, "switchover", VICTIM);
  await behind.anew();
  await yes(tab);
  must((await tab.text(".said:not([hidden])")).includes("asked for"), "a yes is confirmed");
  await cluster.until(HERE, (s) => serving(s) === VICTIM, TURN_MS_MAX, 20);
  must(await behind.tab.until(`${sentence}.includes("${VICTIM} writes")`, PAGE_MS_MAX), `${VICTIM} writes`);
  await cluster.settled(HERE, TURN_MS_MAX);
  await behind.report("a switchover");
  await told(cluster, tab, `for a switchover to ${VICTIM}`);
}

// A writer that says nothing, and may still write: the page cannot know, and says so.
async function silent(cluster, behind) {
  const victim = cluster.children[VICTIM];
  await behind.anew();
  await behind.tab.look(...SIZES.phone, "dark");
  victim.kill("SIGSTOP");
  must(await behind.tab.until(`${sentence}.startsWith("Nobody")`, PAGE_MS_MAX), `a silent writer is told: ${await behind.tab.ask(sentence)}`);
  await behind.tab.shot("silent-phone");
  const next = serving(await cluster.until(HERE, (s) => s.writer !== VICTIM && serving(s), TURN_MS_MAX, 20));
  must(await behind.tab.until(`${sentence}.startsWith("${next} writes")`, PAGE_MS_MAX), `and then that ${next} writes`);
  await behind.report("a silent writer");
  await behind.tab.narrow("a silent writer, dark");
  await behind.tab.look(...SIZES.desk, "light");
  victim.kill("SIGCONT");
  await cluster.settled(HERE, TURN_MS_MAX);
  await cluster.quorate("switchover", "--to", VICTIM, "--dir", cluster.home(HERE));
  await cluster.until(HERE, (s) => serving(s) === VICTIM, TURN_MS_MAX);
  await cluster.settled(HERE, TURN_MS_MAX);
}

// Who only looks sees what has changed in what can be done, too.
async function paused(cluster, tab, behind) {
  await behind.anew();
  must((await ask(tab, "pause")).includes("nobody takes over"), "a pause says what it means");
  await yes(tab);
  must(await behind.tab.until(`document.body.textContent.includes("automation is paused")`, PAGE_MS_MAX), "the pause is shown");
  must(await tab.until(`document.querySelector("#act [value=resume]")`, PAGE_MS_MAX), "and its end is offered");
  await told(cluster, tab, "to pause automation");
  await cluster.kill(VICTIM);
  must(await behind.tab.until(`${sentence}.includes("${VICTIM} is lost, and automation is paused")`, PAGE_MS_MAX), "a writer that is lost meanwhile is told, and why nobody takes over");
  await sleep(3000);
  must((await behind.tab.text(".sentence")).includes("is lost"), "as long as that is so");
  await behind.tab.shot("paused");
  for (const scheme of ["dark", "light"]) {
    await behind.tab.look(...SIZES.desk, scheme);
    await behind.tab.contrast(`no writer, ${scheme}`);
  }
  await ask(tab, "resume");
  await yes(tab);
  const next = serving(await cluster.until(HERE, (s) => s.writer !== VICTIM && serving(s), TURN_MS_MAX));
  must(await behind.tab.until(`${sentence}.startsWith("${next} writes")`, PAGE_MS_MAX), `resumed, ${next} takes over`);
  await told(cluster, tab, "to resume automation");
  cluster.start(VICTIM);
  await cluster.settled(HERE, TURN_MS_MAX);
  await behind.report("a pause, a loss and the way out");
}

async function rebuild(cluster, tab, behind) {
  const status = await cluster.settled(HERE, TURN_MS_MAX);
  // A busy machine may have made another one the writer by now.
  const victim = cluster.names.find((n) => n !== HERE && n !== serving(status));
  must(await tab.until(`document.querySelector("#act option[value=${victim}]")`, PAGE_MS_MAX), `${victim} may be rebuilt`);
  const text = await ask(tab, "rebuild", victim);
  must(text.includes(`All data of ${victim} is thrown away`) && text.includes("copies are left"), `a rebuild says what is left: ${text}`);
  await tab.shot("question-grave");
  await behind.anew();
  await yes(tab);
  must(await behind.tab.until(`document.getElementById("node-${victim}").textContent.includes("cloning")`, PAGE_MS_MAX), "the copying is shown");
  await behind.tab.shot("rebuild");
  await cluster.settled(HERE, TURN_MS_MAX);
  must(await behind.tab.until(`document.getElementById("node-${victim}").textContent.includes("following")`, PAGE_MS_MAX), "and that it follows again");
  await behind.report("a rebuild");
  await told(cluster, tab, `to rebuild ${victim}`);
}

async function drill(cluster, tab, behind) {
  await cluster.settled(HERE, TURN_MS_MAX);
  must((await ask(tab, "drill", "switchover")).includes("What it may cost"), "a drill says what it costs");
  await tab.shot("question-drill");
  await yes(tab);
  must(await behind.tab.until(`${sentence}.includes("know") && document.querySelector("#drills").textContent.includes("under way")`, PAGE_MS_MAX), "a drill under way is told");
  await behind.tab.shot("drill");
  const link = `#drills a[href="/page/drill?id=1"]`;
  must(await behind.tab.until(`document.querySelector(${JSON.stringify(link)})`, TURN_MS_MAX), "its report is linked when it is over");
  // A busy machine may fail it: that is to be shown as well.
  const result = (await behind.tab.text("#drills")).match(/passed|failed|aborted/)?.[0];
  must(result, `and its result shown: ${result}`);
  await told(cluster, tab, "for the drill switchover");
  await tab.go("/");
  must(await reach(tab, link), "the keyboard leads to the report");
  await tab.shot("drills");
  await tab.leads(() => tab.enter());
  const report = await tab.text("body");
  must([result, "What clients saw", "What was checked", "acknowledged writes lost"].every((w) => report.includes(w)), "it can be read");
  await tab.contrast("report");
  await tab.shot("report", true);
  await tab.look(...SIZES.phone, "dark");
  await tab.narrow("report");
  await tab.shot("report-phone");
  await tab.look(...SIZES.desk, "light");
  await reach(tab, `a[href="/#drills"]`);
  await tab.leads(() => tab.enter());
  must(await tab.until(isLive, PAGE_MS_MAX), "and leads back");
  const works = `document.getElementById("review-proved")?.textContent.includes("a planned hand-over works")`;
  if (result === "passed") must(await behind.tab.until(works, 60000), "the review knows what was proved");
  await behind.tab.ask(`document.getElementById("review-unknown").open = true`);
  await behind.tab.show("#review");
  await behind.tab.shot("review");
}

async function phone(tab) {
  for (const scheme of ["light", "dark"]) {
    await tab.look(...SIZES.phone, scheme);
    await tab.go("/");
    await tab.until(isLive, PAGE_MS_MAX);
    await tab.show("#act");
    await tab.narrow(`acting, ${scheme}`);
    await tab.contrast(`acting, ${scheme}`);
    await tab.shot(`phone-act-${scheme}`);
    await tab.go("/page/act?deed=switchover");
    await tab.narrow(`a question, ${scheme}`);
    await tab.contrast(`a question, ${scheme}`);
    await tab.shot(`phone-question-${scheme}`);
  }
  await tab.look(...SIZES.desk, "light");
}

async function lost(cluster, tab) {
  await tab.go("/");
  await tab.until(isLive, PAGE_MS_MAX);
  const before = tab.errors.length;
  await cluster.kill(HERE);
  must(await tab.until(`document.getElementById("link").textContent.startsWith("not connected since")`, PAGE_MS_MAX), "a lost node of its own is told");
  must(await tab.ask(`!document.getElementById("lost").hidden && document.title.startsWith("? ")`), "and that what is shown is old");
  await tab.shot("not-connected");
  cluster.start(HERE);
  must(await tab.until(isLive, TURN_MS_MAX), "and found again");
  must(await tab.ask(`document.getElementById("lost").hidden && !document.title.startsWith("? ")`), "and nothing said of it any more");
  must(await tab.until(`document.getElementById("door").textContent.includes("read-only") && !document.querySelector("#act form")`, PAGE_MS_MAX), "its login is over, as the page tells");
  // The browser's own words of the connection.
  tab.errors = tab.errors.filter((e, i) => i < before || !e.includes("ERR_"));
}

// Where the program stands, where the cluster lives, the first of its nine ports.
const cluster = new Cluster(option("--program"), option("--dir"), Number(option("--port") ?? 17432));
const browser = new Browser();
process.on("exit", () => { cluster.drop(); browser.child.kill("SIGKILL"); });
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));
try {
  await cluster.begin();
  const watching = await browser.tab(cluster.origin(HERE));
  await looks(watching);
  await refused(cluster, watching);
  const behind = await new Behind(cluster, HERE, watching).begin();
  await failover(cluster, watching, behind);
  await secret(browser, cluster);
  const acting = await browser.tab(cluster.origin(HERE));
  await acting.look(...SIZES.desk, "light");
  await wrongToken(cluster, acting);
  await switchover(cluster, acting, behind);
  await silent(cluster, behind);
  await paused(cluster, acting, behind);
  await rebuild(cluster, acting, behind);
  await drill(cluster, acting, behind);
  await phone(acting);
  await behind.end();
  watching.clean("watching");
  await lost(cluster, acting);
  acting.clean("acting");
} catch (error) {
  must(false, error.stack);
} finally {
  await cluster.end();
  await browser.stop();
}
judge();
// What went well leaves nothing; what did not leaves the logs of its nodes.
rmSync(cluster.dir, { recursive: true, force: true });
