-- In the database `postgres` of a copy, before anybody can connect to it: no password of the database it
-- was copied from opens it.
UPDATE bulkhead.roles SET verifier = NULL;

TRUNCATE bulkhead.usurped, bulkhead.condemned;

DO $$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT rolname FROM pg_authid WHERE rolpassword IS NOT NULL LOOP
        EXECUTE format('ALTER ROLE %I PASSWORD NULL', one.rolname);
    END LOOP;
    EXECUTE format('ALTER ROLE postgres PASSWORD %L', current_setting('bulkhead.verifier'));
END
$$;
