-- expand
-- Tenants, their deployments' ids, their keys, the revocations and the audit log.
-- Row-level security is forced: auth_tenant sees the rows of one tenant, auth_service all (P-36).

CREATE TABLE tenants (
    tenant_id  text PRIMARY KEY,
    name       text NOT NULL,
    plan       text NOT NULL CHECK (plan IN ('free', 'pro', 'scale')),
    created_by text NOT NULL,
    request_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (created_by, request_id)
);

CREATE TABLE deployments (
    deployment_id text PRIMARY KEY,
    tenant_id     text NOT NULL REFERENCES tenants,
    retired_at    timestamptz,
    UNIQUE (tenant_id, deployment_id)
);

CREATE TABLE keys (
    key_id        text PRIMARY KEY,
    kind          text NOT NULL,
    tenant_id     text REFERENCES tenants,
    deployment_id text,
    -- HMAC-SHA-256 of the SHA-256 of the key; the key itself is nowhere.
    digest        bytea NOT NULL UNIQUE,
    hint          text NOT NULL,
    name          text NOT NULL,
    scopes        text[] NOT NULL,
    -- The only service that may present it.
    bound_peer    text,
    -- Key that issued it, with that caller's id of the request.
    issued_by     text NOT NULL,
    request_id    text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    first_used_at timestamptz,
    revoked_at    timestamptz,
    -- A key of a deployment can be of its own tenant's deployment only.
    FOREIGN KEY (tenant_id, deployment_id) REFERENCES deployments (tenant_id, deployment_id),
    CHECK ((kind = 'operator') = (tenant_id IS NULL)),
    CHECK ((kind = 'deployment') = (deployment_id IS NOT NULL)),
    CHECK ((kind = 'job') = (bound_peer IS NOT NULL)),
    UNIQUE NULLS NOT DISTINCT (tenant_id, request_id)
);
CREATE INDEX keys_of_tenant ON keys (tenant_id, created_at DESC, key_id DESC);
CREATE INDEX keys_of_deployment ON keys (deployment_id) WHERE deployment_id IS NOT NULL;

-- One row: the number of the last revocation. Its lock puts revocations in the order of commit.
CREATE TABLE revocation_sequence (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    sequence bigint NOT NULL
);
INSERT INTO revocation_sequence (sequence) VALUES (0);

CREATE TABLE revocations (
    sequence   bigint PRIMARY KEY,
    key_ids    text[] NOT NULL,
    revoked_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE audit_events (
    event_id  text PRIMARY KEY,
    tenant_id text REFERENCES tenants,
    at        timestamptz NOT NULL DEFAULT now(),
    key_id    text NOT NULL,
    peer      text NOT NULL,
    method    text NOT NULL,
    resources jsonb NOT NULL,
    trace_id  text NOT NULL
);
CREATE INDEX audit_events_of_tenant ON audit_events (tenant_id, at DESC, event_id DESC);

ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenants FORCE ROW LEVEL SECURITY;
ALTER TABLE deployments ENABLE ROW LEVEL SECURITY;
ALTER TABLE deployments FORCE ROW LEVEL SECURITY;
ALTER TABLE keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE keys FORCE ROW LEVEL SECURITY;
ALTER TABLE audit_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_events FORCE ROW LEVEL SECURITY;

CREATE POLICY own ON tenants TO auth_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY own ON deployments TO auth_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY own ON keys TO auth_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY own ON audit_events TO auth_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY every ON tenants TO auth_service USING (true);
CREATE POLICY every ON deployments TO auth_service USING (true);
CREATE POLICY every ON keys TO auth_service USING (true);
CREATE POLICY every ON audit_events TO auth_service USING (true);

GRANT SELECT ON tenants TO auth_tenant;
GRANT SELECT, INSERT ON deployments TO auth_tenant;
GRANT UPDATE (retired_at) ON deployments TO auth_tenant;
-- Not the digest: a tenant's own transaction writes it but never reads it.
GRANT SELECT (key_id, kind, tenant_id, deployment_id, hint, name, scopes, bound_peer, issued_by,
              request_id, created_at, expires_at, first_used_at, revoked_at) ON keys TO auth_tenant;
GRANT INSERT ON keys TO auth_tenant;
GRANT UPDATE (digest, hint, revoked_at) ON keys TO auth_tenant;
GRANT DELETE ON keys TO auth_tenant;
GRANT SELECT, INSERT ON audit_events TO auth_tenant;
GRANT SELECT, UPDATE ON revocation_sequence TO auth_tenant;
GRANT INSERT ON revocations TO auth_tenant;

GRANT SELECT, INSERT ON tenants, audit_events TO auth_service;
GRANT SELECT ON deployments, revocation_sequence TO auth_service;
GRANT UPDATE (sequence) ON revocation_sequence TO auth_service;
GRANT SELECT, INSERT, DELETE ON revocations TO auth_service;
GRANT SELECT, INSERT ON keys TO auth_service;
GRANT UPDATE (digest, hint, scopes, first_used_at, revoked_at) ON keys TO auth_service;
