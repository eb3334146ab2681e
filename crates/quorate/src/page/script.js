// Puts what changed in its place while the page is open. Without this script the page is complete, and
// is loaded again from time to time.
"use strict";
(() => {
  const body = document.body;
  // A question is left as it was come to.
  const leave = document.getElementById("leave");
  if (leave) document.addEventListener("keydown", (event) => { if (event.key === "Escape") leave.click(); });
  // What was just done is not done again by a reload.
  if (location.search.includes("done=")) history.replaceState(null, "", location.pathname + location.hash);
  const link = document.getElementById("link"), lost = document.getElementById("lost");
  if (!body.dataset.live || !window.EventSource || !link) return;
  // A stream says something at least every two seconds.
  const SILENT_MS = 6000, WAIT_LEAST_MS = 500, WAIT_MOST_MS = 10000;
  const title = document.title.replace(/^[!✗] /, "");
  let source, heard = Date.now(), wait = WAIT_LEAST_MS, lostAt = null, again = null;

  // What differs is put right in place, so that focus, scrolling and what is unfolded stay.
  function adapt(old, now) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== now.nodeValue) old.nodeValue = now.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) {
      const kept = name === "open" && old.nodeName === "DETAILS";
      if (!now.hasAttribute(name) && !kept) old.removeAttribute(name);
    }
    for (const { name, value } of now.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    const before = [...old.childNodes], after = [...now.childNodes];
    after.forEach((child, i) => {
      const there = before[i];
      if (!there) old.append(child);
      else if (there.nodeType !== child.nodeType || there.nodeName !== child.nodeName || there.id !== child.id) there.replaceWith(child);
      else if (!there.isEqualNode(child)) adapt(there, child);
    });
    before.slice(after.length).forEach((child) => child.remove());
  }

  function place(data) {
    const end = data.indexOf("\n");
    const [id, mark] = data.slice(0, end).split(" ");
    const live = document.querySelector(`#${CSS.escape(id)} > .live`);
    if (!live) return;
    const now = live.cloneNode(false);
    now.innerHTML = data.slice(end + 1);
    now.dataset.mark = mark;
    adapt(live, now);
    if (id === "now") sign();
  }

  function sign() {
    const { classList } = document.querySelector("#now .verdict");
    document.title = (classList.contains("critical") ? "✗ " : classList.contains("warning") ? "! " : "") + title;
  }

  function hear() {
    heard = Date.now();
    wait = WAIT_LEAST_MS;
    if (lostAt) sign();
    lostAt = null;
    body.classList.remove("stale");
    lost.hidden = true;
    link.classList.remove("lost");
    if (link.textContent !== "live") link.textContent = "live";
  }

  function lose() {
    if (source) source.close();
    source = null;
    lostAt = lostAt || new Date(heard);
    body.classList.add("stale");
    lost.hidden = false;
    document.title = "? " + title;
    link.classList.add("lost");
    const text = `not connected since ${lostAt.toISOString().slice(11, 19)}Z`;
    if (link.textContent !== text) link.textContent = text;
    clearTimeout(again);
    again = setTimeout(connect, wait);
    wait = Math.min(wait * 2, WAIT_MOST_MS);
  }

  function connect() {
    const have = [...document.querySelectorAll("[id] > .live")].map((e) => `${e.parentNode.id}:${e.dataset.mark}`);
    heard = lostAt ? heard : Date.now();
    const opened = Date.now();
    source = new EventSource(`/page/live?over=${body.dataset.live}&have=${have.join(",")}`);
    source.addEventListener("section", (event) => { hear(); place(event.data); });
    source.addEventListener("alive", hear);
    source.onerror = lose;
    clearInterval(connect.watch);
    connect.watch = setInterval(() => {
      if (source && Date.now() - Math.max(heard, opened) > SILENT_MS) lose();
    }, 1000);
  }

  window.addEventListener("pageshow", (event) => { if (event.persisted) lose(); });
  connect();
})();
