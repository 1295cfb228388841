-- expand
-- Which host belongs to which deployment. A host is unique across all tenants.
CREATE TABLE routes (
    deployment_id text PRIMARY KEY,
    tenant_id text NOT NULL,
    host text NOT NULL UNIQUE CHECK (host = lower(host)),
    state text NOT NULL CHECK (state IN ('starting', 'running', 'failed')),
    name text NOT NULL,
    mcp boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE routes ENABLE ROW LEVEL SECURITY;
ALTER TABLE routes FORCE ROW LEVEL SECURITY;

CREATE POLICY own_tenant ON routes TO app_proxy_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true))
    WITH CHECK (tenant_id = current_setting('bulkhead.tenant_id', true));

-- The door does not know the tenant before it knows the route.
CREATE POLICY across_tenants ON routes FOR SELECT TO app_proxy_service USING (true);

GRANT SELECT, INSERT, UPDATE, DELETE ON routes TO app_proxy_tenant;
GRANT SELECT ON routes TO app_proxy_service;
