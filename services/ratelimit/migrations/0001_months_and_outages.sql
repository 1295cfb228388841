-- expand
-- What outlives Valkey: the counts of months, what was admitted without it, and who counts.
-- Row-level security is forced: ratelimit_tenant sees the rows of one tenant, ratelimit_service
-- all (P-36).

-- The highest count of a month that was seen in Valkey. It only grows.
CREATE TABLE monthly_usage (
    deployment_id text NOT NULL,
    month         text NOT NULL CHECK (month ~ '^\d{4}-\d{2}$'),
    tenant_id     text NOT NULL,
    used          bigint NOT NULL CHECK (used >= 0),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment_id, month)
);
CREATE INDEX months_of_usage ON monthly_usage (month);

-- What one process admitted by itself while Valkey was away, since its start. `replayed` of it are
-- in Valkey and in monthly_usage by now; the rest is in neither.
CREATE TABLE local_usage (
    replica_id    text NOT NULL,
    deployment_id text NOT NULL,
    month         text NOT NULL CHECK (month ~ '^\d{4}-\d{2}$'),
    tenant_id     text NOT NULL,
    used          bigint NOT NULL CHECK (used >= 0),
    replayed      bigint NOT NULL DEFAULT 0 CHECK (replayed BETWEEN 0 AND used),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment_id, month, replica_id)
);
CREATE INDEX local_usage_to_replay ON local_usage (month) WHERE replayed < used;

-- The processes that decide, by when they were last seen.
CREATE TABLE replicas (
    replica_id text PRIMARY KEY,
    seen_at    timestamptz NOT NULL
);

ALTER TABLE monthly_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE monthly_usage FORCE ROW LEVEL SECURITY;
ALTER TABLE local_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE local_usage FORCE ROW LEVEL SECURITY;

CREATE POLICY own ON monthly_usage TO ratelimit_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY own ON local_usage TO ratelimit_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
-- One batch is of many tenants, and who counts knows whose deployment it is from the key.
CREATE POLICY every ON monthly_usage TO ratelimit_service USING (true);
CREATE POLICY every ON local_usage TO ratelimit_service USING (true);

GRANT SELECT ON monthly_usage, local_usage TO ratelimit_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON monthly_usage, local_usage, replicas TO ratelimit_service;
