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

CREATE FUNCTION bulkhead.end_overlong(cap interval) RETURNS bigint LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog AS $$
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE usename IN ('reader', 'writer')
        AND state IN ('active', 'fastpath function call')
        AND query_start < clock_timestamp() - cap
$$;

CREATE FUNCTION bulkhead.undo_passwords() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog AS $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT role, verifier FROM bulkhead.verifiers
        JOIN pg_authid ON rolname = role WHERE rolpassword IS DISTINCT FROM verifier
    LOOP
        -- Who changed it is out, with every lock that could be held against undoing it.
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = one.role;
        EXECUTE format('ALTER ROLE %I PASSWORD %L', one.role, one.verifier);
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    -- The lock is not free yet: the next round finds it so. The cap must not wait for that.
    RAISE WARNING '%', SQLERRM;
END
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
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE usesysid = one.role::oid AND state LIKE 'idle in transaction%';
        IF one.datname IS NULL THEN
            EXECUTE format('ALTER ROLE %s RESET ALL', one.role);
        ELSE
            EXECUTE format('ALTER ROLE %s IN DATABASE %I RESET ALL', one.role, one.datname);
        END IF;
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING '%', SQLERRM;
END
$$;

REVOKE ALL ON FUNCTION bulkhead.end_overlong(interval), bulkhead.undo_passwords(),
    bulkhead.undo_defaults() FROM PUBLIC;

GRANT EXECUTE ON FUNCTION bulkhead.end_overlong(interval), bulkhead.undo_passwords(),
    bulkhead.undo_defaults() TO guard;

CREATE PROCEDURE bulkhead.watch(cap interval, pause interval) LANGUAGE plpgsql AS $$
BEGIN
    -- The newest guard is the one that stays.
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE usename = current_user AND pid <> pg_backend_pid();
    COMMIT;
    LOOP
        PERFORM bulkhead.end_overlong(cap);
        COMMIT;
        PERFORM bulkhead.undo_passwords();
        COMMIT;
        PERFORM bulkhead.undo_defaults();
        COMMIT;
        PERFORM pg_sleep_for(pause);
        COMMIT;
    END LOOP;
END
$$;

REVOKE ALL ON PROCEDURE bulkhead.watch(interval, interval) FROM PUBLIC;

GRANT EXECUTE ON PROCEDURE bulkhead.watch(interval, interval) TO guard;
