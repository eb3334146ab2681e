//! What PostgreSQL's parse tree says of a string.

use serde_json::Value;

/// Facts, each found by a walk over the whole tree.
#[derive(Debug, Default)]
pub struct Seen {
    pub statements: usize,
    /// One statement, which is a query or shows the plan of one, and neither writes nor locks.
    pub query: bool,
    pub writes: bool,
    pub locks: bool,
    pub ends: bool,
    pub begins: bool,
    /// Begins a block that is not `READ ONLY`, or one a standby refuses.
    pub begins_writer: bool,
    pub rows: bool,
    pub setting: bool,
    pub temp: bool,
    pub listen: bool,
    pub hold: bool,
    pub prepared: bool,
    pub load: bool,
    pub anything: bool,
    /// Functions that are called when the string is executed: schema and name.
    pub functions: Vec<(String, String)>,
    /// Relations that are named.
    pub relations: Vec<String>,
    /// Name of the first statement's node.
    pub first: String,
}

/// Parses; `None` if PostgreSQL refuses the string.
pub fn see(sql: &str) -> Option<Seen> {
    if sql.contains('\0') {
        return None;
    }
    let parsed = pg_query::parse(sql, 0).ok()?;
    let tree = serde_json::to_value(&parsed.protobuf).ok()?;
    let statements = tree["stmts"].as_array()?;
    let mut seen = Seen { statements: statements.len(), ..Seen::default() };
    let mut queries = 0;
    for statement in statements {
        let Some((kind, body)) = node(&statement["stmt"]) else { continue };
        if seen.first.is_empty() {
            seen.first = kind.to_owned();
        }
        queries += usize::from(top(kind, body, &mut seen));
        if kind == "CreateFunctionStmt" && has_utility(&body["sql_body"]) {
            // The grammar takes it, the server refuses it.
            return None;
        }
        let stored = matches!(kind, "ViewStmt" | "CreateFunctionStmt" | "RuleStmt");
        let utility = !executes(kind);
        walk(kind, body, stored || utility, &mut seen);
    }
    seen.query = statements.len() == 1 && queries == 1 && !seen.writes && !seen.locks;
    Some(seen)
}

/// Whether the body of a function has statements that no body may have.
fn has_utility(value: &Value) -> bool {
    match value {
        Value::Object(map) => {
            let kind = node(value).map_or("", |(kind, _)| kind);
            let row =
                ["SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "ReturnStmt"];
            kind.ends_with("Stmt") && !row.contains(&kind) || map.values().any(has_utility)
        }
        Value::Array(list) => list.iter().any(has_utility),
        _ => false,
    }
}

/// The name and content of a `Node`.
pub fn node(value: &Value) -> Option<(&str, &Value)> {
    let (kind, body) = value.get("node")?.as_object()?.iter().next()?;
    // Some messages have a field of the same name, which holds a `Node` in turn.
    kind.starts_with(char::is_uppercase).then_some((kind, body))
}

/// Whether the expressions of a statement are evaluated by executing it.
fn executes(kind: &str) -> bool {
    matches!(
        kind,
        "SelectStmt"
            | "InsertStmt"
            | "UpdateStmt"
            | "DeleteStmt"
            | "MergeStmt"
            | "ExplainStmt"
            | "DeclareCursorStmt"
            | "CopyStmt"
            | "ExecuteStmt"
            | "CallStmt"
            | "CreateTableAsStmt"
            | "PrepareStmt"
    )
}

/// What the kind of a statement says; whether it is a query.
fn top(kind: &str, body: &Value, seen: &mut Seen) -> bool {
    match kind {
        "SelectStmt" => {
            seen.rows |= body["into_clause"].is_null();
            return true;
        }
        "ExplainStmt" => {
            seen.rows = true;
            if let Some((inner, inner_body)) = node(&body["query"]) {
                let rows = seen.rows;
                let query = top(inner, inner_body, seen);
                seen.rows = rows;
                return query;
            }
        }
        "VariableShowStmt" => seen.rows = true,
        "FetchStmt" => seen.rows |= !truth(&body["ismove"]),
        "ClosePortalStmt" => {}
        "CopyStmt" => copy(body, seen),
        "DeclareCursorStmt" => {
            let hold = body["options"].as_i64().unwrap_or(0) & 0x20 != 0;
            seen.hold |= hold;
            seen.writes |= hold;
        }
        "TransactionStmt" => transaction(body, seen),
        "VariableSetStmt" => variable_set(body, seen),
        _ => {
            seen.writes = true;
            other(kind, body, seen);
        }
    }
    false
}

fn copy(body: &Value, seen: &mut Seen) {
    let file = body["filename"].as_str().is_some_and(|f| !f.is_empty());
    if truth(&body["is_from"]) || truth(&body["is_program"]) || file {
        seen.writes = true;
    }
}

fn other(kind: &str, body: &Value, seen: &mut Seen) {
    match kind {
        "ListenStmt" => seen.listen = true,
        "PrepareStmt" | "ExecuteStmt" => seen.prepared = true,
        "LoadStmt" => seen.load = true,
        "DoStmt" => seen.anything = true,
        _ => {}
    }
    seen.rows |= matches!(kind, "ExecuteStmt" | "CallStmt");
    seen.rows |= body["returning_list"].as_array().is_some_and(|l| !l.is_empty());
    seen.rows |= !body["returning_clause"].is_null();
}

fn transaction(body: &Value, seen: &mut Seen) {
    use pg_query::protobuf::TransactionStmtKind as Kind;
    let kind = body["kind"].as_i64().unwrap_or(0) as i32;
    let Ok(kind) = Kind::try_from(kind) else { return };
    match kind {
        Kind::TransStmtBegin | Kind::TransStmtStart => {
            seen.begins = true;
            let modes = body["options"].to_string();
            let read_only = modes.contains("transaction_read_only")
                && last_read_only(&body["options"]) != Some(0);
            seen.begins_writer |= !read_only || modes.contains("serializable");
        }
        Kind::TransStmtCommit | Kind::TransStmtRollback => {
            seen.ends = true;
            seen.begins |= truth(&body["chain"]);
        }
        Kind::TransStmtPrepare
        | Kind::TransStmtCommitPrepared
        | Kind::TransStmtRollbackPrepared => {
            seen.ends = true;
            seen.writes = true;
        }
        _ => {}
    }
}

fn last_read_only(options: &Value) -> Option<i64> {
    let mut last = None;
    for option in options.as_array()? {
        let (_, body) = node(option)?;
        if body["defname"] == "transaction_read_only" {
            last = Some(integer(&body["arg"]).unwrap_or(0));
        }
    }
    last
}

/// The first whole number below.
fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Object(map) => match map.get("ival").and_then(Value::as_i64) {
            Some(found) => Some(found),
            None => map.values().find_map(integer),
        },
        Value::Array(list) => list.iter().find_map(integer),
        _ => None,
    }
}

fn variable_set(body: &Value, seen: &mut Seen) {
    let name = body["name"].as_str().unwrap_or("");
    match name {
        "TRANSACTION" | "TRANSACTION SNAPSHOT" => {
            let modes = body["args"].to_string();
            seen.writes |= name != "TRANSACTION"
                || modes.contains("serializable")
                || last_read_only(&body["args"]) == Some(0);
        }
        _ if truth(&body["is_local"]) => {}
        _ => {
            seen.setting = true;
            seen.writes = true;
        }
    }
}

/// Everything that matters at any depth. `stored`: functions are not called now.
fn walk(kind: &str, value: &Value, stored: bool, seen: &mut Seen) {
    match kind {
        "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt" => seen.writes = true,
        "FuncCall" if !stored => function(&value["funcname"], seen),
        "RangeVar" => relation(value, seen),
        "LockingClause" => seen.locks = true,
        _ => {}
    }
    let stored = stored && kind != "CreateTableAsStmt";
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match key.as_str() {
                    "node" => match node(value) {
                        Some((kind, body)) => walk(kind, body, stored, seen),
                        None => walk("", inner, stored, seen),
                    },
                    "relation" | "rel" | "view" | "sequence" => {
                        walk("RangeVar", inner, stored, seen)
                    }
                    "funccall" => walk("FuncCall", inner, stored, seen),
                    // Modifiers of types are constants, or the server refuses them.
                    "typmods" => {}
                    "into_clause" | "into" => into(inner, seen),
                    _ => walk("", inner, stored, seen),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| walk("", inner, stored, seen)),
        _ => {}
    }
}

fn into(clause: &Value, seen: &mut Seen) {
    if !clause.is_null() {
        seen.writes = true;
        walk("RangeVar", &clause["rel"], true, seen);
        if clause["rel"]["relpersistence"] == "t" {
            seen.temp = true;
        }
    }
}

fn relation(value: &Value, seen: &mut Seen) {
    if let Some(name) = value["relname"].as_str() {
        seen.relations.push(name.to_owned());
        let schema = value["schemaname"].as_str().unwrap_or("");
        if value["relpersistence"] == "t" {
            seen.temp = true;
        }
        if schema == "pg_temp" {
            seen.relations.push("pg_temp".to_owned());
        }
    }
}

fn function(name: &Value, seen: &mut Seen) {
    let parts: Vec<&str> = name
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|part| node(part)?.1["sval"].as_str())
        .collect();
    if let Some((last, qualifiers)) = parts.split_last() {
        seen.functions.push((qualifiers.join("."), (*last).to_owned()));
    }
}

fn truth(value: &Value) -> bool {
    value.as_bool().unwrap_or(false)
}

/// How many statements PostgreSQL's scanner sees, which needs no grammar; `None` if it sees an
/// unreadable token or parentheses that do not match.
pub fn scanned_statements(sql: &str) -> Option<usize> {
    use pg_query::protobuf::Token;
    if sql.contains('\0') {
        return None;
    }
    let (mut count, mut depth, mut empty) = (0, 0i32, true);
    for token in pg_query::scan(sql).ok()?.tokens {
        match Token::try_from(token.token).ok()? {
            Token::SqlComment | Token::CComment => continue,
            Token::Ascii40 => depth += 1,
            Token::Ascii41 => depth -= 1,
            Token::Ascii59 if depth == 0 => {
                empty = true;
                continue;
            }
            _ => {}
        }
        if depth < 0 {
            return None;
        }
        count += usize::from(empty);
        empty = false;
    }
    (depth == 0).then_some(count)
}
