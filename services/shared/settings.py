"""Settings that every service has; each reads `BULKHEAD_*` once, at start."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

# Where the embedded stack keeps the files of a service; each service names its own below it.
LOCAL_STATE = Path(".bulkhead")
LOCAL_PKI = LOCAL_STATE / "pki"


class Environment(BaseSettings):
    """Settings out of `BULKHEAD_*`; what a service does not know is another's."""

    model_config = SettingsConfigDict(env_prefix="BULKHEAD_", extra="ignore")


class TelemetrySettings(Environment):
    """Where spans and metrics go; with neither of the addresses nothing is recorded, at no cost."""

    # Receiver of OTLP over gRPC, as host:port, for traces and metrics; empty: none.
    otlp_endpoint: str = ""
    # Part of the traces that is kept, of those that begin here; what began elsewhere is kept where
    # that was decided.
    otlp_sampling: float = Field(default=1.0, ge=0, le=1)
    # Where metrics are served to Prometheus, in plaintext, as host:port; empty: nowhere.
    metrics_listen: str = Field(default="", pattern=r"^(.+:\d+)?$")

    @property
    def is_traced(self) -> bool:
        """Whether spans go anywhere."""
        return bool(self.otlp_endpoint)

    @property
    def is_measured(self) -> bool:
        """Whether figures go anywhere."""
        return bool(self.otlp_endpoint or self.metrics_listen)


class ServiceSettings(TelemetrySettings):
    """Addresses, identity and limits of one service process."""

    # Where the service listens, with mTLS; port 0 picks a free one.
    listen: str = "127.0.0.1:0"
    # Where health is served in plaintext, and nothing else: a probe carries no certificate.
    health_listen: str = "127.0.0.1:0"
    tls_cert_file: Path = LOCAL_PKI / "service.pem"
    tls_key_file: Path = LOCAL_PKI / "service.key"
    tls_ca_file: Path = LOCAL_PKI / "ca.pem"
    # Seconds between two looks at these files; what is new there is used without a restart.
    tls_reload_seconds: float = Field(default=1.0, gt=0)
    trust_domain: str = "bulkhead.local"
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    key_prefix: str = Field(default="smcp", pattern=r"^[a-z]{2,12}$")
    # Calls served at once; one more is refused with OVERLOADED before it starts.
    max_in_flight: int = Field(default=512, ge=1)
    # Seconds between saying NOT_SERVING and closing the door, for balancers to notice.
    drain_seconds: float = Field(default=0.2, ge=0)
    # Seconds that calls in flight may take to end after the door is closed.
    grace_seconds: float = Field(default=10.0, ge=0)

    auth_target: str = "127.0.0.1:7101"
    ratelimit_target: str = "127.0.0.1:7102"
    provisioner_target: str = "127.0.0.1:7103"
    app_proxy_target: str = "127.0.0.1:7104"
    credentials_target: str = "127.0.0.1:7105"


class PostgresSettings(TelemetrySettings):
    """Where a service's own database is."""

    postgres_host: str = "127.0.0.1"
    postgres_port: int = 5432
    postgres_database: str = ""
    postgres_user: str = ""
    # Read at each connection, so that a rotated password is picked up.
    postgres_password_file: Path | None = None
    # verify-full: nothing but TLS, to a server of that name whose authority is in the file (none:
    # in the system's). The files are read at each connection, as is the password.
    postgres_tls: Literal["disable", "verify-full"] = "disable"
    postgres_ca_file: Path | None = None
    # What the service presents itself with, where the server asks for it.
    postgres_cert_file: Path | None = None
    postgres_key_file: Path | None = None
    postgres_pool_size: int = Field(default=10, ge=1)
    # Whether a process that starts applies what is missing of the schema; else it refuses to start.
    migrate_on_start: bool = True


class ValkeySettings(TelemetrySettings):
    """Where Valkey is, and as whom the service logs in."""

    valkey_host: str = "127.0.0.1"
    valkey_port: int = 6379
    # Whether that is a node of a Valkey Cluster.
    valkey_cluster: bool = False
    valkey_user: str = ""
    valkey_password_file: Path | None = None
    # Nothing but TLS, to a server of that name whose authority is in the file (none: in the
    # system's). The files are read at each connection.
    valkey_tls: bool = False
    valkey_ca_file: Path | None = None
    # What the service presents itself with, where the server asks for it.
    valkey_cert_file: Path | None = None
    valkey_key_file: Path | None = None
    # A hung server must fail a call well within its deadline.
    valkey_timeout_seconds: float = Field(default=1.0, gt=0)


class UnusableFileError(Exception):
    """A file that a setting names cannot be used; says which and why, never what is in it."""


def read_file(file: Path) -> bytes:
    """Returns what is in `file`.

    Raises:
        UnusableFileError: it is not there, or not ours to read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnusableFileError(f"{file}: {error.strerror}") from error


def secret_text(file: Path | None) -> str | None:
    """Returns the secret in `file` without surrounding space; None without a file.

    Raises:
        UnusableFileError: it is not there, or not ours to read.
    """
    return read_file(file).decode().strip() if file is not None else None
