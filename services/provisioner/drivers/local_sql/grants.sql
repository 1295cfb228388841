-- In the database `postgres`, once there is a database `app`: who may come into which.
REVOKE ALL ON DATABASE app, postgres FROM PUBLIC;

GRANT CONNECT ON DATABASE app TO reader, guard;

GRANT CONNECT, TEMPORARY ON DATABASE app TO writer;

GRANT CONNECT ON DATABASE postgres TO guard;
