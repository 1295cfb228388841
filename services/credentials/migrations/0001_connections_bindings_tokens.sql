-- expand
-- Grants of tenants at outside providers, and to which deployments they are lent.
-- Row-level security is forced: credentials_tenant sees the rows of one tenant, credentials_service
-- all (P-36). The bindings are the only join between connections and deployments, and composite
-- foreign keys keep each within one tenant, whoever writes (P-22).

-- AES-256-GCM under the tenant's data key, bound to tenant, table, row and column (P-09). Whatever
-- is encrypted has this type: that is how the tests find every such column.
CREATE DOMAIN sealed AS bytea;
-- A data key under a key-encryption key, bound to tenant and ids.
CREATE DOMAIN wrapped AS bytea;

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
    -- Of the key-encryption key in `wrapped_key`.
    kek_id      text NOT NULL,
    -- No data key is under a key-encryption key that is destroyed, and none is destroyed that a
    -- data key is under, whoever writes and however late they learn of it.
    kek_usable  boolean NOT NULL GENERATED ALWAYS AS (true) STORED,
    wrapped_key wrapped NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    wrapped_at  timestamptz NOT NULL DEFAULT now(),
    -- When it could not be unwrapped to be wrapped anew.
    unreadable_at timestamptz,
    FOREIGN KEY (kek_id, kek_usable) REFERENCES key_encryption_keys (kek_id, usable)
);
CREATE INDEX data_keys_by_kek ON data_keys (kek_id);

-- Deployments that were found to be a tenant's. One deployment, one tenant.
CREATE TABLE deployments (
    deployment_id text PRIMARY KEY,
    tenant_id     text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    -- It is going: nothing is lent to it any more.
    released_at   timestamptz,
    UNIQUE (tenant_id, deployment_id)
);

CREATE TABLE connections (
    connection_id   text PRIMARY KEY,
    tenant_id       text NOT NULL REFERENCES data_keys (tenant_id),
    request_id      text NOT NULL,
    -- A keyed hash of what was asked for: the same request_id with other content is refused.
    request_digest  bytea NOT NULL,
    name            text NOT NULL,
    provider        text NOT NULL,
    kind            text NOT NULL
                    CHECK (kind IN ('static_token', 'api_key', 'client_credentials', 'authorization_code')),
    exclusive       boolean NOT NULL,
    parameters      jsonb NOT NULL DEFAULT '{}',
    state           text NOT NULL
                    CHECK (state IN ('authorizing', 'active', 'needs_reauthorization', 'deleting', 'deleted')),
    state_reason    text,
    state_at        timestamptz NOT NULL DEFAULT now(),
    -- What the provider granted; null as long as nobody knows.
    scopes          text[],
    -- Null: the operator's client at the provider.
    client_id       text,
    sealed_client_secret sealed,
    -- A static token or an API key, as JSON.
    sealed_secret   sealed,
    -- When a static token ends.
    secret_expires_at timestamptz,
    sealed_refresh_token sealed,
    -- Grows with every change of the grant: who read an older one writes nothing.
    generation      bigint NOT NULL DEFAULT 1,
    -- Written before the provider is asked to refresh, and erased with what it answered. Whoever
    -- finds one while holding the connection's lock knows that its refresh was interrupted.
    refresh_attempt text,
    refresh_started_at timestamptz,
    -- How often in a row it could not be refreshed, and when it may be tried again.
    refresh_failures integer NOT NULL DEFAULT 0,
    next_refresh_at timestamptz,
    -- The minute of the last vend.
    last_vended_at  timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    -- What became of the grant at the provider when it was deleted, and what to do about it.
    revocation      text CHECK (revocation IN ('revoked', 'nothing', 'unsupported', 'failed')),
    revocation_advice text NOT NULL DEFAULT '',
    bindings_ended  integer NOT NULL DEFAULT 0,
    UNIQUE (tenant_id, request_id),
    UNIQUE (tenant_id, connection_id),
    UNIQUE (tenant_id, connection_id, exclusive),
    CHECK ((state = 'needs_reauthorization') = (state_reason IS NOT NULL)),
    CHECK ((refresh_attempt IS NULL) = (refresh_started_at IS NULL)),
    CHECK (state <> 'deleted' OR coalesce(sealed_client_secret, sealed_secret, sealed_refresh_token) IS NULL)
);
CREATE INDEX connections_of_tenant ON connections (tenant_id, created_at DESC, connection_id DESC)
    WHERE state <> 'deleted';

-- Access tokens at hand, one for each set of scopes that a ceiling asks for.
CREATE TABLE access_tokens (
    connection_id text NOT NULL,
    -- '' is all that was granted; else the scopes, sorted, with a space between.
    scope_key     text NOT NULL,
    tenant_id     text NOT NULL,
    sealed_token  sealed NOT NULL,
    token_type    text NOT NULL,
    -- By the clock of this database, as every time here; null: it does not expire.
    expires_at    timestamptz,
    issued_at     timestamptz NOT NULL DEFAULT now(),
    scopes        text[],
    -- The minute of the last vend of it or of one before it: what is in use is refreshed ahead.
    last_vended_at timestamptz,
    PRIMARY KEY (connection_id, scope_key),
    FOREIGN KEY (tenant_id, connection_id) REFERENCES connections (tenant_id, connection_id)
);
CREATE INDEX access_tokens_expiring ON access_tokens (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX access_tokens_in_use ON access_tokens (last_vended_at) WHERE expires_at IS NOT NULL;

CREATE TABLE bindings (
    binding_id    text PRIMARY KEY,
    tenant_id     text NOT NULL,
    deployment_id text NOT NULL,
    connection_id text NOT NULL,
    -- The connection's, kept equal by the foreign key.
    exclusive     boolean NOT NULL,
    alias         text NOT NULL CHECK (alias ~ '^[a-z][a-z0-9_-]{0,62}$'),
    -- Empty: no ceiling.
    scope_ceiling text[] NOT NULL DEFAULT '{}',
    expires_at    timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (deployment_id, alias),
    FOREIGN KEY (tenant_id, deployment_id) REFERENCES deployments (tenant_id, deployment_id),
    FOREIGN KEY (tenant_id, connection_id, exclusive)
        REFERENCES connections (tenant_id, connection_id, exclusive) ON UPDATE CASCADE
);
CREATE UNIQUE INDEX bindings_exclusive ON bindings (connection_id) WHERE exclusive;
CREATE INDEX bindings_of_connection ON bindings (connection_id);
CREATE INDEX bindings_of_tenant ON bindings (tenant_id, created_at DESC, binding_id DESC);

-- Authorization code flows under way. The state itself is nowhere stored, and works once, whatever
-- comes of it: whoever uses it takes the row away.
CREATE TABLE authorizations (
    authorization_id text PRIMARY KEY,
    tenant_id        text NOT NULL,
    connection_id    text NOT NULL,
    request_id       text NOT NULL,
    request_digest   bytea NOT NULL,
    -- The key that began it, and its SHA-256, by which auth knows whether it is still valid.
    key_id           text NOT NULL,
    sealed_key_digest sealed NOT NULL,
    -- Who the person at the redirect is told will have the grant.
    beneficiary      text NOT NULL,
    -- SHA-256 of 256 random bits.
    state_digest     bytea NOT NULL UNIQUE,
    -- Of PKCE (RFC 7636).
    sealed_verifier  sealed NOT NULL,
    client_id        text,
    sealed_client_secret sealed,
    scopes           text[] NOT NULL,
    redirect_url     text NOT NULL,
    -- The redirect is the front door's, which completes it; else its caller does.
    at_door          boolean NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    expires_at       timestamptz NOT NULL,
    UNIQUE (tenant_id, request_id),
    FOREIGN KEY (tenant_id, connection_id) REFERENCES connections (tenant_id, connection_id)
);
CREATE INDEX authorizations_of_connection ON authorizations (connection_id);
CREATE INDEX authorizations_by_end ON authorizations (expires_at);

CREATE TABLE webhooks (
    tenant_id     text PRIMARY KEY REFERENCES data_keys (tenant_id),
    url           text NOT NULL,
    sealed_secret sealed NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    last_delivery_at timestamptz,
    last_failure  text NOT NULL DEFAULT ''
);

-- What a tenant is yet to be told; a row goes when it was delivered, or when that was tried for too
-- long.
CREATE TABLE webhook_events (
    event_id      text PRIMARY KEY,
    tenant_id     text NOT NULL REFERENCES webhooks (tenant_id) ON DELETE CASCADE,
    kind          text NOT NULL,
    body          jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    tries         integer NOT NULL DEFAULT 0,
    next_try_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhook_events_due ON webhook_events (next_try_at);
CREATE INDEX webhook_events_of_tenant ON webhook_events (tenant_id);

-- What EraseTenant could and could not do: the last row that stays of a tenant.
CREATE TABLE erasures (
    tenant_id text PRIMARY KEY,
    erased_at timestamptz,
    receipt   jsonb NOT NULL DEFAULT '{}'
);

-- Nothing comes to be of a tenant that is erased, whoever writes. An erasure begins with the same
-- lock, held alone: whoever was faster has committed by then, and is erased with the rest.
CREATE FUNCTION refuse_erased() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('erasure ' || NEW.tenant_id, 0));
    IF EXISTS (SELECT FROM erasures WHERE tenant_id = NEW.tenant_id) THEN
        RAISE EXCEPTION 'the tenant is erased' USING ERRCODE = 'BH410';
    END IF;
    RETURN NEW;
END $$;
DO $$
DECLARE
    own text;
BEGIN
    FOREACH own IN ARRAY ARRAY['data_keys', 'deployments', 'connections', 'bindings', 'authorizations',
                               'webhooks'] LOOP
        EXECUTE format('CREATE TRIGGER refuse_erased BEFORE INSERT ON %I'
                       ' FOR EACH ROW EXECUTE FUNCTION refuse_erased()', own);
    END LOOP;
END $$;

-- Whoever changes a connection's state, the tenant is told: no path can forget it.
CREATE FUNCTION report_connection_state() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO webhook_events (event_id, tenant_id, kind, body)
    SELECT 'whe_' || replace(gen_random_uuid()::text, '-', ''), NEW.tenant_id,
           CASE NEW.state WHEN 'active' THEN 'connection.restored' ELSE 'connection.broken' END,
           jsonb_build_object(
               'connection_id', NEW.connection_id, 'name', NEW.name, 'provider', NEW.provider,
               'state', NEW.state, 'state_reason', NEW.state_reason)
    FROM webhooks WHERE tenant_id = NEW.tenant_id;
    RETURN NULL;
END $$;
CREATE TRIGGER report_connection_broken AFTER UPDATE OF state ON connections
    FOR EACH ROW WHEN (NEW.state = 'needs_reauthorization' AND OLD.state <> NEW.state)
    EXECUTE FUNCTION report_connection_state();
CREATE TRIGGER report_connection_restored AFTER UPDATE OF state ON connections
    FOR EACH ROW WHEN (NEW.state = 'active' AND OLD.state = 'needs_reauthorization')
    EXECUTE FUNCTION report_connection_state();

DO $$
DECLARE
    own text;
BEGIN
    FOREACH own IN ARRAY ARRAY['data_keys', 'deployments', 'connections', 'access_tokens', 'bindings',
                               'authorizations', 'webhooks', 'webhook_events', 'erasures'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', own);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', own);
        EXECUTE format('CREATE POLICY own_rows ON %I TO credentials_tenant'
                       ' USING (tenant_id = current_setting(''bulkhead.tenant_id'', true))', own);
        EXECUTE format('CREATE POLICY all_rows ON %I TO credentials_service USING (true)', own);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I'
                       ' TO credentials_tenant, credentials_service', own);
    END LOOP;
END $$;

-- Tenants may name the key that their data key is under, and neither read nor change any.
ALTER TABLE key_encryption_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE key_encryption_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY named_rows ON key_encryption_keys FOR INSERT TO credentials_tenant
    WITH CHECK (usable AND chosen_at IS NULL);
CREATE POLICY all_rows ON key_encryption_keys TO credentials_service USING (true);
GRANT INSERT (kek_id) ON key_encryption_keys TO credentials_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON key_encryption_keys TO credentials_service;
