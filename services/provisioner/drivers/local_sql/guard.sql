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

CREATE FUNCTION bulkhead.undo_tampering() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog AS $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT role, verifier FROM bulkhead.verifiers
        JOIN pg_authid ON rolname = role WHERE rolpassword IS DISTINCT FROM verifier
    LOOP
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = one.role;
        EXECUTE format('ALTER ROLE %I PASSWORD %L', one.role, one.verifier);
    END LOOP;
    FOR one IN
        SELECT setrole::regrole AS role, datname FROM pg_db_role_setting
        LEFT JOIN pg_database ON pg_database.oid = setdatabase
        WHERE setrole IN ('reader'::regrole, 'writer'::regrole)
    LOOP
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE usesysid = one.role::oid AND state LIKE 'idle in transaction%';
        EXECUTE format('ALTER ROLE %s', one.role)
            || coalesce(format(' IN DATABASE %I', one.datname), '') || ' RESET ALL';
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    -- Whoever held the lock was ended above; the next round finds it free.
    NULL;
END
$$;

REVOKE ALL ON FUNCTION bulkhead.end_overlong(interval), bulkhead.undo_tampering() FROM PUBLIC;

GRANT EXECUTE ON FUNCTION bulkhead.end_overlong(interval), bulkhead.undo_tampering() TO guard;

CREATE PROCEDURE bulkhead.watch(cap interval, pause interval) LANGUAGE plpgsql AS $$
BEGIN
    -- The newest guard is the one that stays.
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE usename = current_user AND pid <> pg_backend_pid();
    COMMIT;
    LOOP
        PERFORM bulkhead.end_overlong(cap);
        COMMIT;
        PERFORM bulkhead.undo_tampering();
        COMMIT;
        PERFORM pg_sleep_for(pause);
        COMMIT;
    END LOOP;
END
$$;

REVOKE ALL ON PROCEDURE bulkhead.watch(interval, interval) FROM PUBLIC;

GRANT EXECUTE ON PROCEDURE bulkhead.watch(interval, interval) TO guard;
