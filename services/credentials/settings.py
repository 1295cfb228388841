"""Settings of credentials."""

from pathlib import Path

from pydantic import Field

from services.shared.keyring.settings import KeyringSettings
from services.shared.settings import LOCAL_PKI, LOCAL_STATE, PostgresSettings, ServiceSettings


class Settings(ServiceSettings, PostgresSettings, KeyringSettings):
    """Read from `BULKHEAD_*`."""

    listen: str = "127.0.0.1:7105"
    tls_cert_file: Path = LOCAL_PKI / "credentials.pem"
    tls_key_file: Path = LOCAL_PKI / "credentials.key"
    postgres_database: str = "credentials"
    postgres_user: str = "credentials"
    postgres_password_file: Path | None = LOCAL_STATE / "postgres/credentials.password"
    # Refreshes under way in this process, each with a connection for its lock.
    refresh_pool_size: int = Field(default=16, ge=2)

    # Where providers lead people back to: the front door, as browsers reach it.
    redirect_url: str = "http://localhost:8080/oauth/callback"
    # More providers, a YAML file each, beside those that come with the service.
    providers_folder: Path | None = None
    # 0600; the operator's own OAuth clients: YAML, `provider: {client_id: …, client_secret: …}`.
    oauth_clients_file: Path | None = None
    # Whether providers and webhooks may be at private and loopback addresses, and in plaintext. For
    # a laptop and for tests: a tenant could make the service call what only the mesh should reach.
    allow_private_targets: bool = False
    # How long a provider may take to answer.
    provider_timeout_seconds: float = Field(default=15.0, gt=0, le=60)
    # How long a webhook's receiver may take to answer, and how soon a report that failed is tried
    # again; each time after that takes longer.
    webhook_timeout_seconds: float = Field(default=10.0, gt=0, le=60)
    webhook_retry_seconds: float = Field(default=5.0, gt=0)
    # How often it is looked whether there is anything to tell.
    webhook_poll_seconds: float = Field(default=1.0, gt=0)
    # How long after a refresh was interrupted the provider may still be at it: no sooner is it
    # asked again.
    refresh_settle_seconds: float = Field(default=30.0, ge=0)
    # How long a person has to allow an authorization.
    authorization_seconds: float = Field(default=900.0, ge=1, le=3_600)

    connections_per_tenant: int = Field(default=1_000, ge=1)
    bindings_per_deployment: int = Field(default=100, ge=1)
