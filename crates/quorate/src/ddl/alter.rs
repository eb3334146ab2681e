//! ALTER …: mostly of tables.

use super::words::{Part, Words};
use super::{Effect, Lock, Weight, unknown};

/// Functions whose value is the same for all rows of a statement: no rewrite.
const STABLE: [&str; 8] = [
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "current_date",
    "current_timestamp",
    "current_setting",
    "numeric",
    "varchar",
];

pub(super) fn effect(words: &Words) -> Effect {
    if words.begins(&["alter", "system"]) {
        return Effect {
            weight: Weight::Heavy,
            instead: "`quorate config edit`, [postgresql]: for every node, checked and reversible",
            ..Effect::HARMLESS
        };
    }
    if words.begins(&["alter", "type"]) {
        return match words.has("attribute") {
            true => unknown(),
            false => Effect {
                instead: "a new value of an enum can be used only after the transaction",
                weight: Weight::Moment,
                ..Effect::HARMLESS
            },
        };
    }
    if words.begins_any(&[&["alter", "index"], &["alter", "sequence"], &["alter", "view"]]) {
        return Effect::moment(Lock::All);
    }
    if words.begins_any(&[
        &["alter", "role"],
        &["alter", "user"],
        &["alter", "database"],
        &["alter", "function"],
        &["alter", "default"],
        &["alter", "publication"],
        &["alter", "schema"],
    ]) {
        return Effect::HARMLESS;
    }
    if !words.begins(&["alter", "table"]) {
        return unknown();
    }
    table(words)
}

fn table(words: &Words) -> Effect {
    let mut at = 2;
    for skipped in ["if", "exists", "only"] {
        if words.at(at) == skipped {
            at += 1;
        }
    }
    let actions = words.parts(words.after_name(at));
    // The strongest lock of all is taken for all, and the heaviest counts.
    let mut effects = actions.iter().map(action);
    let Some(first) = effects.next() else { return unknown() };
    effects.fold(first, |all, one| {
        let lock = all.lock.max(one.lock);
        let log = all.log || one.log;
        let heavier = if one.weight > all.weight { one } else { all };
        Effect { lock, log, ..heavier }
    })
}

fn action(part: &Part<'_>) -> Effect {
    const SENT: &str =
        "columns are not sent to subscribers: add it there first, drop it there last";
    const CONSTRAINT: [&str; 6] =
        ["constraint", "primary", "unique", "check", "foreign", "exclude"];
    let adds_constraint = CONSTRAINT.iter().any(|word| part.begins(&["add", word]));
    if adds_constraint {
        return constraint(part);
    }
    if part.begins(&["add"]) {
        return column(part).subscribers(SENT);
    }
    if part.begins(&["validate", "constraint"]) {
        return Effect {
            weight: Weight::Moment,
            lock: Lock::Shape,
            work: "reads the whole table",
            ..Effect::HARMLESS
        };
    }
    if part.begins(&["drop"]) {
        return Effect::moment(Lock::All).subscribers(SENT);
    }
    if part.begins(&["rename"]) {
        return Effect {
            instead: "applications of the old name fail at that moment: a view with the old name, or \
                      a new column beside the old one",
            ..Effect::moment(Lock::All)
        }
        .subscribers("tables and columns are found by name there: rename them at the same time");
    }
    if part.begins(&["alter"]) {
        return altered_column(part);
    }
    if part.begins(&["set", "logged"]) || part.begins(&["set", "unlogged"]) {
        return Effect::rewrite(Lock::All, "rewrites the table and its indexes", "");
    }
    if part.begins(&["set", "tablespace"]) || part.begins(&["set", "access"]) {
        return Effect::rewrite(
            Lock::All,
            "rewrites the table",
            "pg_repack, which does it beside the work",
        );
    }
    if part.begins(&["attach", "partition"]) {
        return Effect::heavy(
            Lock::Shape,
            "reads the whole partition under ACCESS EXCLUSIVE of it, unless a constraint of its own \
             proves its bounds",
            "ADD CONSTRAINT … CHECK (…) NOT VALID and VALIDATE on it first",
        );
    }
    if part.begins(&["detach", "partition"]) {
        return match part.has("concurrently") {
            true => Effect { lock: Lock::Shape, ..Effect::moment(Lock::Shape) },
            false => {
                Effect { instead: "DETACH PARTITION … CONCURRENTLY", ..Effect::moment(Lock::All) }
            }
        };
    }
    if part.begins(&["set"]) || part.begins(&["reset"]) {
        return Effect { lock: Lock::Shape, weight: Weight::Moment, ..Effect::HARMLESS };
    }
    if part.begins(&["enable"]) || part.begins(&["disable"]) {
        return match part.has("trigger") {
            true => Effect::moment(Lock::WritesAndSelf),
            false => Effect::moment(Lock::All),
        };
    }
    if part.begins(&["replica", "identity"]) || part.begins(&["owner"]) {
        return Effect::moment(Lock::All);
    }
    unknown()
}

fn constraint(part: &Part<'_>) -> Effect {
    if part.has("using") && part.has("index") {
        return Effect::moment(Lock::All);
    }
    let unproved = part.has_run(&["not", "valid"]);
    if part.has("foreign") {
        return match unproved {
            true => Effect::moment(Lock::WritesAndSelf),
            false => Effect::heavy(
                Lock::WritesAndSelf,
                "reads both tables; writes of both wait",
                "ADD CONSTRAINT … NOT VALID, then VALIDATE CONSTRAINT",
            ),
        };
    }
    if part.has("check") {
        return match unproved {
            true => Effect::moment(Lock::All),
            false => Effect::heavy(
                Lock::All,
                "reads the whole table",
                "ADD CONSTRAINT … NOT VALID, then VALIDATE CONSTRAINT",
            ),
        };
    }
    Effect::rewrite(
        Lock::All,
        "reads the whole table and writes an index",
        "CREATE UNIQUE INDEX CONCURRENTLY, then ADD CONSTRAINT … USING INDEX",
    )
}

fn column(part: &Part<'_>) -> Effect {
    const NEXT: [&str; 5] = ["serial", "bigserial", "smallserial", "serial4", "serial8"];
    let counts = NEXT.iter().any(|word| part.has(word)) || part.has("identity");
    let stored = part.has("generated") && part.has("stored");
    const ENDS: [&str; 7] =
        ["check", "references", "constraint", "not", "unique", "primary", "collate"];
    let default = part.behind("default", &ENDS);
    let volatile = default.is_some_and(|default| default.calls_other_than(&STABLE));
    if counts || stored || volatile {
        return Effect::rewrite(
            Lock::All,
            "rewrites the table: each row gets a value of its own",
            "add it without a default, SET DEFAULT for new rows, fill old ones in portions",
        );
    }
    if part.has("unique") || part.has_run(&["primary", "key"]) {
        return Effect::rewrite(
            Lock::All,
            "reads the whole table and writes an index",
            "add the column, then CREATE UNIQUE INDEX CONCURRENTLY and ADD CONSTRAINT … USING INDEX",
        );
    }
    if part.has("references") {
        return Effect::moment(Lock::All);
    }
    if part.has_run(&["not", "null"]) && !part.has("default") {
        return Effect {
            instead: "fails unless the table is empty: give a default",
            ..Effect::moment(Lock::All)
        };
    }
    Effect::moment(Lock::All)
}

fn altered_column(part: &Part<'_>) -> Effect {
    if part.has("type") {
        return Effect::rewrite(
            Lock::All,
            "rewrites the table and its indexes, unless the new type only has more room (varchar, \
             numeric)",
            "a new column beside the old one, filled in portions",
        )
        .subscribers("the subscriber's column keeps its type: change it there first");
    }
    if part.has_run(&["set", "not", "null"]) {
        return Effect::heavy(
            Lock::All,
            "reads the whole table, unless a valid CHECK (… IS NOT NULL) proves it",
            "ADD CONSTRAINT … CHECK (… IS NOT NULL) NOT VALID, VALIDATE CONSTRAINT, then this",
        );
    }
    if part.has("statistics") || part.has("storage") || part.has("compression") {
        return Effect { lock: Lock::Shape, weight: Weight::Moment, ..Effect::HARMLESS };
    }
    Effect::moment(Lock::All)
}
