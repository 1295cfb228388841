-- In the database `app`. The writer owns what it makes in the schema `public`, and the reader may
-- read that; also what a login of the writer's made without its role, and EXPLAIN for it, before it is
-- handed over. Nobody but the superuser may make schemas, extensions or languages. Large objects and
-- WAL messages would let the reader write, so they are the writer's alone, or nobody's.
REVOKE ALL ON SCHEMA public FROM PUBLIC;

GRANT USAGE ON SCHEMA public TO reader;

GRANT USAGE, CREATE ON SCHEMA public TO writer;

ALTER DEFAULT PRIVILEGES FOR ROLE writer, writer_a, writer_b GRANT SELECT ON TABLES TO reader;

ALTER DEFAULT PRIVILEGES FOR ROLE writer, writer_a, writer_b GRANT SELECT ON SEQUENCES TO reader;

REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea),
    lo_put(oid, bigint, bytea), lowrite(integer, bytea), lo_truncate(integer, integer),
    lo_truncate64(integer, bigint) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea),
    lo_put(oid, bigint, bytea), lowrite(integer, bytea), lo_truncate(integer, integer),
    lo_truncate64(integer, bigint) TO writer;

REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) FROM PUBLIC;

REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, bytea) FROM PUBLIC;
