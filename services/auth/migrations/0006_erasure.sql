-- contract: after 0005
-- The end of a closed tenant: every row of it goes at once, and a tombstone stays (P-39).
-- And the scopes that come with secrets.

CREATE TABLE tombstones (
    tenant_id    text PRIMARY KEY,
    erased_at    timestamptz NOT NULL DEFAULT now(),
    -- The revocation that ended its last keys.
    sequence     bigint,
    keys         bigint NOT NULL DEFAULT 0,
    deployments  bigint NOT NULL DEFAULT 0,
    connections  bigint NOT NULL DEFAULT 0,
    audit_events bigint NOT NULL DEFAULT 0,
    -- The key of the job that asked. It opens what it did until it expires, so that who lost the
    -- answer can ask again; then this is forgotten too.
    key_id       text,
    digest       bytea UNIQUE,
    scopes       text[],
    bound_peer   text,
    expires_at   timestamptz
);
CREATE INDEX tombstones_with_key ON tombstones (expires_at) WHERE expires_at IS NOT NULL;

ALTER TABLE tombstones ENABLE ROW LEVEL SECURITY;
ALTER TABLE tombstones FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON tombstones TO auth_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY every ON tombstones TO auth_service USING (true);

-- As the owner, since nobody else may delete what the audit log has; and the owner sees what is the
-- erased tenant's, in here alone. The chain is locked before the tenant, as whoever adds an event
-- does it, so that neither waits for the other for ever.
CREATE FUNCTION erase_tenant() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM FROM audit_chains WHERE tenant_id = NEW.tenant_id FOR UPDATE;
    PERFORM FROM tenants WHERE tenant_id = NEW.tenant_id AND closed_at IS NOT NULL FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'only a closed tenant is erased' USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT digest, scopes, bound_peer, expires_at
        INTO NEW.digest, NEW.scopes, NEW.bound_peer, NEW.expires_at
        FROM keys WHERE tenant_id = NEW.tenant_id AND key_id = NEW.key_id AND kind = 'job';
    DELETE FROM keys WHERE tenant_id = NEW.tenant_id;
    GET DIAGNOSTICS NEW.keys = ROW_COUNT;
    DELETE FROM deployments WHERE tenant_id = NEW.tenant_id;
    GET DIAGNOSTICS NEW.deployments = ROW_COUNT;
    DELETE FROM connections WHERE tenant_id = NEW.tenant_id;
    GET DIAGNOSTICS NEW.connections = ROW_COUNT;
    DELETE FROM audit_events WHERE tenant_id = NEW.tenant_id;
    GET DIAGNOSTICS NEW.audit_events = ROW_COUNT;
    DELETE FROM audit_chains WHERE tenant_id = NEW.tenant_id;
    DELETE FROM tenants WHERE tenant_id = NEW.tenant_id;
    RETURN NEW;
END $$;
CREATE TRIGGER erasing BEFORE INSERT ON tombstones
    FOR EACH ROW EXECUTE FUNCTION erase_tenant();

DO $$
DECLARE
    own text;
BEGIN
    FOREACH own IN ARRAY ARRAY['tenants', 'keys', 'deployments', 'connections', 'audit_events',
                               'audit_chains'] LOOP
        EXECUTE format('CREATE POLICY erasing ON %I TO CURRENT_USER USING (pg_trigger_depth() > 0'
                       ' AND tenant_id = current_setting(''bulkhead.tenant_id'', true))', own);
    END LOOP;
END $$;

-- Append-only still, whoever asks, but for the end of the whole log with its tenant.
DROP TRIGGER append_only ON audit_events;
CREATE TRIGGER append_only BEFORE UPDATE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER only_with_its_tenant BEFORE DELETE ON audit_events
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_change();
DROP TRIGGER append_only ON audit_chains;
CREATE TRIGGER append_only BEFORE TRUNCATE ON audit_chains
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER only_with_its_tenant BEFORE DELETE ON audit_chains
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_change();

GRANT SELECT (tenant_id, erased_at, sequence, keys, deployments, connections, audit_events)
    ON tombstones TO auth_tenant;
GRANT INSERT (tenant_id, key_id), UPDATE (sequence) ON tombstones TO auth_tenant;
GRANT SELECT ON tombstones TO auth_service;
GRANT UPDATE (key_id, digest, scopes, bound_peer, expires_at) ON tombstones TO auth_service;

-- Keys that held every scope of a tenant hold the new ones too. Narrower ones, and those of
-- deployments, get nothing. In order, as a repeated request looks for them.
SET LOCAL ROLE auth_service;
UPDATE keys SET scopes = ARRAY(
        SELECT DISTINCT scope COLLATE "C"
        FROM unnest(scopes || '{environment:read,secrets:write}'::text[]) AS every (scope)
        ORDER BY 1)
    WHERE kind = 'tenant'
    AND scopes @> '{audit:read,connections:write,db:write,deployments:write,keys:write,tenants:write,
                    tokens:read,usage:read}';
RESET ROLE;
