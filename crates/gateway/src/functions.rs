//! What is known of the functions of a database, from its catalog.

use foldhash::{HashMap, HashSet};
use quorate_wire::sql::{Functions, Knowledge};

use crate::server::Answer;

/// Functions outside `pg_catalog`, by name; and what calls functions unseen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalog {
    functions: HashMap<Box<[u8]>, Knowledge>,
    /// Views, and tables with policies, behind which is a built-in function that writes.
    relations: HashSet<Box<[u8]>>,
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

/// Functions of `pg_catalog` that write, or whose effects are not only their answers, as a pattern.
/// PostgreSQL lets some of them through where nothing may be written, and some on a standby.
macro_rules! writing {
    () => {
        "'^(nextval|setval|setseed|set_config|lowrite|\
lo_(creat|create|export|from_bytea|import|open|put|truncate|truncate64|unlink)|\
pg_(try_)?advisory_.*|pg_notify|txid_current|pg_current_xact_id|pg_export_snapshot|\
pg_logical_emit_message|pg_logical_slot_get_.*|pg_replication_(slot_advance|origin_.*)|\
pg_(create|copy|drop)_.*|pg_(switch_wal|promote|reload_conf|rotate_logfile.*|wal_replay_.*)|\
pg_(cancel|terminate)_backend|pg_log_.*|pg_backup_.*|pg_stat_(reset.*|force_next_flush)|\
pg_import_system_collations|brin_.*|gin_clean_pending_list|ts_stat|\
(query|cursor|table|schema|database)_to_xml.*)$'"
    };
}

/// A pattern for expressions, as the catalog has them, that call one of those.
macro_rules! calls_writing {
    () => {
        concat!(
            "(SELECT ':(func|opfunc)id (' || pg_catalog.string_agg(oid::pg_catalog.text, '|') \
|| ') ' FROM pg_catalog.pg_proc \
WHERE pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND proname ~ ",
            writing!(),
            ")"
        )
    };
}

/// Asks for what else runs code: default values and views. Those of functions that are suspect are
/// taken for suspect, too, whatever they say.
pub(crate) const HIDDEN: &str = concat!(
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_attrdef WHERE \
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
WHERE t.oid = f.proargtypes[0] AND t.typtype IN ('c', 'p')))) \
OR EXISTS (SELECT FROM pg_catalog.pg_proc f \
WHERE f.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND f.proname ~ ",
    writing!(),
    " AND (f.oid IN (SELECT oprcode FROM pg_catalog.pg_operator WHERE oid >= 16384) \
OR f.oid IN (SELECT castfunc FROM pg_catalog.pg_cast WHERE oid >= 16384) \
OR f.oid IN (SELECT aggtransfn FROM pg_catalog.pg_aggregate WHERE aggfnoid >= 16384) \
OR f.oid IN (SELECT aggfinalfn FROM pg_catalog.pg_aggregate WHERE aggfnoid >= 16384))) \
OR EXISTS (SELECT FROM pg_catalog.pg_constraint \
WHERE contypid <> 0 AND oid >= 16384 AND conbin::pg_catalog.text ~ ",
    calls_writing!(),
    ")"
);

/// Asks for the relations that call one of those when they are read: by name, since a text that reads
/// them has it. What is behind a view is behind each view that reads it. (Volatile functions of the
/// database's own are mostly harmless there: standbys try them.)
pub(crate) const RELATIONS: &str = concat!(
    "WITH RECURSIVE behind(rel) AS (\
SELECT r.ev_class FROM pg_catalog.pg_rewrite r \
WHERE r.oid >= 16384 AND r.ev_type = '1' AND r.ev_action::pg_catalog.text ~ ",
    calls_writing!(),
    " UNION SELECT p.polrelid FROM pg_catalog.pg_policy p WHERE p.polqual::pg_catalog.text ~ ",
    calls_writing!(),
    " UNION SELECT r.ev_class FROM behind JOIN pg_catalog.pg_depend d ON d.refobjid = behind.rel \
AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.ev_type = '1') \
SELECT DISTINCT c.relname FROM behind JOIN pg_catalog.pg_class c ON c.oid = behind.rel \
WHERE c.relkind <> 'm' LIMIT 50000"
);

impl Catalog {
    /// From the answers to [`QUERY`], [`HIDDEN`] and [`RELATIONS`].
    pub(crate) fn read(answer: &Answer, hidden: &Answer, relations: &Answer) -> Self {
        let is = |column| hidden.column(0, column) == Some(b"t");
        let names = (0..relations.rows.len()).filter_map(|row| relations.column(row, 0));
        let mut catalog = Self {
            known: true,
            relations: names.map(Box::from).collect(),
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

    fn are_behind(&self, name: &[u8]) -> bool {
        self.relations.contains(name)
    }

    fn are_behind_some(&self) -> bool {
        !self.relations.is_empty()
    }
}
