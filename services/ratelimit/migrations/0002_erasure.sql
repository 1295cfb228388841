-- expand
-- What is gone: nothing is counted for it again, whoever still remembers it (P-39).

-- Deployments whose counters are erased. Kept while a replica may still remember counts of them.
CREATE TABLE releases (
    deployment_id text PRIMARY KEY,
    tenant_id     text NOT NULL,
    released_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX releases_by_age ON releases (released_at);

-- The one row that stays of a tenant.
CREATE TABLE tombstones (
    tenant_id   text PRIMARY KEY,
    -- Null while its counters are being erased.
    erased_at   timestamptz,
    deployments bigint NOT NULL DEFAULT 0
);

CREATE INDEX monthly_usage_of_tenant ON monthly_usage (tenant_id);
CREATE INDEX local_usage_of_tenant ON local_usage (tenant_id);

ALTER TABLE releases ENABLE ROW LEVEL SECURITY;
ALTER TABLE releases FORCE ROW LEVEL SECURITY;
ALTER TABLE tombstones ENABLE ROW LEVEL SECURITY;
ALTER TABLE tombstones FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON releases TO ratelimit_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY own ON tombstones TO ratelimit_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY every ON releases TO ratelimit_service USING (true);
CREATE POLICY every ON tombstones TO ratelimit_service USING (true);

GRANT DELETE ON monthly_usage, local_usage TO ratelimit_tenant;
GRANT SELECT, INSERT, DELETE ON releases TO ratelimit_tenant;
GRANT SELECT, INSERT, UPDATE ON tombstones TO ratelimit_tenant;
GRANT SELECT, DELETE ON releases TO ratelimit_service;
GRANT SELECT ON tombstones TO ratelimit_service;
