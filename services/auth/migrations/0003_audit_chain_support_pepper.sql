-- contract: after 0002
-- The audit log as a chain per tenant, what support keys say about themselves, and the id of the
-- pepper under which a key is stored. docs/audit.md says what is hashed.

ALTER TABLE audit_events
    ADD COLUMN reason        text NOT NULL DEFAULT '',
    ADD COLUMN sequence      bigint,
    ADD COLUMN previous_hash bytea,
    ADD COLUMN hash          bytea;

-- The last event of each chain. Its row is locked by whoever adds one, so that none has two
-- successors. Only the trigger below writes it: nobody is granted that.
CREATE TABLE audit_chains (
    chain     text PRIMARY KEY GENERATED ALWAYS AS (coalesce(tenant_id, 'operator')) STORED,
    tenant_id text REFERENCES tenants,
    sequence  bigint NOT NULL DEFAULT 0,
    hash      bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    at        timestamptz NOT NULL DEFAULT '-infinity'
);

CREATE FUNCTION audit_field(value bytea) RETURNS bytea LANGUAGE sql IMMUTABLE
    RETURN int4send(octet_length(value)) || value;

CREATE FUNCTION audit_field(value text) RETURNS bytea LANGUAGE sql IMMUTABLE
    RETURN audit_field(convert_to(value, 'UTF8'));

CREATE FUNCTION audit_resources(resources jsonb) RETURNS bytea LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT audit_field(count(*)::text)
           || coalesce(string_agg(audit_field(key) || audit_field(value), ''::bytea
                                  ORDER BY convert_to(key, 'UTF8')), ''::bytea)
    FROM jsonb_each_text(resources);
END;

CREATE FUNCTION audit_hash(event audit_events) RETURNS bytea LANGUAGE sql STABLE
    RETURN sha256(
        audit_field('bulkhead.audit.v1')
        || audit_field((event).previous_hash)
        || audit_field((event).sequence::text)
        || audit_field((event).event_id)
        || audit_field(floor(extract(epoch FROM (event).at))::bigint::text)
        || audit_field((mod(extract(epoch FROM (event).at) * 1000000, 1000000)::bigint * 1000)::text)
        || audit_field((event).key_id)
        || audit_field((event).peer)
        || audit_field((event).method)
        || audit_field((event).trace_id)
        || audit_field((event).reason)
        || audit_resources((event).resources));

-- As the owner, so that who may add an event may still not touch the head.
CREATE FUNCTION chain_audit_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    own CONSTANT text := coalesce(NEW.tenant_id, 'operator');
    head audit_chains;
BEGIN
    SELECT * INTO head FROM audit_chains WHERE chain = own FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO audit_chains (tenant_id) VALUES (NEW.tenant_id) ON CONFLICT DO NOTHING;
        SELECT * INTO STRICT head FROM audit_chains WHERE chain = own FOR UPDATE;
    END IF;
    NEW.sequence := head.sequence + 1;
    NEW.previous_hash := head.hash;
    -- One clock for all replicas, and never back.
    NEW.at := greatest(clock_timestamp(), head.at);
    NEW.hash := audit_hash(NEW);
    UPDATE audit_chains SET sequence = NEW.sequence, hash = NEW.hash, at = NEW.at WHERE chain = own;
    RETURN NEW;
END $$;

-- What was recorded before there were chains. The owner must see the rows of all for once.
ALTER TABLE audit_events NO FORCE ROW LEVEL SECURITY;
DO $$
DECLARE
    event audit_events;
    before audit_events;
BEGIN
    FOR event IN SELECT * FROM audit_events ORDER BY tenant_id, at, event_id LOOP
        IF before.event_id IS NOT NULL AND before.tenant_id IS NOT DISTINCT FROM event.tenant_id THEN
            event.sequence := before.sequence + 1;
            event.previous_hash := before.hash;
        ELSE
            event.sequence := 1;
            event.previous_hash := decode(repeat('00', 32), 'hex');
        END IF;
        event.hash := audit_hash(event);
        UPDATE audit_events SET sequence = event.sequence, previous_hash = event.previous_hash,
                                hash = event.hash
            WHERE event_id = event.event_id;
        before := event;
    END LOOP;
END $$;
INSERT INTO audit_chains (tenant_id, sequence, hash, at)
    SELECT DISTINCT ON (tenant_id) tenant_id, sequence, hash, at FROM audit_events
    ORDER BY tenant_id, sequence DESC;
ALTER TABLE audit_events FORCE ROW LEVEL SECURITY;

DROP INDEX audit_events_of_tenant;
ALTER TABLE audit_events
    ALTER COLUMN sequence SET NOT NULL,
    ALTER COLUMN previous_hash SET NOT NULL,
    ALTER COLUMN hash SET NOT NULL,
    ADD CONSTRAINT audit_events_of_chain UNIQUE NULLS NOT DISTINCT (tenant_id, sequence);

CREATE TRIGGER chained BEFORE INSERT ON audit_events
    FOR EACH ROW EXECUTE FUNCTION chain_audit_event();

-- Statement triggers: they refuse whoever asks, the owner too, also when no row is concerned.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE DELETE OR TRUNCATE ON audit_chains
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER only_by_an_event BEFORE INSERT OR UPDATE ON audit_chains
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_change();

ALTER TABLE audit_chains ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_chains FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON audit_chains TO auth_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
CREATE POLICY every ON audit_chains TO auth_service USING (true);
-- The owner sees heads inside the trigger alone.
CREATE POLICY chaining ON audit_chains TO CURRENT_USER USING (pg_trigger_depth() > 0);

GRANT SELECT ON audit_chains TO auth_tenant, auth_service;
-- Not the columns that the chain fills. `at` is filled too, and here for replicas that still send it.
REVOKE INSERT ON audit_events FROM auth_tenant, auth_service;
GRANT INSERT (event_id, tenant_id, at, key_id, peer, method, resources, trace_id, reason)
    ON audit_events TO auth_tenant, auth_service;

ALTER TABLE keys
    -- Why the operator gave itself this key; null for the tenant's own.
    ADD COLUMN support_reason text,
    -- Of the pepper in `digest`; null until it is known.
    ADD COLUMN pepper_id text;
CREATE INDEX keys_without_pepper ON keys (key_id) WHERE pepper_id IS NULL;
GRANT SELECT (support_reason) ON keys TO auth_tenant;
GRANT UPDATE (pepper_id) ON keys TO auth_tenant, auth_service;
-- A support key is made across the wall, by the operator; the tenant is held open meanwhile.
GRANT UPDATE (support_reason, expires_at) ON keys TO auth_service;
GRANT UPDATE (closed_at) ON tenants TO auth_service;
