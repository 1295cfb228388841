-- Where nothing makes databases any more their templates go, and with them half of what each new server
-- would copy.
UPDATE pg_database SET datistemplate = false;

DROP DATABASE template1;

DROP DATABASE template0;
