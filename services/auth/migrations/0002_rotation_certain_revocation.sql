-- expand
-- Rotation, the last use of a key, the end of a tenant, and who watches revocations (P-37).

ALTER TABLE tenants
    ADD COLUMN closed_at timestamptz,
    -- The revocation that ended its keys.
    ADD COLUMN closed_sequence bigint;

-- The revocation that ended its keys; null when there was none.
ALTER TABLE deployments ADD COLUMN retired_sequence bigint;

ALTER TABLE keys
    -- The minute of the last use, written some seconds later.
    ADD COLUMN last_used_at timestamptz,
    ADD COLUMN successor_key_id text,
    -- The key whose place it took, and how long that one was to work on.
    ADD COLUMN predecessor_key_id text,
    ADD COLUMN grace_period interval,
    -- The last revocation that named it.
    ADD COLUMN announced_sequence bigint;

-- Every process that remembers keys. Whoever has a lease may trust what it remembers.
CREATE TABLE revocation_watchers (
    peer         text NOT NULL,
    -- Chosen by the process at random.
    watcher_id   text NOT NULL,
    -- It has forgotten what the revocations up to this one name.
    acknowledged bigint NOT NULL,
    leased_until timestamptz NOT NULL,
    PRIMARY KEY (peer, watcher_id)
) WITH (fillfactor = 50);

CREATE INDEX revocations_by_age ON revocations (revoked_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON revocation_watchers TO auth_service;
GRANT UPDATE (plan, closed_at, closed_sequence) ON tenants TO auth_tenant;
GRANT UPDATE (retired_sequence) ON deployments TO auth_tenant;
GRANT SELECT (last_used_at, successor_key_id, predecessor_key_id, grace_period, announced_sequence)
    ON keys TO auth_tenant;
GRANT UPDATE (expires_at, successor_key_id, announced_sequence) ON keys TO auth_tenant;
GRANT UPDATE (announced_sequence, last_used_at) ON keys TO auth_service;

-- Keys that held every scope of a tenant hold the new one too, or nobody could ever close it.
SET LOCAL ROLE auth_service;
UPDATE keys SET scopes = array_append(array_remove(scopes, 'tenants:read'), 'tenants:write')
    WHERE kind = 'tenant'
    AND scopes @> '{audit:read,db:write,deployments:write,keys:write,tenants:read,usage:read}';
RESET ROLE;
