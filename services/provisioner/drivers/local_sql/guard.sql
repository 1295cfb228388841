-- In the database `postgres`. Postgres lets every role change its own password, its own defaults and
-- its statement_timeout, and knows no way to forbid that. The guard is a session that undoes it.
REVOKE ALL ON SCHEMA public FROM PUBLIC;

CREATE SCHEMA bulkhead;

GRANT USAGE ON SCHEMA bulkhead TO guard;

CREATE TABLE bulkhead.verifiers (role name PRIMARY KEY, verifier text NOT NULL);

CREATE FUNCTION bulkhead.set_verifiers(wanted jsonb) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT key, value FROM jsonb_each_text(wanted) LOOP
        INSERT INTO bulkhead.verifiers (role, verifier) VALUES (one.key::name, one.value)
            ON CONFLICT (role) DO UPDATE SET verifier = excluded.verifier;
        EXECUTE format('ALTER ROLE %I PASSWORD %L', one.key, one.value);
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION bulkhead.set_verifiers(jsonb) FROM PUBLIC;

-- Who was told to end, and since when. Not logged: after a crash none of them is left.
CREATE UNLOGGED TABLE bulkhead.condemned (
    pid integer,
    backend_start timestamptz,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pid, backend_start)
);

-- From when to when a role may have had a password of its own choosing.
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
    SELECT bulkhead.condemn(array_agg(pid)) FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'relation' AND relation = catalog AND mode <> 'AccessShareLock' AND granted
        AND usename IN ('reader', 'writer')
$$;

REVOKE ALL ON FUNCTION bulkhead.condemn(integer[]), bulkhead.condemn_holders(regclass) FROM PUBLIC;

CREATE FUNCTION bulkhead.end_overlong(cap interval) RETURNS void LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog AS $$
    SELECT bulkhead.condemn(array_agg(pid)) FROM pg_stat_activity
    WHERE usename IN ('reader', 'writer')
        AND state IN ('active', 'fastpath function call')
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
        SELECT role, verifier FROM bulkhead.verifiers
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

CREATE FUNCTION bulkhead.undo_defaults() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog AS $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT setrole::regrole AS role, datname FROM pg_db_role_setting
        LEFT JOIN pg_database ON pg_database.oid = setdatabase
        WHERE setrole IN ('reader'::regrole, 'writer'::regrole)
    LOOP
        IF one.datname IS NULL THEN
            EXECUTE format('ALTER ROLE %s RESET ALL', one.role);
        ELSE
            EXECUTE format('ALTER ROLE %s IN DATABASE %I RESET ALL', one.role, one.datname);
        END IF;
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING '%', SQLSTATE;
    PERFORM bulkhead.condemn_holders('pg_db_role_setting');
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
    bulkhead.survivors(interval) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION bulkhead.end_overlong(interval), bulkhead.end_overlong_upkeep(interval),
    bulkhead.undo_passwords(timestamptz), bulkhead.end_usurpers(), bulkhead.undo_defaults(),
    bulkhead.survivors(interval) TO guard;

-- Its notices are orders to the shell that it is called from.
CREATE PROCEDURE bulkhead.watch(cap interval, pause interval) LANGUAGE plpgsql AS $$
DECLARE
    patience interval := current_setting('bulkhead.patience');
    stood timestamptz := '-infinity';
    begun timestamptz;
    survivor integer;
BEGIN
    -- The newest guard is the one that stays.
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE usename = current_user AND pid <> pg_backend_pid();
    COMMIT;
    RAISE NOTICE 'watching';
    LOOP
        PERFORM bulkhead.end_overlong(cap);
        COMMIT;
        PERFORM bulkhead.end_overlong_upkeep(cap);
        COMMIT;
        begun := clock_timestamp();
        IF bulkhead.undo_passwords(stood) THEN
            stood := begun;
        END IF;
        COMMIT;
        PERFORM bulkhead.end_usurpers();
        COMMIT;
        PERFORM bulkhead.undo_defaults();
        COMMIT;
        FOR survivor IN SELECT bulkhead.survivors(patience) LOOP
            RAISE NOTICE 'kill %', survivor;
        END LOOP;
        COMMIT;
        PERFORM pg_sleep_for(pause);
        COMMIT;
    END LOOP;
END
$$;

REVOKE ALL ON PROCEDURE bulkhead.watch(interval, interval) FROM PUBLIC;

GRANT EXECUTE ON PROCEDURE bulkhead.watch(interval, interval) TO guard;
