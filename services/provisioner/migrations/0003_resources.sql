-- contract: after 0002
-- Deployments in full: what each is made of and how that is, its secrets, its backups, and what stays of
-- tenants that were deleted.

CREATE DOMAIN sealed AS bytea;
CREATE DOMAIN wrapped AS bytea;

ALTER TABLE deployments
    ADD COLUMN bucket boolean NOT NULL DEFAULT false,
    ADD COLUMN bootstrap_admin boolean NOT NULL DEFAULT false,
    -- How much the database may hold.
    ADD COLUMN storage_bytes bigint NOT NULL DEFAULT 1073741824 CHECK (storage_bytes > 0),
    -- How long the database is awake without use; zero: always.
    ADD COLUMN idle_seconds double precision NOT NULL DEFAULT 300 CHECK (idle_seconds >= 0),
    -- Where the database came from: another one, or one of its backups.
    ADD COLUMN source_deployment_id text,
    ADD COLUMN source_backup_id text,
    -- Where whoever has a connection string is listened to; `database_port` is the server's own.
    ADD COLUMN listener_port integer UNIQUE,
    -- Logins of this generation and before open nothing any more.
    ADD COLUMN closed_generation integer NOT NULL DEFAULT 0,
    ADD COLUMN suspended_at timestamptz,
    DROP CONSTRAINT deployments_state_check,
    ADD CONSTRAINT deployments_state_check
        CHECK (state IN ('creating', 'ready', 'failed', 'suspended', 'deleting', 'deleted')),
    ADD CHECK (closed_generation < generation),
    ADD CHECK (state <> 'suspended' OR suspended_at IS NOT NULL);

ALTER TABLE operations
    -- The caller's id of the request, where the method has one.
    ADD COLUMN request_id text,
    -- What it is to do, beyond its kind.
    ADD COLUMN parameters jsonb NOT NULL DEFAULT '{}',
    -- When the key that it acts with is to be replaced by a new one, well before it ends.
    ADD COLUMN key_renew_at timestamptz,
    DROP CONSTRAINT operations_kind_check,
    ADD CONSTRAINT operations_kind_check
        CHECK (kind IN ('create', 'delete', 'suspend', 'resume', 'rotate', 'back_up')),
    DROP CONSTRAINT operations_deployment_id_kind_key;
CREATE UNIQUE INDEX operations_once ON operations (deployment_id, kind) WHERE kind IN ('create', 'delete');
CREATE UNIQUE INDEX operations_of_request ON operations (tenant_id, kind, request_id)
    WHERE request_id IS NOT NULL;
-- One thing at a time is done with a deployment; only the wait for the passwords of before to end goes
-- on beside others.
CREATE UNIQUE INDEX operations_alone ON operations (deployment_id)
    WHERE state = 'running' AND NOT (kind = 'rotate' AND step IN ('overlapping', 'ending'));
CREATE UNIQUE INDEX rotations_alone ON operations (deployment_id) WHERE state = 'running' AND kind = 'rotate';
CREATE INDEX operations_of_deployment ON operations (deployment_id, created_at DESC);

-- What a deployment is made of.
CREATE TABLE resources (
    deployment_id text NOT NULL,
    tenant_id     text NOT NULL,
    kind          text NOT NULL
                  CHECK (kind IN ('keys', 'route', 'loans', 'counters', 'database', 'bucket', 'secrets', 'backups')),
    state         text NOT NULL
                  CHECK (state IN ('pending', 'ready', 'sleeping', 'suspended', 'degraded', 'lost', 'going', 'gone')),
    reason        text NOT NULL DEFAULT '',
    since         timestamptz NOT NULL DEFAULT now(),
    used_bytes    bigint,
    over_quota    boolean NOT NULL DEFAULT false,
    measured_at   timestamptz,
    -- Of its end, in the order in which they come.
    access_revoked_at   timestamptz,
    destroyed_at        timestamptz,
    verified_gone_at    timestamptz,
    -- Set where a provider keeps what was destroyed for a while.
    unrecoverable_after timestamptz,
    -- What its end is told with: how many there were, what could not be revoked.
    details       jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (deployment_id, kind),
    FOREIGN KEY (tenant_id, deployment_id) REFERENCES deployments (tenant_id, deployment_id) ON DELETE CASCADE,
    CHECK (state <> 'gone' OR verified_gone_at IS NOT NULL)
);

-- Key-encryption keys that were used here; what they are, only their holder knows.
CREATE TABLE key_encryption_keys (
    kek_id     text PRIMARY KEY,
    -- Not once it is destroyed, or about to be.
    usable     boolean NOT NULL DEFAULT true,
    -- When a rotation named it: the last one that was is what data keys are wrapped under anew.
    chosen_at  timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (kek_id, usable)
);

-- One data key a tenant. Without its row nothing of the tenant can be decrypted.
CREATE TABLE data_keys (
    tenant_id   text PRIMARY KEY,
    data_key_id text NOT NULL UNIQUE,
    kek_id      text NOT NULL,
    -- No data key is under a key-encryption key that is destroyed, and none is destroyed that a data key is
    -- under, whoever writes and however late they learn of it.
    kek_usable  boolean NOT NULL GENERATED ALWAYS AS (true) STORED,
    wrapped_key wrapped NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    wrapped_at  timestamptz NOT NULL DEFAULT now(),
    -- When it could not be unwrapped to be wrapped anew.
    unreadable_at timestamptz,
    FOREIGN KEY (kek_id, kek_usable) REFERENCES key_encryption_keys (kek_id, usable)
);
CREATE INDEX data_keys_by_kek ON data_keys (kek_id);

CREATE TABLE secrets (
    deployment_id text NOT NULL,
    tenant_id     text NOT NULL REFERENCES data_keys (tenant_id),
    name          text NOT NULL,
    sealed_value  sealed NOT NULL,
    generated     boolean NOT NULL,
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment_id, name),
    FOREIGN KEY (tenant_id, deployment_id) REFERENCES deployments (tenant_id, deployment_id)
);

CREATE TABLE bootstrap_admins (
    deployment_id text PRIMARY KEY,
    tenant_id     text NOT NULL REFERENCES data_keys (tenant_id),
    user_name     text NOT NULL,
    -- Null once it was shown.
    sealed_password sealed,
    -- What the deployment's own program checks it by.
    password_hash text NOT NULL,
    revealed_at   timestamptz,
    FOREIGN KEY (tenant_id, deployment_id) REFERENCES deployments (tenant_id, deployment_id),
    CHECK ((revealed_at IS NULL) = (sealed_password IS NOT NULL))
);

CREATE TABLE backups (
    backup_id     text PRIMARY KEY,
    tenant_id     text NOT NULL,
    deployment_id text NOT NULL,
    target        text NOT NULL CHECK (target IN ('file', 'bucket')),
    -- One that is gone leaves its row, so that deleting it again finds it.
    state         text NOT NULL CHECK (state IN ('running', 'ready', 'failed', 'going', 'gone')),
    size_bytes    bigint NOT NULL DEFAULT 0,
    message       text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (tenant_id, deployment_id) REFERENCES deployments (tenant_id, deployment_id)
);
CREATE INDEX backups_of_deployment ON backups (deployment_id, created_at DESC, backup_id DESC);
CREATE INDEX backups_unsettled ON backups (state) WHERE state IN ('running', 'going');

-- What a deployment's deletion ended in. The token that opens it is kept as its SHA-256.
CREATE TABLE certificates (
    operation_id  text PRIMARY KEY,
    tenant_id     text NOT NULL,
    deployment_id text NOT NULL,
    token_digest  bytea NOT NULL UNIQUE,
    -- A JWS; null until everything is verified to be gone.
    certificate   text,
    issued_at     timestamptz
);

-- A tenant that is being deleted, or was: the one row that stays of it.
CREATE TABLE tombstones (
    tenant_id     text PRIMARY KEY,
    operation_id  text NOT NULL UNIQUE,
    token_digest  bytea NOT NULL UNIQUE,
    state         text NOT NULL CHECK (state IN ('running', 'succeeded')),
    step          text NOT NULL,
    retries       integer NOT NULL DEFAULT 0,
    message       text NOT NULL DEFAULT '',
    requested_at  timestamptz NOT NULL DEFAULT now(),
    next_try_at   timestamptz NOT NULL DEFAULT now(),
    -- The key it acts with, and when that is to be replaced; gone when it has ended.
    sealed_key    bytea,
    key_renew_at  timestamptz,
    -- What the certificate will say, as far as it is known.
    evidence      jsonb NOT NULL DEFAULT '{}',
    certificate   text,
    ended_at      timestamptz,
    CHECK ((state = 'running') = (ended_at IS NULL)),
    CHECK ((state = 'running') = (sealed_key IS NOT NULL)),
    CHECK ((state = 'running') = (certificate IS NULL))
);
CREATE INDEX tombstones_running ON tombstones (next_try_at) WHERE state = 'running';

-- Nothing comes to be of a tenant that is deleted, whoever writes. A deletion begins with the same lock,
-- held alone: whoever was faster has committed by then, and is deleted with the rest.
CREATE FUNCTION refuse_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('tombstone ' || NEW.tenant_id, 0));
    IF EXISTS (SELECT FROM tombstones WHERE tenant_id = NEW.tenant_id) THEN
        RAISE EXCEPTION 'the tenant is deleted' USING ERRCODE = 'BH410';
    END IF;
    RETURN NEW;
END $$;
DO $$
DECLARE
    own text;
BEGIN
    FOREACH own IN ARRAY ARRAY['deployments', 'data_keys', 'secrets', 'bootstrap_admins', 'backups'] LOOP
        EXECUTE format('CREATE TRIGGER refuse_deleted BEFORE INSERT ON %I'
                       ' FOR EACH ROW EXECUTE FUNCTION refuse_deleted()', own);
    END LOOP;
END $$;

-- Whoever waits for an operation is told of what it does to resources, too.
CREATE FUNCTION resource_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('operations', NEW.deployment_id);
    RETURN NULL;
END $$;
CREATE TRIGGER resource_changed AFTER UPDATE OF state ON resources
    FOR EACH ROW EXECUTE FUNCTION resource_changed();

DO $$
DECLARE
    own text;
BEGIN
    FOREACH own IN ARRAY ARRAY['resources', 'data_keys', 'secrets', 'bootstrap_admins', 'backups', 'certificates',
                               'tombstones'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', own);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', own);
        EXECUTE format('CREATE POLICY own_rows ON %I TO provisioner_tenant'
                       ' USING (tenant_id = current_setting(''bulkhead.tenant_id'', true))', own);
        EXECUTE format('CREATE POLICY all_rows ON %I TO provisioner_service USING (true)', own);
    END LOOP;
    FOREACH own IN ARRAY ARRAY['resources', 'data_keys', 'secrets', 'bootstrap_admins', 'backups', 'certificates'] LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO provisioner_tenant, provisioner_service', own);
    END LOOP;
END $$;
-- The tenant's own transactions begin a deletion, and never open its key.
GRANT SELECT (tenant_id, operation_id, token_digest, state, step, retries, message, requested_at, next_try_at,
              key_renew_at, evidence, certificate, ended_at),
    INSERT, UPDATE ON tombstones TO provisioner_tenant;
GRANT SELECT, INSERT, UPDATE ON tombstones TO provisioner_service;
GRANT INSERT (kek_id) ON key_encryption_keys TO provisioner_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON key_encryption_keys TO provisioner_service;
GRANT SELECT (request_id, parameters, key_renew_at) ON operations TO provisioner_tenant;
GRANT DELETE ON deployments, operations TO provisioner_service;

-- What was made before has resources too.
SET LOCAL ROLE provisioner_service;
INSERT INTO resources (deployment_id, tenant_id, kind, state)
    SELECT deployment_id, tenant_id, kind, CASE state WHEN 'ready' THEN 'ready' ELSE 'pending' END
    FROM deployments CROSS JOIN unnest(ARRAY['keys', 'route', 'loans', 'counters', 'database']) AS kind
    WHERE state <> 'deleted' AND (database OR kind <> 'database');
RESET ROLE;
