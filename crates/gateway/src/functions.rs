//! What is known of the functions of a database, from its catalog.

use std::collections::HashMap;

use quorate_wire::sql::{Functions, Knowledge};

use crate::server::Answer;

/// Functions outside `pg_catalog`, by name.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    functions: HashMap<Box<[u8]>, Knowledge>,
    /// Some trigger may leave something in the session of whoever writes.
    pub(crate) suspect_triggers: bool,
    /// Whether it was read.
    pub(crate) known: bool,
}

/// Reads them. A function is suspect when its source mentions anything that outlives a transaction,
/// or when its source is not readable SQL: its callers are looked after, or keep their server.
pub(crate) const QUERY: &str = "\
SELECT f.proname, pg_catalog.bool_or(f.provolatile = 'v'), pg_catalog.bool_or( \
l.lanname NOT IN ('sql', 'plpgsql', 'internal', 'c') OR f.prosrc ~* \
'(set_config|\\mset\\M|temp|advisory|listen|prepare|with\\s+hold|\\mload\\M|dblink)'), \
pg_catalog.bool_or(f.prorettype = 'pg_catalog.trigger'::pg_catalog.regtype) \
FROM pg_catalog.pg_proc f \
JOIN pg_catalog.pg_language l ON l.oid = f.prolang \
WHERE f.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace \
AND f.pronamespace <> 'information_schema'::pg_catalog.regnamespace \
GROUP BY f.proname LIMIT 50000";

impl Catalog {
    /// From the answer to [`QUERY`].
    pub(crate) fn read(answer: &Answer) -> Self {
        let mut catalog = Self { known: true, ..Self::default() };
        for row in 0..answer.rows.len() {
            let Some(name) = answer.column(row, 0) else { continue };
            let is = |column| answer.column(row, column) == Some(b"t");
            let (volatile, suspect, trigger) = (is(1), is(2), is(3));
            catalog.suspect_triggers |= suspect && trigger;
            let knowledge = match (suspect, volatile) {
                (true, _) => Knowledge::Suspect,
                (false, true) => Knowledge::Volatile,
                (false, false) => Knowledge::Stable,
            };
            catalog.functions.insert(name.into(), knowledge);
        }
        catalog
    }
}

impl Functions for Catalog {
    fn knowledge(&self, name: &[u8]) -> Knowledge {
        self.functions.get(name).copied().unwrap_or(Knowledge::Unknown)
    }
}
