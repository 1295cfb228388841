-- In the database `postgres`. Postgres lets every role change its own password, its own defaults and
-- its statement_timeout, and knows no way to forbid that. The guard is a session that undoes it.
REVOKE ALL ON SCHEMA public FROM PUBLIC;

CREATE SCHEMA bulkhead;

GRANT USAGE ON SCHEMA bulkhead TO guard;

-- What the password of each role is: none where the verifier is null. `defaults` is what we have set
-- for it, as in pg_db_role_setting; everything else there is a tenant's doing.
CREATE TABLE bulkhead.roles (
    role name PRIMARY KEY,
    verifier text,
    defaults text[],
    -- A tenant comes in as it.
    login boolean NOT NULL
);

INSERT INTO bulkhead.roles (role, defaults, login) VALUES
    ('reader', NULL, false),
    ('writer', NULL, false),
    ('reader_a', '{role=reader}', true),
    ('reader_b', '{role=reader}', true),
    ('writer_a', '{role=writer}', true),
    ('writer_b', '{role=writer}', true),
    ('guard', NULL, false),
    ('postgres', NULL, false);

-- What tenants have open.
CREATE VIEW bulkhead.sessions AS
    SELECT activity.* FROM pg_stat_activity AS activity
    JOIN bulkhead.roles ON usename = role WHERE login;

-- Who was told to end, and since when. Not logged: after a crash none of them is left.
CREATE UNLOGGED TABLE bulkhead.condemned (
    pid integer,
    backend_start timestamptz,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pid, backend_start)
);

-- From when to when a role may have had a password of its own choosing, or one that it has no more.
CREATE UNLOGGED TABLE bulkhead.usurped (
    role name NOT NULL,
    since timestamptz NOT NULL,
    until timestamptz
);

CREATE FUNCTION bulkhead.condemn(pids integer[]) RETURNS void LANGUAGE sql STRICT
SET search_path = pg_catalog AS $$
    INSERT INTO bulkhead.condemned (pid, backend_start)
        SELECT pid, backend_start FROM pg_stat_activity WHERE pid = ANY (pids)
        ON CONFLICT DO NOTHING;
    SELECT pg_terminate_backend(pid) FROM unnest(pids) AS pid
$$;

-- Whoever changes a role holds this lock on a catalog to the end of the transaction.
CREATE FUNCTION bulkhead.condemn_holders(catalog regclass) RETURNS void LANGUAGE sql
SET search_path = pg_catalog AS $$
    SELECT bulkhead.condemn(array_agg(pid)) FROM pg_locks JOIN bulkhead.sessions USING (pid)
    WHERE locktype = 'relation' AND relation = catalog AND mode <> 'AccessShareLock' AND granted
$$;

REVOKE ALL ON FUNCTION bulkhead.condemn(integer[]), bulkhead.condemn_holders(regclass) FROM PUBLIC;

CREATE FUNCTION bulkhead.end_overlong(cap interval) RETURNS void LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog AS $$
    SELECT bulkhead.condemn(array_agg(pid)) FROM bulkhead.sessions
    WHERE state IN ('active', 'fastpath function call')
        AND query_start < clock_timestamp() - cap
$$;

-- Autovacuum runs the owner's functions where an index is on an expression: to analyze the table, and
-- to summarize BRIN indexes, which a VACUUM does while it cleans up the indexes.
CREATE FUNCTION bulkhead.end_overlong_upkeep(cap interval) RETURNS void LANGUAGE sql
SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT bulkhead.condemn(array_agg(pid)) FROM pg_stat_activity
    WHERE backend_type = 'autovacuum worker' AND datname = 'app'
        AND xact_start < clock_timestamp() - CASE
            WHEN query LIKE 'autovacuum: BRIN summarize%' THEN cap
            WHEN pid IN (SELECT pid FROM pg_stat_progress_analyze) THEN cap
            WHEN pid IN (
                SELECT pid FROM pg_stat_progress_vacuum WHERE phase = 'cleaning up indexes'
            ) THEN greatest(cap, '10 min')
        END
$$;

-- Returns whether every role has its own password again; `since` is when they last had.
CREATE FUNCTION bulkhead.undo_passwords(since timestamptz) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    one record;
    undone boolean := true;
BEGIN
    FOR one IN
        SELECT role, verifier FROM bulkhead.roles
        JOIN pg_authid ON rolname = role WHERE rolpassword IS DISTINCT FROM verifier
    LOOP
        INSERT INTO bulkhead.usurped VALUES (one.role, since);
        BEGIN
            EXECUTE format('ALTER ROLE %I PASSWORD %L', one.role, one.verifier);
        EXCEPTION WHEN OTHERS THEN
            -- The next round tries again. The cap must not wait for that.
            RAISE WARNING '%', SQLSTATE;
            PERFORM bulkhead.condemn_holders('pg_authid');
            undone := false;
        END;
    END LOOP;
    RETURN undone;
END
$$;

-- After undo_passwords has been committed: who may have come in by another password goes. One that
-- is still coming in has no name yet, so this looks until its time for that is over.
CREATE FUNCTION bulkhead.end_usurpers() RETURNS void LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog AS $$
    UPDATE bulkhead.usurped SET until = clock_timestamp() WHERE until IS NULL;
    SELECT bulkhead.condemn(array_agg(pid)) FROM pg_stat_activity
        JOIN bulkhead.usurped ON usename = role
        WHERE backend_start <= until
            AND backend_start >= since - current_setting('authentication_timeout')::interval;
    DELETE FROM bulkhead.usurped WHERE until < clock_timestamp()
        - current_setting('authentication_timeout')::interval
$$;

-- In the catalog itself: no function that acts for another may say ALTER ROLE … SET role.
CREATE FUNCTION bulkhead.undo_defaults() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog AS $$
BEGIN
    DELETE FROM pg_db_role_setting USING pg_roles
        LEFT JOIN bulkhead.roles ON role = rolname
        WHERE setrole = pg_roles.oid AND (setdatabase <> 0 OR setconfig IS DISTINCT FROM defaults);
    INSERT INTO pg_db_role_setting (setdatabase, setrole, setconfig)
        SELECT 0, oid, defaults FROM bulkhead.roles JOIN pg_roles ON rolname = role
        WHERE defaults IS NOT NULL AND oid NOT IN (
            SELECT setrole FROM pg_db_role_setting WHERE setdatabase = 0
        );
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING '%', SQLSTATE;
    PERFORM bulkhead.condemn_holders('pg_db_role_setting');
END
$$;

-- Gives each role in `wanted` its password by the verifier, or none where that is null. Whoever came
-- in by the one before is ended, from the guard's next round on at the latest. Only whoever holds the
-- catalog's rows for long can be in the way, and is ended as well.
CREATE FUNCTION bulkhead.set_verifiers(wanted jsonb) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
DECLARE
    one record;
BEGIN
    LOCK TABLE bulkhead.roles IN SHARE ROW EXCLUSIVE MODE;
    PERFORM set_config('lock_timeout', '200ms', true);
    FOR one IN
        SELECT role, value, login AND verifier IS NOT NULL AS opened FROM jsonb_each_text(wanted)
        JOIN bulkhead.roles ON role = key::name WHERE verifier IS DISTINCT FROM value
    LOOP
        UPDATE bulkhead.roles SET verifier = one.value WHERE role = one.role;
        INSERT INTO bulkhead.usurped SELECT one.role, '-infinity' WHERE one.opened;
        FOR try IN 1..20 LOOP
            BEGIN
                EXECUTE format('ALTER ROLE %I PASSWORD %L', one.role, one.value);
                EXIT;
            EXCEPTION WHEN OTHERS THEN
                IF try = 20 THEN
                    RAISE;
                END IF;
                PERFORM bulkhead.condemn_holders('pg_authid');
            END;
        END LOOP;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION bulkhead.set_verifiers(jsonb) FROM PUBLIC;

-- Returns whether anyone is in by a password that `set_verifiers` has replaced.
CREATE FUNCTION bulkhead.any_outdated() RETURNS boolean LANGUAGE sql
SET search_path = pg_catalog AS $$
    SELECT EXISTS (
        SELECT FROM pg_stat_activity JOIN bulkhead.usurped ON usename = role
        WHERE since = '-infinity' AND (until IS NULL OR backend_start <= until)
    )
$$;

REVOKE ALL ON FUNCTION bulkhead.any_outdated() FROM PUBLIC;

-- What counts to no database's size: files of sorts and joins, the queue of NOTIFY, and the catalogs
-- of roles. Who holds most of it, or keeps it from being cleared, goes.
CREATE FUNCTION bulkhead.end_hoarders() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog AS $$
BEGIN
    IF (SELECT sum(size) FROM pg_ls_tmpdir()) > 512 * 1024 * 1024 THEN
        PERFORM bulkhead.condemn(array_agg(pid)) FROM (
            SELECT substring(name FROM '^pgsql_tmp([0-9]+)\.')::integer AS pid
            FROM pg_ls_tmpdir() GROUP BY 1 ORDER BY sum(size) DESC LIMIT 1
        ) AS largest JOIN bulkhead.sessions USING (pid);
    END IF;
    IF pg_notification_queue_usage() > 0.005 THEN
        PERFORM bulkhead.condemn(array_agg(pid)) FROM bulkhead.sessions
            WHERE xact_start < clock_timestamp() - interval '1 s';
    END IF;
    IF pg_tablespace_size('pg_global') > 64 * 1024 * 1024 THEN
        PERFORM bulkhead.condemn_holders('pg_db_role_setting');
        PERFORM bulkhead.condemn_holders('pg_authid');
    END IF;
END
$$;

-- When a tenant's session last did anything, in microseconds since 1970, as far as it was seen.
CREATE SEQUENCE bulkhead.seen MINVALUE 0 START 0;

-- Remembers what the sessions that are there did last; returns when any did.
CREATE FUNCTION bulkhead.see() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog AS $$
DECLARE
    latest bigint := (
        SELECT (extract(epoch FROM max(state_change)) * 1000000)::bigint FROM bulkhead.sessions
    );
    seen bigint := (SELECT last_value FROM bulkhead.seen);
BEGIN
    RETURN CASE WHEN latest > seen THEN setval('bulkhead.seen', latest) ELSE seen END;
END
$$;

-- Returns how the database `app` is, and a number that grows whenever a tenant's session does
-- anything: by what is seen of those that are there, and by how many there were. Neither the guard's
-- rounds nor autovacuum's work change it.
CREATE FUNCTION bulkhead.measure(
    OUT used_bytes bigint, OUT busy boolean, OUT statements bigint
) LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    used_bytes := pg_database_size('app');
    busy := EXISTS (SELECT FROM bulkhead.sessions WHERE state IS DISTINCT FROM 'idle');
    statements := bulkhead.see()
        + (SELECT sessions FROM pg_stat_database WHERE datname = 'app');
END
$$;

REVOKE ALL ON FUNCTION bulkhead.measure() FROM PUBLIC;

-- Whether no round has anything to do since `since`, when `written` was where the WAL ended: nobody
-- has written anything, no password or default of a role is changed without that, and every session
-- that is there did nothing and was looked at then. Who is still coming in is seen the next time.
CREATE FUNCTION bulkhead.is_quiet(since timestamptz, written pg_lsn) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    RETURN pg_current_wal_insert_lsn() = written
        AND NOT EXISTS (SELECT FROM bulkhead.usurped)
        AND NOT EXISTS (SELECT FROM bulkhead.condemned)
        AND NOT EXISTS (
            SELECT FROM pg_stat_get_activity(NULL)
            WHERE usesysid IS DISTINCT FROM (SELECT oid FROM pg_roles WHERE rolname = session_user)
                AND backend_type IN ('client backend', 'autovacuum worker')
                AND (state IS DISTINCT FROM 'idle' OR state_change >= since)
        );
END
$$;

-- Returns who was told to end for longer than `patience` ago and is still there: C code that never
-- looks whether it should end. Only a signal that nobody can ignore ends that.
CREATE FUNCTION bulkhead.survivors(patience interval) RETURNS SETOF integer LANGUAGE sql
SECURITY DEFINER SET search_path = pg_catalog AS $$
    DELETE FROM bulkhead.condemned WHERE (pid, backend_start) NOT IN (
        SELECT pid, backend_start FROM pg_stat_activity WHERE backend_start IS NOT NULL
    );
    SELECT pid FROM bulkhead.condemned WHERE since < clock_timestamp() - patience
$$;

REVOKE ALL ON FUNCTION bulkhead.end_overlong(interval), bulkhead.end_overlong_upkeep(interval),
    bulkhead.undo_passwords(timestamptz), bulkhead.end_usurpers(), bulkhead.undo_defaults(),
    bulkhead.end_hoarders(), bulkhead.see(), bulkhead.is_quiet(timestamptz, pg_lsn),
    bulkhead.survivors(interval) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION bulkhead.end_overlong(interval), bulkhead.end_overlong_upkeep(interval),
    bulkhead.undo_passwords(timestamptz), bulkhead.end_usurpers(), bulkhead.undo_defaults(),
    bulkhead.end_hoarders(), bulkhead.see(), bulkhead.is_quiet(timestamptz, pg_lsn),
    bulkhead.survivors(interval) TO guard;

-- Its notices are orders to the shell that it is called from.
CREATE PROCEDURE bulkhead.watch(cap interval, pause interval) LANGUAGE plpgsql AS $$
DECLARE
    patience interval := current_setting('bulkhead.patience');
    stood timestamptz := '-infinity';
    -- When the last whole round began, and where the WAL ended then; and the same of this one.
    begun timestamptz;
    written pg_lsn;
    looked timestamptz;
    reached pg_lsn;
    survivor integer;
BEGIN
    -- The newest guard is the one that stays.
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE usename = current_user AND datname = current_database()
            AND pid <> pg_backend_pid();
    COMMIT;
    RAISE NOTICE 'watching';
    LOOP
        -- A round that finds nothing to do costs a tenth of a whole one. One comes in any case from
        -- time to time.
        looked := clock_timestamp();
        reached := pg_current_wal_insert_lsn();
        IF looked < begun + 10 * pause AND bulkhead.is_quiet(begun, written) THEN
            COMMIT;
        ELSE
            begun := looked;
            written := reached;
            PERFORM bulkhead.end_overlong(cap);
            COMMIT;
            PERFORM bulkhead.end_overlong_upkeep(cap);
            COMMIT;
            IF bulkhead.undo_passwords(stood) THEN
                stood := begun;
            END IF;
            COMMIT;
            PERFORM bulkhead.end_usurpers();
            COMMIT;
            PERFORM bulkhead.undo_defaults();
            COMMIT;
            PERFORM bulkhead.end_hoarders();
            COMMIT;
            PERFORM bulkhead.see();
            COMMIT;
            FOR survivor IN SELECT bulkhead.survivors(patience) LOOP
                RAISE NOTICE 'kill %', survivor;
            END LOOP;
            COMMIT;
        END IF;
        PERFORM pg_sleep_for(pause);
        COMMIT;
    END LOOP;
END
$$;

REVOKE ALL ON PROCEDURE bulkhead.watch(interval, interval) FROM PUBLIC;

GRANT EXECUTE ON PROCEDURE bulkhead.watch(interval, interval) TO guard;
