-- expand
-- What tenants want to run, and the work that makes it so.
-- Row-level security is forced: provisioner_tenant sees the rows of one tenant, provisioner_service
-- all (P-36).

CREATE TABLE deployments (
    deployment_id text PRIMARY KEY,
    tenant_id     text NOT NULL,
    request_id    text NOT NULL,
    name          text NOT NULL,
    host          text NOT NULL UNIQUE,
    state         text NOT NULL CHECK (state IN ('creating', 'ready', 'failed', 'deleting', 'deleted')),
    mcp           boolean NOT NULL,
    -- It has a database of its own.
    database      boolean NOT NULL,
    -- Where that was last; it stays there while the port is free.
    database_port integer,
    -- Of the database's passwords, which are derived and nowhere stored.
    generation    integer NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now(),
    -- A deleted deployment leaves its row, so that its ids are never given to anything else.
    deleted_at    timestamptz,
    UNIQUE (tenant_id, request_id),
    UNIQUE (tenant_id, deployment_id),
    CHECK (database OR NOT mcp),
    CHECK ((state = 'deleted') = (deleted_at IS NOT NULL))
);
CREATE INDEX deployments_of_tenant ON deployments (tenant_id, created_at DESC, deployment_id DESC)
    WHERE state <> 'deleted';

CREATE TABLE operations (
    operation_id  text PRIMARY KEY,
    tenant_id     text NOT NULL,
    deployment_id text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('create', 'delete')),
    state         text NOT NULL CHECK (state IN ('running', 'succeeded', 'failed')),
    step          text NOT NULL,
    retries       integer NOT NULL DEFAULT 0,
    message       text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT now(),
    ended_at      timestamptz,
    -- No sooner is it tried again.
    next_try_at   timestamptz NOT NULL DEFAULT now(),
    -- The key with which it acts for the tenant, under AES-256-GCM, bound to operation_id; gone when
    -- the operation has ended.
    sealed_key    bytea,
    UNIQUE (deployment_id, kind),
    FOREIGN KEY (tenant_id, deployment_id) REFERENCES deployments (tenant_id, deployment_id),
    CHECK ((state = 'running') = (ended_at IS NULL)),
    CHECK ((state = 'running') = (sealed_key IS NOT NULL))
);
CREATE INDEX operations_running ON operations (next_try_at) WHERE state = 'running';

-- One row, written at the first start: which provisioner's servers these are. The folder they live in
-- carries the same mark, so that no provisioner clears away another's.
CREATE TABLE installation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    mark     text NOT NULL
);

CREATE FUNCTION operation_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('operations', NEW.operation_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER operation_changed AFTER INSERT OR UPDATE ON operations
    FOR EACH ROW EXECUTE FUNCTION operation_changed();

ALTER TABLE deployments ENABLE ROW LEVEL SECURITY;
ALTER TABLE deployments FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON deployments TO provisioner_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY all_rows ON deployments TO provisioner_service USING (true);

ALTER TABLE operations ENABLE ROW LEVEL SECURITY;
ALTER TABLE operations FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON operations TO provisioner_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY all_rows ON operations TO provisioner_service USING (true);

GRANT SELECT, INSERT, UPDATE ON deployments TO provisioner_tenant, provisioner_service;
GRANT SELECT, INSERT, UPDATE ON operations TO provisioner_service;
-- The tenant's own transactions seal keys and never open one.
GRANT SELECT (operation_id, tenant_id, deployment_id, kind, state, step, retries, message,
              created_at, ended_at),
    INSERT, UPDATE ON operations TO provisioner_tenant;
GRANT SELECT, INSERT ON installation TO provisioner_service;
