-- In the database `postgres`. The connection limits leave room for the guard and the superuser below
-- max_connections. Nothing makes databases here, so their templates go, and with them half of what
-- each new server would copy.
CREATE ROLE reader LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    CONNECTION LIMIT 10;

CREATE ROLE writer LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    CONNECTION LIMIT 8;

CREATE ROLE guard LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    CONNECTION LIMIT 2;

CREATE DATABASE app;

REVOKE ALL ON DATABASE app, postgres FROM PUBLIC;

GRANT CONNECT ON DATABASE app TO reader;

GRANT CONNECT, TEMPORARY ON DATABASE app TO writer;

GRANT CONNECT ON DATABASE postgres TO guard;

UPDATE pg_database SET datistemplate = false;

DROP DATABASE template1;

DROP DATABASE template0;
