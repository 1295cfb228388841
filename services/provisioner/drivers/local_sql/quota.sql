-- In the database `app`. Who makes something there does so as `writer`, whatever login it came in by;
-- and when the database holds more than its quota, nobody adds to it (P-03). The owner of a table may
-- do anything with it, so the guard looks after this every second, in a session of its own.
CREATE SCHEMA bulkhead;

GRANT USAGE ON SCHEMA bulkhead TO guard;

-- How many bytes the database may hold.
CREATE SEQUENCE bulkhead.quota MINVALUE 0 START 9223372036854775807;

-- Since when additions are refused, in microseconds since 1970; 0: they are not. A sequence shows its
-- value to every transaction at once, however old its snapshot is.
CREATE SEQUENCE bulkhead.refusing MINVALUE 0 START 0;

-- Whoever looks after the quota holds this. Tenants cannot lock it.
CREATE TABLE bulkhead.turn ();

CREATE FUNCTION bulkhead.now_microseconds() RETURNS bigint LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
$$;

CREATE FUNCTION bulkhead.is_login(name) RETURNS boolean LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    SELECT $1 IN ('reader_a', 'reader_b', 'writer_a', 'writer_b')
$$;

-- A session that has given up its role would make things that are its login's alone.
CREATE FUNCTION bulkhead.act_as_writer() RETURNS event_trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_user IN ('writer_a', 'writer_b') THEN
        PERFORM set_config('role', 'writer', true);
    END IF;
END
$$;

CREATE EVENT TRIGGER bulkhead_act_as_writer ON ddl_command_start
    EXECUTE FUNCTION bulkhead.act_as_writer();

CREATE FUNCTION bulkhead.refuse_addition() RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT last_value FROM bulkhead.refusing) > 0 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'disk_full',
            MESSAGE = format('the database is full: its storage quota is %s',
                pg_size_pretty((SELECT last_value FROM bulkhead.quota))),
            HINT = 'Reading and deleting still work. TRUNCATE and DROP make room at once, DELETE'
                ' does after VACUUM FULL; or have the quota raised.';
    END IF;
END
$$;

CREATE FUNCTION bulkhead.refuse_rows() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM bulkhead.refuse_addition();
    RETURN NULL;
END
$$;

CREATE FUNCTION bulkhead.refuse_change() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF tg_tag NOT LIKE 'DROP %' AND bulkhead.is_login(session_user) THEN
        PERFORM bulkhead.refuse_addition();
    END IF;
END
$$;

CREATE EVENT TRIGGER bulkhead_refuse_change ON ddl_command_start
    EXECUTE FUNCTION bulkhead.refuse_change();

CREATE FUNCTION bulkhead.refuse_drop() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF bulkhead.is_login(session_user) AND EXISTS (
        SELECT FROM pg_event_trigger_dropped_objects()
        WHERE original AND object_type = 'trigger' AND object_identity LIKE 'bulkhead\_quota\_%'
    ) THEN
        PERFORM bulkhead.refuse_addition();
    END IF;
END
$$;

CREATE EVENT TRIGGER bulkhead_refuse_drop ON sql_drop EXECUTE FUNCTION bulkhead.refuse_drop();

-- Tables without an enabled trigger of ours; those of a session alone go with their sessions.
CREATE VIEW bulkhead.open_tables AS
    SELECT pg_class.oid FROM pg_class
    WHERE relkind IN ('r', 'p') AND relpersistence <> 't'
        AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace,
            'bulkhead'::regnamespace)
        AND NOT EXISTS (
            SELECT FROM pg_trigger WHERE tgrelid = pg_class.oid
                AND tgfoid = 'bulkhead.refuse_rows'::regproc AND tgenabled <> 'D'
        );

-- Ends whoever keeps a table from getting or losing its trigger: whoever writes to it, or locks it, or
-- uses up the room for locks.
CREATE FUNCTION bulkhead.end_holders(of_table oid) RETURNS void LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE (bulkhead.is_login(usename) OR backend_type = 'autovacuum worker') AND pid IN (
        SELECT pid FROM pg_locks
        WHERE locktype = 'relation' AND granted AND relation = of_table
            AND mode NOT IN ('AccessShareLock', 'RowShareLock')
        UNION
        SELECT pid FROM pg_locks GROUP BY pid HAVING count(*) > 500
    )
$$;

-- Returns how many tables are without a trigger.
CREATE FUNCTION bulkhead.close_tables(most integer) RETURNS bigint LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    one record;
    name text := 'bulkhead_quota_' || bulkhead.now_microseconds();
BEGIN
    FOR one IN SELECT oid FROM bulkhead.open_tables LIMIT most LOOP
        FOR try IN 1..2 LOOP
            BEGIN
                EXECUTE format('CREATE TRIGGER %I BEFORE INSERT OR UPDATE ON %s FOR EACH STATEMENT'
                    ' EXECUTE FUNCTION bulkhead.refuse_rows()', name, one.oid::regclass);
                EXIT;
            EXCEPTION WHEN OTHERS THEN
                PERFORM bulkhead.end_holders(one.oid);
            END;
        END LOOP;
    END LOOP;
    RETURN (SELECT count(*) FROM bulkhead.open_tables);
END
$$;

-- Returns how many triggers are left. They do nothing any more, but are in nobody's schema.
CREATE FUNCTION bulkhead.open_tables(most integer) RETURNS bigint LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT tgname, tgrelid FROM pg_trigger
        WHERE tgfoid = 'bulkhead.refuse_rows'::regproc LIMIT most
    LOOP
        BEGIN
            EXECUTE format('DROP TRIGGER %I ON %s', one.tgname, one.tgrelid::regclass);
        EXCEPTION WHEN OTHERS THEN
            -- Whoever works on the table is not disturbed; a later round finds it free.
            NULL;
        END;
    END LOOP;
    RETURN (SELECT count(*) FROM pg_trigger WHERE tgfoid = 'bulkhead.refuse_rows'::regproc);
END
$$;

CREATE FUNCTION bulkhead.allow_large_objects(allow boolean) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    verb text := CASE WHEN allow THEN 'GRANT EXECUTE ON %s TO' ELSE 'REVOKE EXECUTE ON %s FROM' END;
BEGIN
    IF has_function_privilege('writer', 'lo_put(oid, bigint, bytea)', 'EXECUTE') <> allow THEN
        EXECUTE format(verb || ' writer', 'FUNCTION lo_creat(integer), lo_create(oid),'
            ' lo_from_bytea(oid, bytea), lo_put(oid, bigint, bytea), lowrite(integer, bytea),'
            ' lo_truncate(integer, integer), lo_truncate64(integer, bigint)');
    END IF;
END
$$;

-- What EXPLAIN carries out fires no event trigger: CREATE TABLE AS, and the like. Nobody but the writer
-- may create anything, in no schema but this, and nobody but the superuser may let it do so again.
CREATE FUNCTION bulkhead.allow_tables(allow boolean) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change text := CASE WHEN allow THEN 'GRANT %s TO writer' ELSE 'REVOKE %s FROM writer' END;
BEGIN
    IF has_schema_privilege('writer', 'public', 'CREATE') <> allow THEN
        EXECUTE format(change, 'CREATE ON SCHEMA public');
    END IF;
    IF has_database_privilege('writer', current_database(), 'TEMPORARY') <> allow THEN
        EXECUTE format(change, format('TEMPORARY ON DATABASE %I', current_database()));
    END IF;
END
$$;

-- Ends what was being added when the quota was passed, and sessions with temporary tables. When
-- `grew`, also whatever writes in ways that nothing here refuses; only VACUUM FULL may need more room
-- to need less.
CREATE FUNCTION bulkhead.end_additions(grew boolean) RETURNS void LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE bulkhead.is_login(usename) AND (
        backend_xid IS NOT NULL AND (
            extract(epoch FROM xact_start) * 1000000 <= (SELECT last_value FROM bulkhead.refusing)
            OR grew AND pid NOT IN (SELECT pid FROM pg_stat_progress_cluster)
        )
        OR pid IN (
            SELECT pg_stat_get_backend_pid(substring(nspname FROM '^pg_temp_([0-9]+)$')::integer)
            FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE relpersistence = 't' AND nspname LIKE 'pg\_temp\_%'
        )
    )
$$;

-- What an index's making left when it was ended takes room and serves nobody.
CREATE FUNCTION bulkhead.drop_broken_indexes() RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT indexrelid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE NOT indisvalid AND relkind = 'i' AND relpersistence <> 't'
            AND indexrelid NOT IN (SELECT index_relid FROM pg_stat_progress_create_index)
    LOOP
        BEGIN
            EXECUTE format('DROP INDEX %s', one.indexrelid::regclass);
        EXCEPTION WHEN OTHERS THEN
            -- Someone is at it, or it belongs to more than itself.
            NULL;
        END;
    END LOOP;
END
$$;

-- Does what the quota asks for. Returns how many bytes the database holds, how many more it may hold,
-- and how many tables are not as they should be yet; nulls when somebody else is at it. `before` is
-- what an earlier round returned.
CREATE FUNCTION bulkhead.keep_quota(
    before bigint, OUT used bigint, OUT room bigint, OUT pending bigint
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    quota bigint;
BEGIN
    BEGIN
        -- Not the strongest lock: that one is written to the WAL, each time.
        LOCK TABLE bulkhead.turn IN SHARE ROW EXCLUSIVE MODE;
    EXCEPTION WHEN lock_not_available THEN
        RETURN;
    END;
    used := pg_database_size(current_database());
    quota := (SELECT last_value FROM bulkhead.quota);
    room := quota - used;
    IF room < 0 THEN
        IF (SELECT last_value FROM bulkhead.refusing) = 0 THEN
            PERFORM setval('bulkhead.refusing', bulkhead.now_microseconds());
        END IF;
        PERFORM bulkhead.allow_tables(false);
        PERFORM bulkhead.allow_large_objects(false);
        pending := bulkhead.close_tables(100);
        PERFORM bulkhead.end_additions(room < -32 * 1024 * 1024 AND used > coalesce(before, used));
        PERFORM bulkhead.drop_broken_indexes();
    ELSE
        IF (SELECT last_value FROM bulkhead.refusing) > 0 THEN
            PERFORM setval('bulkhead.refusing', 0);
        END IF;
        PERFORM bulkhead.allow_tables(true);
        PERFORM bulkhead.allow_large_objects(true);
        pending := bulkhead.open_tables(100);
    END IF;
END
$$;

-- Large objects, and what EXPLAIN makes, are made without anything that we could see, by whoever makes
-- them. What a login has as its own by default is nothing that it made.
CREATE FUNCTION bulkhead.hand_over() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_shdepend JOIN pg_roles ON pg_roles.oid = refobjid
        WHERE deptype = 'o' AND bulkhead.is_login(rolname) AND refclassid = 'pg_authid'::regclass
            AND classid <> 'pg_default_acl'::regclass
            AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) THEN
        REASSIGN OWNED BY reader_a, reader_b, writer_a, writer_b TO writer;
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING '%', SQLSTATE;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA bulkhead FROM PUBLIC;

GRANT EXECUTE ON FUNCTION bulkhead.keep_quota(bigint), bulkhead.hand_over() TO guard;

-- The newest guard is the one that stays.
CREATE FUNCTION bulkhead.begin_watch() RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE usename = current_user AND datname = current_database()
            AND pid <> pg_backend_pid();
    RAISE NOTICE 'watching';
END
$$;

-- Whether no byte was written since the WAL ended at `written`, and no session did anything since
-- `since`: whoever grows a file that the WAL does not know is still at it, or has ended with a commit
-- that it does.
CREATE FUNCTION bulkhead.is_quiet(since timestamptz, written pg_lsn) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN pg_current_wal_insert_lsn() = written AND NOT EXISTS (
        SELECT FROM pg_stat_get_activity(NULL)
        WHERE usesysid IS DISTINCT FROM (SELECT oid FROM pg_roles WHERE rolname = session_user)
            AND backend_type IN ('client backend', 'autovacuum worker')
            AND (state IS DISTINCT FROM 'idle' OR state_change >= since)
    );
END
$$;

-- Does something only every `pause`, but each time while there is something to end, or the room would
-- not last for long; and nothing but from time to time where nothing happens. It is called again and
-- again, a little too early or too late, and never waits itself: its snapshot would keep every VACUUM
-- from clearing away what was just deleted.
CREATE FUNCTION bulkhead.look(pause interval) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
DECLARE
    due timestamptz := nullif(current_setting('bulkhead.due', true), '');
    before bigint;
    -- When it last did something, and where the WAL ended then.
    since timestamptz;
    written pg_lsn;
    looked timestamptz := clock_timestamp();
    reached pg_lsn;
    kept record;
    urgent boolean;
BEGIN
    IF looked < due THEN
        RETURN;
    END IF;
    before := nullif(current_setting('bulkhead.before', true), '');
    since := nullif(current_setting('bulkhead.since', true), '');
    written := nullif(current_setting('bulkhead.written', true), '');
    reached := pg_current_wal_insert_lsn();
    IF due IS NOT NULL AND looked < since + 10 * pause AND bulkhead.is_quiet(since, written) THEN
        PERFORM set_config('bulkhead.due', (looked + 0.9 * pause)::text, false);
        RETURN;
    END IF;
    SELECT used, room, pending INTO kept FROM bulkhead.keep_quota(before);
    PERFORM bulkhead.hand_over();
    urgent := kept.used IS NULL OR kept.pending > 0
        OR kept.used > before AND kept.room < 40 * (kept.used - before);
    PERFORM set_config('bulkhead.before', coalesce(kept.used, before)::text, false),
        set_config('bulkhead.since', looked::text, false),
        set_config('bulkhead.written', reached::text, false),
        set_config('bulkhead.due', CASE WHEN urgent THEN '' ELSE
            (clock_timestamp() + 0.9 * pause)::text END, false);
END
$$;

REVOKE ALL ON FUNCTION bulkhead.begin_watch(), bulkhead.look(interval),
    bulkhead.is_quiet(timestamptz, pg_lsn) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION bulkhead.begin_watch(), bulkhead.look(interval),
    bulkhead.is_quiet(timestamptz, pg_lsn) TO guard;

-- What belongs to an extension is in no pg_dump, so that a tenant's has nothing of ours.
DO $$
DECLARE
    member text;
BEGIN
    FOR member IN
        SELECT 'SCHEMA bulkhead'
        UNION ALL SELECT 'EVENT TRIGGER ' || evtname FROM pg_event_trigger
        UNION ALL SELECT 'FUNCTION ' || oid::regprocedure
            FROM pg_proc WHERE pronamespace = 'bulkhead'::regnamespace
        UNION ALL SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE ' WHEN 'v' THEN 'VIEW '
            ELSE 'TABLE ' END || oid::regclass
            FROM pg_class WHERE relnamespace = 'bulkhead'::regnamespace AND relkind IN ('r', 'v', 'S')
    LOOP
        EXECUTE 'ALTER EXTENSION plpgsql ADD ' || member;
    END LOOP;
END
$$;
