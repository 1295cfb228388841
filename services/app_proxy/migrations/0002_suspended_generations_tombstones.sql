-- contract: after 0001
-- Suspended deployments, the generation of a database's passwords, and the end of a tenant.

ALTER TABLE routes
    DROP CONSTRAINT routes_state_check,
    ADD CONSTRAINT routes_state_check
        CHECK (state IN ('starting', 'running', 'failed', 'suspended')),
    ADD COLUMN database_generation bigint NOT NULL DEFAULT 0 CHECK (database_generation >= 0);
CREATE INDEX routes_of_tenant ON routes (tenant_id);

-- The one row that stays of a tenant.
CREATE TABLE tombstones (
    tenant_id text PRIMARY KEY,
    erased_at timestamptz NOT NULL DEFAULT now(),
    routes    integer NOT NULL DEFAULT 0
);

ALTER TABLE tombstones ENABLE ROW LEVEL SECURITY;
ALTER TABLE tombstones FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON tombstones TO app_proxy_tenant
    USING (tenant_id = current_setting('bulkhead.tenant_id', true));
GRANT SELECT, INSERT, UPDATE ON tombstones TO app_proxy_tenant;

-- No route comes to be of a tenant that is erased, whoever writes. An erasure begins with the same
-- lock, held alone: whoever was faster has committed by then, and is erased with the rest.
CREATE FUNCTION refuse_erased() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('erasure ' || NEW.tenant_id, 0));
    IF EXISTS (SELECT FROM tombstones WHERE tenant_id = NEW.tenant_id) THEN
        RAISE EXCEPTION 'the tenant is erased' USING ERRCODE = 'BH410';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_erased BEFORE INSERT OR UPDATE ON routes
    FOR EACH ROW EXECUTE FUNCTION refuse_erased();
