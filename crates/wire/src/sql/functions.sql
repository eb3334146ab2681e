-- The names in functions.txt: functions of pg_catalog that a standby may run for a client that asked
-- the cluster. Run it on an empty database of the oldest version supported:
--   psql -X -f functions.sql postgres > functions.txt
\set QUIET on
\pset tuples_only on
\pset format unaligned
WITH f AS (
 SELECT proname::text AS name, bool_or(provolatile = 'v') AS volatile
 FROM pg_catalog.pg_proc p
 WHERE pronamespace = 'pg_catalog'::regnamespace
   AND prokind <> 'p'
   AND NOT ('internal'::regtype = ANY (proargtypes::oid[]))
   AND prorettype NOT IN ('internal'::regtype, 'trigger'::regtype, 'event_trigger'::regtype, 'language_handler'::regtype, 'fdw_handler'::regtype, 'index_am_handler'::regtype, 'table_am_handler'::regtype, 'tsm_handler'::regtype)
   AND NOT ('cstring'::regtype = ANY (proargtypes::oid[]) OR prorettype = 'cstring'::regtype)
   AND coalesce(obj_description(p.oid, 'pg_proc'), '') !~ '^(implementation of .* operator|aggregate (transition|final)|I/O)'
 GROUP BY proname)
SELECT name FROM f
WHERE NOT volatile
  AND name !~ '^(pg_stat_|pg_current_wal|pg_last_|pg_is_|pg_get_wal|pg_wal|pg_control|pg_conf_load|pg_postmaster|pg_backend|pg_export|pg_show_|pg_lock|pg_prepared|pg_cursor|pg_listening|pg_ls_|pg_read_|pg_stat_file|pg_hba|pg_ident_file|pg_config|pg_timezone|pg_get_replication|pg_get_publication|pg_available|pg_blocking|pg_safe_snapshot|pg_isolation|pg_my_temp|pg_is_other_temp|txid_|pg_xact|pg_snapshot|pg_visible|pg_current_xact|pg_trigger_depth|pg_notification|pg_jit|inet_server|inet_client|current_query|pg_logical|pg_replication|pg_event_trigger|pg_sequence_last|pg_get_shmem|pg_get_backend|pg_tablespace_databases|binary_upgrade|query_to_xml|cursor_to_xml|database_to_xml|schema_to_xml|table_to_xml|lo_|loread|lowrite|ts_stat|pg_mcv|pg_nextoid|pg_stop|pg_start|pg_wait|pg_column_toast|pg_filenode|pg_relation_filenode|pg_relation_filepath|pg_get_aios|pg_available_wal|pg_get_loaded|pg_promote|set_config|pg_describe_object_x)'
UNION SELECT unnest(ARRAY['random','clock_timestamp','timeofday','gen_random_uuid','uuidv4','uuidv7','pg_sleep','pg_sleep_for','pg_sleep_until','random_normal','pg_size_pretty','pg_relation_size','pg_total_relation_size','pg_table_size','pg_indexes_size','pg_database_size','pg_tablespace_size','statement_timestamp','transaction_timestamp','now','count','sum','avg','min','max','array_agg','string_agg','json_agg','jsonb_agg','json_object_agg','jsonb_object_agg','bool_and','bool_or','every','row_number','rank','dense_rank','percent_rank','cume_dist','ntile','lag','lead','first_value','last_value','nth_value'])
ORDER BY 1;
