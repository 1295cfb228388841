"""The queries over Postgres's catalogues, qualified so that no search path redirects them."""

# ruff: noqa: S608 joined of constants alone

_VISIBLE = (
    " n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
    " AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')"
)
_TABLES = (
    "SELECT c.oid::int8 AS oid, n.nspname::text AS schema, c.relname::text AS name,"
    " CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view'"
    " WHEN 'm' THEN 'materialized view' ELSE 'foreign table' END AS kind,"
    " left(pg_catalog.obj_description(c.oid, 'pg_class'), 2000) AS comment,"
    " CASE WHEN c.reltuples < 0 THEN NULL ELSE c.reltuples::int8 END AS estimated_rows"
    " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    f" WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition AND {_VISIBLE}"
)
ALL_TABLES = f"{_TABLES} ORDER BY n.nspname, c.relname LIMIT $1"
ONE_TABLE = (
    f"{_TABLES} AND c.relname::text = $1 AND ($2::text IS NULL OR n.nspname::text = $2)"
    " ORDER BY n.nspname <> 'public', n.nspname LIMIT 1"
)
COLUMNS = (
    "SELECT a.attrelid::int8 AS oid, a.attname::text AS name,"
    " pg_catalog.format_type(a.atttypid, a.atttypmod) AS type, NOT a.attnotnull AS nullable,"
    " CASE WHEN a.attgenerated = '' THEN left(pg_catalog.pg_get_expr(d.adbin, d.adrelid), 500) END"
    " AS default,"
    " CASE WHEN a.attidentity = 'a' THEN 'always' WHEN a.attidentity = 'd' THEN 'by default'"
    " WHEN a.attgenerated = 's' THEN 'stored' END AS generated,"
    " left(pg_catalog.col_description(a.attrelid, a.attnum), 2000) AS comment"
    " FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_attrdef d"
    " ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
    " WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped"
    " ORDER BY a.attrelid, a.attnum"
)
KEYS = (
    "SELECT k.conrelid::int8 AS oid, k.conname::text AS name,"
    " CASE k.contype WHEN 'p' THEN 'primary' WHEN 'u' THEN 'unique' WHEN 'f' THEN 'foreign'"
    " WHEN 'c' THEN 'check' ELSE 'exclude' END AS kind,"
    " ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u(number, place)"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number"
    " ORDER BY u.place) AS columns,"
    " left(pg_catalog.pg_get_constraintdef(k.oid), 2000) AS definition"
    " FROM pg_catalog.pg_constraint k"
    " WHERE k.conrelid = ANY($1::oid[]) AND k.contype IN ('p', 'u', 'f', 'c', 'x')"
    " ORDER BY k.conrelid, k.contype = 'p' DESC, k.conname"
)
INDEXES = (
    "SELECT i.indrelid::int8 AS oid, c.relname::text AS name, i.indisunique AS unique,"
    " left(pg_catalog.pg_get_indexdef(i.indexrelid), 2000) AS definition"
    " FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
    " WHERE i.indrelid = ANY($1::oid[]) ORDER BY i.indrelid, c.relname"
)
# Each change of the schema writes a new version of a catalogue row, which has another xmin.
FINGERPRINT = (
    "WITH tables AS (SELECT c.oid, c.xmin FROM pg_catalog.pg_class c"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE "
    f"{_VISIBLE}), rows(part) AS ("
    "SELECT 'c' || oid || ':' || xmin FROM tables UNION ALL"
    " SELECT 'a' || a.attrelid || '.' || a.attnum || ':' || a.xmin FROM pg_catalog.pg_attribute a"
    " JOIN tables ON tables.oid = a.attrelid WHERE a.attnum > 0 UNION ALL"
    " SELECT 'd' || d.objoid || '.' || d.objsubid || ':' || d.xmin FROM pg_catalog.pg_description d"
    " JOIN tables ON tables.oid = d.objoid UNION ALL"
    " SELECT 'f' || f.oid || ':' || f.xmin FROM pg_catalog.pg_attrdef f"
    " JOIN tables ON tables.oid = f.adrelid UNION ALL"
    " SELECT 'k' || k.oid || ':' || k.xmin FROM pg_catalog.pg_constraint k"
    " JOIN tables ON tables.oid = k.conrelid UNION ALL"
    " SELECT 'n' || n.oid || ':' || n.xmin FROM pg_catalog.pg_namespace n WHERE "
    f"{_VISIBLE} UNION ALL"
    " SELECT 't' || t.oid || ':' || t.xmin FROM pg_catalog.pg_type t"
    " JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE t.typrelid = 0 AND "
    f"{_VISIBLE})"
    " SELECT coalesce(pg_catalog.md5(string_agg(part, ',' ORDER BY part COLLATE \"C\")), '')"
    " FROM rows"
)
