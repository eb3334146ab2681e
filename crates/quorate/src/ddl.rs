//! What a migration does while it runs: which locks it takes, what it reads and rewrites, and what that
//! means for replicas and subscribers. From its text alone, and for PostgreSQL 15 to 18: the tables'
//! sizes are not known, so "for as long as it takes" is as exact as it gets.
//!
//! Locks and rewrites are those of PostgreSQL's documentation (chapters "Explicit Locking" and "ALTER
//! TABLE"); what is not known is said to be unknown, never to be harmless.

mod alter;
mod words;

use std::time::Duration;

use quorate_core::NodeId;
use quorate_core::document::Document;
use quorate_core::words::seconds;
use quorate_wire::sql;
use serde::Serialize;

use words::Words;

/// How much others notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// Nothing to speak of.
    Harmless,
    /// A strong lock for a moment: dangerous only where it waits for somebody, as others wait behind
    /// it then.
    Moment,
    /// Not known.
    Unknown,
    /// Others wait for as long as it takes, or much log is written.
    Heavy,
}

/// What one statement does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The line that it begins in, from 1.
    pub line: usize,
    /// Its beginning.
    pub statement: String,
    /// How much others notice.
    pub weight: Weight,
    /// What it locks, and who waits.
    pub locks: String,
    /// What it reads or rewrites meanwhile; empty: nothing.
    pub work: String,
    /// What replicas notice.
    pub replicas: String,
    /// What logical subscribers notice; empty: nothing.
    pub subscribers: String,
    /// What to do instead, or before; empty: nothing.
    pub instead: String,
}

/// What is known of a statement before it is put into words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Effect {
    weight: Weight,
    /// PostgreSQL's lock, and on what.
    lock: Lock,
    work: &'static str,
    /// Much log comes of it.
    log: bool,
    subscribers: &'static str,
    instead: &'static str,
}

/// Locks that others notice, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lock {
    /// None of a table.
    None,
    /// `ROW EXCLUSIVE`: as every write.
    Rows,
    /// `SHARE UPDATE EXCLUSIVE`: no other change of the table's shape, no VACUUM.
    Shape,
    /// `SHARE`: nobody writes.
    Writes,
    /// `SHARE ROW EXCLUSIVE`: nobody writes, and no second one.
    WritesAndSelf,
    /// `EXCLUSIVE`: reads only.
    AllButReads,
    /// `ACCESS EXCLUSIVE`: nobody does anything with the table, not even on replicas.
    All,
    /// Not known.
    Unknown,
}

impl Lock {
    fn words(self) -> &'static str {
        match self {
            Self::None => "no table",
            Self::Rows => "rows, as every write does (ROW EXCLUSIVE)",
            Self::Shape => "the table's shape (SHARE UPDATE EXCLUSIVE): reads and writes go on",
            Self::Writes => "writes of the table (SHARE): reads go on",
            Self::WritesAndSelf => "writes of the table (SHARE ROW EXCLUSIVE): reads go on",
            Self::AllButReads => "all but reads of the table (EXCLUSIVE)",
            Self::All => "everything (ACCESS EXCLUSIVE): reads of the table wait, too",
            Self::Unknown => "not known",
        }
    }
}

impl Effect {
    const HARMLESS: Self = Self {
        weight: Weight::Harmless,
        lock: Lock::None,
        work: "",
        log: false,
        subscribers: "",
        instead: "",
    };

    /// A strong lock for a moment.
    const fn moment(lock: Lock) -> Self {
        Self {
            weight: Weight::Moment,
            lock,
            instead: "SET lock_timeout = '2s' before it, and try again when it expires",
            ..Self::HARMLESS
        }
    }

    /// Something that takes long under a lock.
    const fn heavy(lock: Lock, work: &'static str, instead: &'static str) -> Self {
        Self { weight: Weight::Heavy, lock, work, instead, ..Self::HARMLESS }
    }

    /// The same, and what it makes anew is written to the log.
    const fn rewrite(lock: Lock, work: &'static str, instead: &'static str) -> Self {
        Self { log: true, ..Self::heavy(lock, work, instead) }
    }

    const fn subscribers(self, subscribers: &'static str) -> Self {
        Self { subscribers, ..self }
    }
}

/// Why a text cannot be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// PostgreSQL would refuse it.
    #[error("a string, a quoted name or a comment has no end: PostgreSQL would refuse this text")]
    Unended,
}

/// Checks a migration. With the cluster document it is said which replicas suffer how.
///
/// # Errors
/// When the text is none that PostgreSQL reads.
pub fn check(text: &str, document: Option<&Document>) -> Result<Vec<Finding>, Unreadable> {
    let statements = sql::statements(text.as_bytes()).ok_or(Unreadable::Unended)?;
    let mut block = Block::default();
    let findings = statements.iter().map(|statement| {
        let words = Words::of(text.as_bytes(), statement);
        let effect = effect(&words);
        let late = block.takes(&words, &effect);
        let start = statement.span.start as usize;
        Finding {
            line: text[..start].matches('\n').count() + 1,
            statement: beginning(text, statement.span.start as usize, statement.span.end as usize),
            weight: effect.weight,
            locks: format!("locks {}{late}", effect.lock.words()),
            work: effect.work.to_owned(),
            replicas: replicas(&effect, document),
            subscribers: effect.subscribers.to_owned(),
            instead: instead(&effect, block.has_timeout),
        }
    });
    Ok(findings.collect())
}

/// What came before in the text.
#[derive(Debug, Default)]
struct Block {
    open: bool,
    /// The strongest lock that is held until the block ends.
    holds: Option<Lock>,
    has_timeout: bool,
}

impl Block {
    /// Takes a statement in; what it makes of the locks before it.
    fn takes(&mut self, words: &Words, effect: &Effect) -> &'static str {
        if words.begins(&["set"]) && words.has("lock_timeout") {
            self.has_timeout = true;
        }
        if words.begins(&["begin"]) || words.begins(&["start", "transaction"]) {
            *self = Self { open: true, holds: None, ..*self };
            return "";
        }
        if words.begins(&["commit"]) || words.begins(&["end"]) || words.begins(&["rollback"]) {
            *self = Self { open: false, holds: None, ..*self };
            return "";
        }
        let held = self.holds.is_some_and(|lock| lock >= Lock::Writes);
        if self.open && effect.lock >= Lock::Writes {
            self.holds = self.holds.max(Some(effect.lock));
        }
        match (held, effect.weight) {
            (true, Weight::Heavy) => {
                "; locks of statements before it in this transaction are held as long"
            }
            _ => "",
        }
    }
}

fn instead(effect: &Effect, has_timeout: bool) -> String {
    let strong = effect.lock >= Lock::Writes && effect.lock != Lock::Unknown;
    match (effect.instead, has_timeout) {
        ("", false) if strong => "SET lock_timeout before it".to_owned(),
        (text, true) if text.starts_with("SET lock_timeout") => String::new(),
        (text, _) => text.to_owned(),
    }
}

/// What replicas notice of locks and of log.
fn replicas(effect: &Effect, document: Option<&Document>) -> String {
    let mut words = Vec::new();
    if effect.lock == Lock::All {
        words.push(conflicts(document));
    }
    if effect.log {
        words.push(
            "what it writes anew goes to every copy as log: they are late until they replayed it"
                .to_owned(),
        );
    }
    if effect.weight == Weight::Unknown {
        words.push("not known".to_owned());
    }
    if words.is_empty() { "nothing".to_owned() } else { words.join("; ") }
}

/// The lock is replayed, and waits for queries on each replica.
fn conflicts(document: Option<&Document>) -> String {
    let Some(document) = document.filter(|d| !d.nodes.is_empty()) else {
        return "the lock is replayed: queries of the table there are cancelled, after a second on \
                copies of role ha"
            .to_owned();
    };
    let of = |node: &NodeId| {
        let spec = document.node(*node);
        let role = spec.role;
        match spec.preset().conflict_delay_ms {
            Some(ms) => {
                let ms = seconds(Duration::from_millis(ms));
                format!("on {node} ({role}) queries of the table hold up replay for {ms}, then end")
            }
            None => {
                format!("on {node} ({role}) queries of the table hold up replay until they end")
            }
        }
    };
    let each: Vec<String> = document.nodes.keys().map(of).collect();
    format!("the lock is replayed: {}; on all others for a second", each.join(", "))
}

/// The first words of a statement.
fn beginning(text: &str, start: usize, end: usize) -> String {
    const MOST: usize = 70;
    let words: Vec<&str> = text[start..end].split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(MOST) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

fn effect(words: &Words) -> Effect {
    match words.first() {
        "alter" => alter::effect(words),
        "create" => create(words),
        "drop" => drop_effect(words),
        "truncate" => Effect::moment(Lock::All)
            .subscribers("the truncation is sent to subscribers that did not leave it out"),
        "reindex" if words.has("concurrently") => Effect {
            log: true,
            work: "builds the index anew beside the old one",
            weight: Weight::Moment,
            lock: Lock::Shape,
            ..Effect::HARMLESS
        },
        "reindex" => Effect::rewrite(
            Lock::Writes,
            "builds indexes anew; queries that would use them wait",
            "REINDEX … CONCURRENTLY",
        ),
        "cluster" => Effect::rewrite(
            Lock::All,
            "rewrites the table and all of its indexes",
            "pg_repack or pg_squeeze, which do it beside the work",
        ),
        "vacuum" if words.has("full") => Effect::rewrite(
            Lock::All,
            "rewrites the table and all of its indexes",
            "VACUUM, or pg_repack, which does it beside the work",
        ),
        "vacuum" | "analyze" => Effect { lock: Lock::Shape, ..Effect::HARMLESS },
        "refresh" if words.has("concurrently") => {
            Effect::rewrite(Lock::AllButReads, "computes the view and writes what differs", "")
        }
        "refresh" => Effect::rewrite(
            Lock::All,
            "computes the view anew",
            "REFRESH MATERIALIZED VIEW CONCURRENTLY, with a unique index on it",
        ),
        "lock" => Effect::heavy(
            Lock::All,
            "holds the lock until the transaction ends",
            "a weaker mode, and a short transaction",
        ),
        "update" | "delete" if !words.has("where") => Effect::rewrite(
            Lock::Rows,
            "writes every row, and keeps their old versions until it ends",
            "portions of some thousand rows, each a transaction of its own, that stop while a \
             replica is late",
        ),
        "update" | "delete" | "insert" | "merge" | "copy" => Effect {
            lock: Lock::Rows,
            weight: Weight::Moment,
            work: "writes as many rows as it touches",
            instead: "portions, when they are many",
            ..Effect::HARMLESS
        },
        "set" | "reset" | "begin" | "start" | "commit" | "end" | "rollback" | "select"
        | "comment" | "grant" | "revoke" | "savepoint" | "release" | "values" | "show" => {
            Effect::HARMLESS
        }
        _ => unknown(),
    }
}

fn unknown() -> Effect {
    Effect {
        weight: Weight::Unknown,
        lock: Lock::Unknown,
        instead: "try it on a copy (`quorate` role delayed, or a restored backup), and look at pg_locks",
        ..Effect::HARMLESS
    }
}

fn create(words: &Words) -> Effect {
    if words.begins_any(&[&["create", "index"], &["create", "unique", "index"]]) {
        return match words.has("concurrently") {
            true => Effect {
                weight: Weight::Moment,
                lock: Lock::Shape,
                work: "reads the table twice, and waits for every older transaction",
                log: true,
                instead: "not in a transaction block; an index that failed is left as invalid: drop \
                          it, and try again",
                ..Effect::HARMLESS
            },
            false => Effect::rewrite(
                Lock::Writes,
                "reads the whole table and writes the index",
                "CREATE INDEX CONCURRENTLY",
            ),
        };
    }
    if words.begins_any(&[&["create", "trigger"], &["create", "or", "replace", "trigger"]]) {
        return Effect::moment(Lock::WritesAndSelf);
    }
    if words.begins_any(&[&["create", "rule"], &["create", "policy"]]) {
        return Effect::moment(Lock::All);
    }
    if words.begins(&["create", "extension"]) {
        return Effect {
            weight: Weight::Moment,
            instead: "its files must be installed on every node first: replicas run it, too",
            subscribers: "extensions are not sent to subscribers",
            ..Effect::HARMLESS
        };
    }
    if words.begins_any(&[&["create", "table"], &["create", "unlogged", "table"]]) {
        let fills = words.has("as") && words.has("select");
        let refers = words.has("references");
        return match (fills, refers, words.has("unlogged")) {
            (_, _, true) => Effect {
                weight: Weight::Moment,
                instead: "unlogged tables are empty on every replica, and after a failover",
                ..Effect::HARMLESS
            },
            (true, _, _) => Effect { log: true, weight: Weight::Moment, ..Effect::HARMLESS },
            (_, true, _) => Effect::moment(Lock::WritesAndSelf).subscribers(
                "new tables are not sent before the publication has them and the \
                              subscription is refreshed",
            ),
            _ => Effect::HARMLESS.subscribers(
                "new tables are not sent before the publication has them and the subscription is \
                 refreshed",
            ),
        };
    }
    if words.begins_any(&[
        &["create", "view"],
        &["create", "or", "replace"],
        &["create", "function"],
        &["create", "procedure"],
        &["create", "schema"],
        &["create", "sequence"],
        &["create", "type"],
        &["create", "domain"],
        &["create", "role"],
        &["create", "user"],
        &["create", "temporary"],
        &["create", "temp"],
        &["create", "aggregate"],
        &["create", "collation"],
        &["create", "statistics"],
        &["create", "publication"],
    ]) {
        return Effect::HARMLESS;
    }
    unknown()
}

fn drop_effect(words: &Words) -> Effect {
    if words.begins(&["drop", "index"]) {
        return match words.has("concurrently") {
            true => Effect {
                weight: Weight::Moment,
                lock: Lock::Shape,
                work: "waits for every transaction that may use it",
                ..Effect::HARMLESS
            },
            false => Effect { instead: "DROP INDEX CONCURRENTLY", ..Effect::moment(Lock::All) },
        };
    }
    if words.begins(&["drop", "table"]) {
        return Effect {
            instead: "is it backed up? A delayed copy still has it for its delay",
            ..Effect::moment(Lock::All)
        }
        .subscribers("the subscriber's table stays");
    }
    if words.begins_any(&[
        &["drop", "view"],
        &["drop", "materialized"],
        &["drop", "trigger"],
        &["drop", "policy"],
        &["drop", "rule"],
        &["drop", "sequence"],
        &["drop", "schema"],
        &["drop", "owned"],
    ]) {
        return Effect::moment(Lock::All);
    }
    if words.begins_any(&[
        &["drop", "function"],
        &["drop", "procedure"],
        &["drop", "role"],
        &["drop", "user"],
        &["drop", "statistics"],
        &["drop", "aggregate"],
    ]) {
        return Effect::HARMLESS;
    }
    if words.begins_any(&[&["drop", "publication"], &["drop", "subscription"]]) {
        return Effect::HARMLESS.subscribers("subscribers get nothing any more");
    }
    unknown()
}

#[cfg(test)]
mod tests;
