// How far the page is behind what its node's API tells.
import { BEHIND_MS_MAX, must, sleep, within } from "./browser.mjs";
import { serving } from "./cluster.mjs";

const POLL_MS = 50;
const WORDS = ["gone", "silent", "writing", "following", "recovering", "cloning"];

// From when to when each fact held, as somebody saw it.
const spans = (seen, facts) => {
  const now = Date.now();
  for (const [fact, all] of Object.entries(seen)) if (!facts.has(fact)) all.at(-1).to ??= now;
  for (const fact of facts) {
    const all = seen[fact] ??= [];
    if (!all.length || all.at(-1).to) all.push({ from: now });
  }
};

// Notes by the API and in the page who writes, what each node does, and each event. Both clocks are
// this machine's.
export class Behind {
  constructor(cluster, name, tab) { Object.assign(this, { cluster, name, tab, told: {}, answers: 0, ends: false }); }
  async begin() {
    await this.tab.ask(`(() => {
      const spans = ${spans};
      window.shown = {};
      window.seeAll = () => {
        const facts = new Set();
        facts.add(document.querySelector(".sentence").lastChild.nodeValue.startsWith("Nobody") ? "nobody writes" : document.querySelector(".source .name").textContent + " writes");
        for (const card of document.querySelectorAll(".map .card[id]")) facts.add(card.id.slice(5) + " " + card.querySelectorAll(".tag")[1]?.lastChild.nodeValue);
        for (const li of document.querySelectorAll("#events .timeline li")) facts.add("event " + li.querySelector("b").textContent + " " + li.querySelector("time").title.slice(11, 23));
        spans(window.shown, facts);
      };
      window.seeAll();
      new MutationObserver(window.seeAll).observe(document.querySelector("main"), { subtree: true, childList: true, characterData: true, attributes: true });
    })()`);
    this.polls = this.poll();
    return this;
  }
  async poll() {
    for (; !this.ends; await sleep(POLL_MS)) {
      const [status, events] = await Promise.all([this.cluster.get(this.name, "/api/status"), this.cluster.get(this.name, "/api/events")]).catch(() => []);
      if (!status) continue;
      const facts = new Set();
      const writer = serving(status), lost = (node) => node.gone ? "gone" : node.heard_ms > 1000 ? "silent" : null;
      facts.add(writer && !lost(status.nodes[writer]) ? `${writer} writes` : "nobody writes");
      for (const [name, node] of Object.entries(status.nodes)) {
        const word = lost(node) ?? node.status?.doing;
        if (WORDS.includes(word)) facts.add(`${name} ${word}`);
      }
      for (const { kind, at } of events) facts.add(`event ${kind} ${new Date(at).toISOString().slice(11, 23)}`);
      spans(this.told, facts);
      this.answers++;
    }
  }
  // What begins from now on is what counts.
  async anew() {
    // The answer that is on its way may be older than that.
    for (const until = this.answers + 2; this.answers < until && !this.ends;) await sleep(POLL_MS);
    this.since = Date.now();
    await this.tab.ask(`window.shown = {}; window.seeAll()`);
  }
  // What lasted must have been shown; what was over within that time may have been missed.
  async report(what) {
    await sleep(BEHIND_MS_MAX);
    const shown = await this.tab.ask(`window.shown`), now = Date.now();
    const late = [];
    for (const [fact, all] of Object.entries(this.told)) {
      for (const { from, to = now } of all.filter((span) => span.from > this.since && span.from < now - BEHIND_MS_MAX)) {
        const seen = (shown[fact] ?? []).find((span) => (span.to ?? now) > from);
        if (seen && (seen.from < to || to - from >= BEHIND_MS_MAX)) late.push([Math.max(0, seen.from - from), fact]);
        else if (!seen && to - from >= BEHIND_MS_MAX) must(false, `${what}: ${fact} is shown`);
      }
    }
    late.sort(([a], [b]) => a - b);
    const [worst, fact] = late.at(-1) ?? [0, "nothing"];
    console.log(`     ${what}: ${late.length} changes, half of them shown within ${late[late.length >> 1]?.[0] ?? 0} ms`);
    within(worst, BEHIND_MS_MAX, `${what}: the page is behind the API by at most (${fact})`);
  }
  async end() {
    this.ends = true;
    await this.polls;
  }
}
