// A list of checks that prints what became of each, for people and for quorate-drivers: a line is
// `ok <name>` or `not ok <name> -- <why>`.
"use strict";

const assert = require("node:assert");
const { setTimeout: pause } = require("node:timers/promises");

const checks = [];

/** Adds a check. They run in the order in which they are added. */
function check(name, body) {
  checks.push({ name, body });
}

/** Runs all of them; the process ends with 1 when one failed. */
async function run() {
  for (const { name, body } of checks) {
    try {
      await body();
      console.log(`ok ${name}`);
    } catch (error) {
      process.exitCode = 1;
      const at = /\w+\.js:\d+(?=:\d+\)?$)/m.exec(
        (error.stack || "").split("\n").filter((line) => line.includes(__dirname) && !line.includes(__filename)).join("\n"),
      );
      const why = `${error.code ?? ""} ${error.message}`.replace(/\s+/g, " ").trim();
      console.log(`not ok ${name} -- ${at ? at[0] : "?"}: ${why}`);
    }
  }
}

/** Fails unless this promise is rejected with an error whose code or text has these words. */
async function refuses(promise, words) {
  await assert.rejects(promise, (error) => {
    assert.ok(`${error.code} ${error.message}`.includes(words), `${error.code} ${error.message}, not ${words}`);
    return true;
  });
}

/** Waits until a condition gives something, for that. */
async function until(condition, what, within = 30_000) {
  const end = Date.now() + within;
  for (;;) {
    const found = await condition();
    if (found) return found;
    assert.ok(Date.now() < end, `waited ${within} ms in vain until ${what}`);
    await pause(20);
  }
}

module.exports = { check, run, refuses, until };
