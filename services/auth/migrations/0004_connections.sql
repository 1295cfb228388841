-- contract: after 0003
-- Connections' ids and their keys, and the scopes that come with them.

CREATE TABLE connections (
    connection_id    text PRIMARY KEY,
    tenant_id        text NOT NULL REFERENCES tenants,
    retired_at       timestamptz,
    -- The revocation that ended its keys; null when there was none.
    retired_sequence bigint,
    UNIQUE (tenant_id, connection_id)
);

ALTER TABLE keys
    ADD COLUMN connection_id text,
    -- A key of a connection can be of its own tenant's connection only (P-22).
    ADD FOREIGN KEY (tenant_id, connection_id) REFERENCES connections (tenant_id, connection_id),
    ADD CHECK ((kind = 'connection') = (connection_id IS NOT NULL));
CREATE INDEX keys_of_connection ON keys (connection_id) WHERE connection_id IS NOT NULL;

ALTER TABLE connections ENABLE ROW LEVEL SECURITY;
ALTER TABLE connections FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON connections TO auth_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY every ON connections TO auth_service USING (true);

GRANT SELECT, INSERT ON connections TO auth_tenant;
GRANT UPDATE (retired_at, retired_sequence) ON connections TO auth_tenant;
GRANT SELECT ON connections TO auth_service;
GRANT SELECT (connection_id) ON keys TO auth_tenant;

-- Keys that held every scope of a tenant hold the new ones too, or no tenant of before could ever
-- have a connection. Narrower ones, and those of deployments, get nothing. In order, as a repeated
-- request looks for them.
SET LOCAL ROLE auth_service;
UPDATE keys SET scopes = ARRAY(
        SELECT DISTINCT scope COLLATE "C"
        FROM unnest(scopes || '{connections:write,tokens:read}'::text[]) AS every (scope)
        ORDER BY 1)
    WHERE kind = 'tenant'
    AND scopes @> '{audit:read,db:write,deployments:write,keys:write,tenants:write,usage:read}';
RESET ROLE;
