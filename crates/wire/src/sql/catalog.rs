//! What is known of `pg_catalog`: functions, relations, settings.
//!
//! The lists of functions are made from a running server by `catalog/generate.sql`.

use super::words::{self, Slot};

/// Who may run a built-in function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builtin {
    /// Any server.
    Replica,
    /// The writer; nothing stays in the session.
    Writer,
}

static FUNCTIONS: [Slot<Builtin>; 2048] = words::add(
    words::add(
        [Slot::empty(Builtin::Writer); 2048],
        include_str!("catalog/replica.txt"),
        Builtin::Replica,
    ),
    include_str!("catalog/writer.txt"),
    Builtin::Writer,
);

/// The built-in function called `name`, whose folded hash is `hash`.
pub(super) fn function(hash: u64, name: &[u8]) -> Option<Builtin> {
    words::find(&FUNCTIONS, hash, name, 0, name.len())
        .or_else(|| name.starts_with(b"pg_stat_").then_some(Builtin::Writer))
}

static RELATIONS: [Slot<()>; 256] = words::add([Slot::empty(()); 256], REPLICATED, ());

/// Whether a relation, named in lower case and beginning with `pg_`, has the same content on
/// every server. `pg_catalog` and `pg_toast` count: they only qualify other names.
pub(super) fn is_replicated(hash: u64, name: &[u8]) -> bool {
    words::find(&RELATIONS, hash, name, 0, name.len()).is_some()
}

static SETTINGS: [Slot<()>; 256] = words::add([Slot::empty(()); 256], OF_SESSION, ());

/// Whether the setting's value is that of the session or the cluster, not of one server.
/// Custom settings are the session's.
pub(super) fn is_of_session(hash: u64, name: &[u8]) -> bool {
    (name.contains(&b'.') && !name.starts_with(b"quorate."))
        || words::find(&SETTINGS, hash, name, 0, name.len()).is_some()
}

const REPLICATED: &str = "\
    pg_catalog pg_toast \
    pg_aggregate pg_am pg_amop pg_amproc pg_attrdef pg_attribute pg_auth_members pg_authid \
    pg_cast pg_class pg_collation pg_constraint pg_conversion pg_database pg_db_role_setting \
    pg_default_acl pg_depend pg_description pg_enum pg_event_trigger pg_extension \
    pg_foreign_data_wrapper pg_foreign_server pg_foreign_table pg_index pg_inherits \
    pg_init_privs pg_language pg_largeobject pg_largeobject_metadata pg_namespace pg_opclass \
    pg_operator pg_opfamily pg_parameter_acl pg_partitioned_table pg_policy pg_proc \
    pg_publication pg_publication_namespace pg_publication_rel pg_range pg_replication_origin \
    pg_rewrite pg_seclabel pg_sequence pg_shdepend pg_shdescription pg_shseclabel pg_statistic \
    pg_statistic_ext pg_statistic_ext_data pg_subscription pg_subscription_rel pg_tablespace \
    pg_transform pg_trigger pg_ts_config pg_ts_config_map pg_ts_dict pg_ts_parser \
    pg_ts_template pg_type pg_user_mapping \
    pg_group pg_indexes pg_matviews pg_policies pg_publication_tables pg_roles pg_rules \
    pg_seclabels pg_shadow pg_stats pg_stats_ext pg_stats_ext_exprs pg_tables \
    pg_timezone_abbrevs pg_timezone_names pg_user pg_user_mappings pg_views \
    pg_lsn pg_snapshot pg_node_tree pg_ndistinct pg_dependencies pg_mcv_list \
    pg_ddl_command pg_database_owner pg_read_all_data pg_write_all_data";

const OF_SESSION: &str = "\
    application_name array_nulls backslash_quote block_size bytea_output check_function_bodies \
    client_connection_check_interval client_encoding client_min_messages constraint_exclusion \
    cursor_tuple_fraction data_checksums datestyle deadlock_timeout debug_assertions \
    default_statistics_target default_table_access_method default_tablespace \
    default_text_search_config default_toast_compression default_transaction_deferrable \
    default_transaction_isolation effective_cache_size enable_async_append enable_bitmapscan \
    enable_gathermerge enable_hashagg enable_hashjoin enable_incremental_sort \
    enable_indexonlyscan enable_indexscan enable_material enable_memoize enable_mergejoin \
    enable_nestloop enable_parallel_append enable_parallel_hash enable_partition_pruning \
    enable_partitionwise_aggregate enable_partitionwise_join enable_seqscan enable_sort \
    enable_tidscan escape_string_warning extra_float_digits from_collapse_limit geqo \
    gin_fuzzy_search_limit idle_in_transaction_session_timeout idle_session_timeout \
    integer_datetimes intervalstyle is_superuser jit join_collapse_limit lc_collate lc_ctype \
    lc_messages lc_monetary lc_numeric lc_time lo_compat_privileges lock_timeout \
    maintenance_work_mem max_function_args max_identifier_length max_index_keys \
    max_parallel_workers_per_gather parallel_leader_participation password_encryption \
    plan_cache_mode quote_all_identifiers random_page_cost role row_security search_path \
    segment_size seq_page_cost server_encoding server_version server_version_num \
    session_authorization session_replication_role standard_conforming_strings \
    statement_timeout synchronize_seqscans temp_tablespaces timezone \
    timezone_abbreviations transaction_deferrable transaction_isolation transaction_timeout \
    transform_null_equals vacuum_cost_delay wal_block_size work_mem xmlbinary xmloption";
