//! What is known of the functions of a database, from its catalog.

use foldhash::HashMap;
use quorate_wire::sql::{Functions, Knowledge};

use crate::server::Answer;

/// Functions outside `pg_catalog`, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalog {
    functions: HashMap<Box<[u8]>, Knowledge>,
    /// Some function may leave something in the session: also of whoever calls another that calls
    /// it, or writes to a table whose triggers do.
    pub(crate) suspect: bool,
    /// The same of a default value.
    pub(crate) suspect_defaults: bool,
    /// The same of a view.
    pub(crate) suspect_views: bool,
    /// What looks like a read may write: a view, an operator, a cast, a check of a domain, a policy,
    /// an aggregate, or `row.function`, behind which is a volatile function.
    pub(crate) hidden_writes: bool,
    /// Counts readings that found something else.
    pub(crate) version: u64,
    /// Whether it was read.
    pub(crate) known: bool,
}

/// Reads them. A function is suspect when its source mentions anything that outlives a transaction,
/// or when its source is not readable SQL: its callers are looked after, or keep their server.
pub(crate) const QUERY: &str = "\
SELECT f.proname, pg_catalog.bool_or(f.provolatile = 'v'), pg_catalog.bool_or( \
l.lanname NOT IN ('sql', 'plpgsql', 'internal', 'c') OR f.prosrc ~* \
'(set_config|setseed|pg_temp|advisory|with\\s+hold|dblink|\\mtemp(orary)?\\M|\
(^|;|''|begin|then|else|loop)\\s*(set|reset|load|listen|prepare|discard)\\s)') \
FROM pg_catalog.pg_proc f \
JOIN pg_catalog.pg_language l ON l.oid = f.prolang \
WHERE f.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace \
AND f.pronamespace <> 'information_schema'::pg_catalog.regnamespace \
GROUP BY f.proname LIMIT 50000";

/// Asks for what else runs code: default values and views. Those of functions that are suspect are
/// taken for suspect, too, whatever they say.
pub(crate) const HIDDEN: &str = "\
SELECT EXISTS (SELECT FROM pg_catalog.pg_attrdef WHERE \
pg_catalog.pg_get_expr(adbin, adrelid) ~* '(set_config|setseed|advisory)'), \
EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relkind = 'v' AND \
c.relnamespace <> 'pg_catalog'::pg_catalog.regnamespace AND \
c.relnamespace <> 'information_schema'::pg_catalog.regnamespace AND \
pg_catalog.pg_get_viewdef(c.oid) ~* '(set_config|setseed|advisory)'), \
EXISTS (SELECT FROM pg_catalog.pg_proc f WHERE f.provolatile = 'v' AND f.prokind IN ('f', 'w') AND \
f.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace AND \
f.pronamespace <> 'information_schema'::pg_catalog.regnamespace AND \
f.prorettype NOT IN ('trigger'::pg_catalog.regtype, 'event_trigger'::pg_catalog.regtype) AND \
(EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE \
d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.refobjid = f.oid AND \
d.classid IN ('pg_catalog.pg_rewrite'::pg_catalog.regclass, \
'pg_catalog.pg_operator'::pg_catalog.regclass, 'pg_catalog.pg_cast'::pg_catalog.regclass, \
'pg_catalog.pg_constraint'::pg_catalog.regclass, 'pg_catalog.pg_policy'::pg_catalog.regclass, \
'pg_catalog.pg_proc'::pg_catalog.regclass)) OR \
f.pronargs = 1 AND EXISTS (SELECT FROM pg_catalog.pg_type t \
WHERE t.oid = f.proargtypes[0] AND t.typtype IN ('c', 'p'))))";

impl Catalog {
    /// From the answers to [`QUERY`] and [`HIDDEN`].
    pub(crate) fn read(answer: &Answer, hidden: &Answer) -> Self {
        let is = |column| hidden.column(0, column) == Some(b"t");
        let mut catalog = Self {
            known: true,
            suspect_defaults: is(0),
            suspect_views: is(1),
            hidden_writes: is(2),
            ..Self::default()
        };
        for row in 0..answer.rows.len() {
            let Some(name) = answer.column(row, 0) else { continue };
            let is = |column| answer.column(row, column) == Some(b"t");
            let (volatile, suspect) = (is(1), is(2));
            catalog.suspect |= suspect;
            let knowledge = match (suspect, volatile) {
                (true, _) => Knowledge::Suspect,
                (false, true) => Knowledge::Volatile,
                (false, false) => Knowledge::Stable,
            };
            catalog.functions.insert(name.into(), knowledge);
        }
        if catalog.suspect {
            // Whoever may call it, may leave what it leaves.
            catalog.suspect_views = true;
            for knowledge in catalog.functions.values_mut() {
                *knowledge = Knowledge::Suspect;
            }
        }
        catalog
    }
}

impl Functions for Catalog {
    fn knowledge(&self, name: &[u8]) -> Knowledge {
        self.functions.get(name).copied().unwrap_or(Knowledge::Unknown)
    }
}
