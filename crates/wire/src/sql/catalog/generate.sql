-- Prints the two lists beside this file. Run against an empty PostgreSQL 15 or newer:
--   psql -XAtq -v list=replica -f generate.sql > replica.txt
--   psql -XAtq -v list=writer  -f generate.sql > writer.txt
-- `replica`: functions of pg_catalog that a standby may run for a client that asked the cluster.
-- `writer`: the others that leave nothing behind in a session.
-- In neither list: what may leave session state, what runs SQL given as text, internals, and
-- pg_stat_*, which the code knows by its prefix.
-- Both lists end up sorted and unique; names that only newer versions have are added below.

create temp table f as
  select proname::text as name,
         bool_or(provolatile = 'v') as volatile,
         bool_and('internal'::regtype = any(proargtypes::oid[] || prorettype)
                  or 'cstring'::regtype = any(proargtypes::oid[] || prorettype)
                  or prorettype in ('trigger'::regtype, 'event_trigger'::regtype,
                                    'language_handler'::regtype)
                  or coalesce(obj_description(oid, 'pg_proc'), '') ~ '^(implementation of .* operator|internal |I/O$|aggregate (transition|final) |window RI_|sort support|hash$|less-equal-greater|equal image)'
                  or oid in (select amproc::oid from pg_amproc)
                  or oid in (select unnest(array[aggtransfn, aggfinalfn, aggcombinefn, aggserialfn,
                                                 aggdeserialfn, aggmtransfn, aggminvtransfn,
                                                 aggmfinalfn]::oid[]) from pg_aggregate)
                  or proname ~ '^(RI_|binary_upgrade_|pg_event_trigger_|_|gtsvector|.*(sel|recv|send|support|typanalyze|_sortsupport)$)')
           as internal
    from pg_proc where pronamespace = 'pg_catalog'::regnamespace group by 1;

-- Called by people although they also implement an operator or an aggregate.
update f set internal = false where name in
  ('array_append', 'array_cat', 'array_prepend', 'array_larger', 'starts_with', 'textcat', 'like',
   'notlike', 'power', 'mod', 'abs', 'sqrt', 'jsonb_concat', 'jsonb_delete', 'jsonb_delete_path',
   'jsonb_extract_path', 'jsonb_extract_path_text', 'json_extract_path', 'jsonb_contains',
   'jsonb_exists', 'jsonb_exists_any', 'jsonb_exists_all', 'json_extract_path_text', 'point',
   'array_position', 'arraycontains', 'arrayoverlap', 'tsquery_phrase', 'timezone', 'regexp_like',
   'range_merge', 'tsvector_concat', 'ts_rank', 'area', 'center', 'length', 'overlaps');

-- Stable or immutable, but about one server, one backend or the writer's transactions.
create temp table local(pattern text);
insert into local values ('^pg_(stat|stat_get|current|last|replication|logical|wal_replay|ls|control|show)_'),
  ('^(pg_walfile|pg_backend_pid|pg_cursor|pg_prepared|pg_listening|pg_lock|pg_postmaster|pg_conf)'),
  ('^(pg_config|pg_available|pg_extension_update|pg_get_replication|pg_get_publication_tables)'),
  ('^(pg_my_temp|pg_tablespace_(location|databases)|pg_settings_get|pg_hba|pg_ident_file|pg_is_in)'),
  ('^(txid_(current|status)|inet_(client|server)_|current_setting$|set_config$)'),
  ('^(table|schema|database|query|cursor)_to_xml'), ('^(age_internal|pg_get_wal|mxid_age)');

-- Volatile and harmless: time, chance, sleeping, sizes of what is replicated.
create temp table harmless(name text);
insert into harmless values ('clock_timestamp'), ('timeofday'), ('random'), ('gen_random_uuid'),
  ('pg_sleep'), ('pg_sleep_for'), ('pg_sleep_until'), ('pg_relation_size'), ('pg_table_size'),
  ('pg_indexes_size'), ('pg_total_relation_size'), ('pg_database_size'), ('pg_partition_tree'),
  ('pg_partition_ancestors'), ('current_query');

-- May leave something in the session, or runs SQL that cannot be seen here.
create temp table suspect(pattern text);
insert into suspect values ('^(setseed|set_config|current_setting)$'), ('^pg_(try_)?advisory_(lock|unlock)'),
  ('^pg_replication_origin_'), ('^pg_backup_'), ('^pg_(create|copy)_.*_slot$'),
  ('^(query|cursor|table|schema|database)_to_xml'), ('^ts_(stat|rewrite)$'),
  ('^pg_(extension_config_dump|stop_making|nextoid|import_system)'), ('^pg_isolation_test'), ('^pg_stat_');

-- Of newer versions than the one asked; syntax that looks like a function and is none.
create temp table newer(name text);
insert into newer values ('any_value'), ('array_sample'), ('array_shuffle'), ('date_add'),
  ('date_subtract'), ('erf'), ('erfc'), ('random_normal'), ('pg_input_is_valid'),
  ('pg_input_error_info'), ('to_bin'), ('to_oct'), ('uuid_extract_timestamp'),
  ('uuid_extract_version'), ('xmltext'), ('unicode_version'), ('icu_unicode_version'),
  ('unicode_assigned'), ('pg_basetype'), ('to_regtypemod'), ('uuidv4'), ('uuidv7'), ('casefold'),
  ('crc32'), ('crc32c'), ('array_sort'), ('array_reverse'), ('gamma'), ('lgamma'),
  ('has_largeobject_privilege'), ('pg_get_acl'), ('json_objectagg'), ('json_arrayagg'),
  ('json_array'), ('json_scalar'), ('json_serialize'), ('json_query'), ('json_value'),
  ('json_exists'), ('json_table'), ('json'),
  ('like'), ('ilike'), ('join'), ('cube'), ('rollup'), ('regexp_count'), ('regexp_substr');

create temp table replica as
  select name from f
   where not internal and not exists (select from suspect where name ~ pattern)
     and (name in (select h.name from harmless h)
          or not volatile and not exists (select from local where name ~ pattern))
  union select name from newer;

create temp table writer as
  select name from f
   where not internal and not exists (select from suspect where name ~ pattern)
     and name not in (select name from replica);

select name from (select name from replica where :'list' = 'replica'
                  union select name from writer where :'list' = 'writer') wanted
 order by name collate "C";
