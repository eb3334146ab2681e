//! What is measured with pgbench.

/// One way to use pgbench.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// Name, for `--only` and the verdicts.
    pub(crate) name: &'static str,
    /// pgbench's own options.
    pub(crate) args: &'static [&'static str],
    /// Clients at once.
    pub(crate) clients: usize,
    /// What pgbench counts as a transaction.
    pub(crate) unit: &'static str,
    /// Whether it changes the tables.
    pub(crate) writes: bool,
}

const fn select(name: &'static str, args: &'static [&'static str], clients: usize) -> Case {
    Case { name, args, clients, unit: "query", writes: false }
}

const fn writes(name: &'static str, args: &'static [&'static str]) -> Case {
    Case { name, args, clients: 16, unit: "transaction", writes: true }
}

const SIMPLE: &[&str] = &["-S", "-M", "simple"];
const EXTENDED: &[&str] = &["-S", "-M", "extended"];
const PREPARED: &[&str] = &["-S", "-M", "prepared"];

/// With and without a proxy.
pub(crate) const CASES: [Case; 12] = [
    select("simple-1", SIMPLE, 1),
    select("extended-1", EXTENDED, 1),
    select("prepared-1", PREPARED, 1),
    select("simple-16", SIMPLE, 16),
    select("extended-16", EXTENDED, 16),
    select("prepared-16", PREPARED, 16),
    select("simple-64", SIMPLE, 64),
    select("extended-64", EXTENDED, 64),
    select("prepared-64", PREPARED, 64),
    writes("tpcb-simple-16", &["-M", "simple"]),
    writes("tpcb-prepared-16", &["-M", "prepared"]),
    Case { unit: "connection", ..select("connect-16", &["-C", "-S"], 16) },
];

/// With standbys: splitting on and off.
pub(crate) const SPLIT_CASES: [Case; 5] = [
    select("split-simple-16", SIMPLE, 16),
    select("split-extended-16", EXTENDED, 16),
    select("split-prepared-16", PREPARED, 16),
    writes("split-mix-simple-16", &["-b", "tpcb-like@1", "-b", "select-only@9", "-M", "simple"]),
    writes(
        "split-mix-prepared-16",
        &["-b", "tpcb-like@1", "-b", "select-only@9", "-M", "prepared"],
    ),
];
