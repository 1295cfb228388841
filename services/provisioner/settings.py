"""Settings of the provisioner."""

from enum import StrEnum
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from services.shared.keyring.settings import KeyringSettings
from services.shared.settings import LOCAL_PKI, LOCAL_STATE, PostgresSettings, ServiceSettings

_NAME = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"


class DriverName(StrEnum):
    """What makes the databases of deployments."""

    # Processes of this machine.
    LOCAL = "local"
    # CloudNativePG, in the Kubernetes cluster that this runs in or is told of.
    CNPG = "cnpg"


class Settings(ServiceSettings, PostgresSettings, KeyringSettings):
    """Read from `BULKHEAD_*`."""

    listen: str = "127.0.0.1:7103"
    tls_cert_file: Path = LOCAL_PKI / "provisioner.pem"
    tls_key_file: Path = LOCAL_PKI / "provisioner.key"
    postgres_database: str = "provisioner"
    postgres_user: str = "provisioner"
    postgres_password_file: Path | None = LOCAL_STATE / "postgres/provisioner.password"
    # Connections for the locks of deployments: a third of them for calls, as many for the workers,
    # the rest for what looks after everything.
    lock_pool_size: int = Field(default=24, ge=6)

    # The domain of the deployments' hosts.
    domain: str = Field(default="localhost", pattern=r"^[a-z0-9.-]{1,180}$")
    deployments_per_tenant: int = Field(default=100, ge=1)
    # All of them together, each at its longest, have to fit into one answer.
    secrets_per_deployment: int = Field(default=100, ge=1, le=120)
    # Not those of credentials: who destroys a key there looks only at what is under it there.
    keyring_file: Path = LOCAL_STATE / "secrets/provisioner-keyring"
    keyring_folder: Path = Path("/etc/bulkhead/provisioner-keyring")
    keyring_transit_key: str = Field(
        default="bulkhead-provisioner", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$"
    )

    # What makes databases; it stays what it was: none takes over another's.
    database_driver: DriverName = DriverName.LOCAL
    # Where the cluster's API is, and who we are there; none: as Kubernetes tells every pod.
    cnpg_kubeconfig_file: Path | None = None
    # Where CloudNativePG runs, and where the mesh does: whom the databases' namespaces let in.
    cnpg_operator_namespace: str = Field(default="cnpg-system", pattern=_NAME)
    cnpg_mesh_namespace: str = Field(default="bulkhead", pattern=_NAME)
    # Postgres 16, by CloudNativePG; its guard's pod runs `psql` of the same one.
    cnpg_image: str = Field(default="ghcr.io/cloudnative-pg/postgresql:16", min_length=1)
    # Empty: the cluster's usual one. What it makes has to be deleted with its claim.
    cnpg_storage_class: str = Field(default="", pattern=rf"^$|{_NAME}")
    cnpg_instances: int = Field(default=1, ge=1, le=5)
    # What each instance is given and may take, as Kubernetes writes it.
    cnpg_cpu: str = Field(default="500m", pattern=r"^[0-9]+(\.[0-9]+)?m?$")
    cnpg_memory: str = Field(default="512Mi", pattern=r"^[0-9]+(Ki|Mi|Gi)?$")
    # Where the databases' pods find the cluster's API; narrow it to its addresses.
    cnpg_api_cidr: str = Field(default="0.0.0.0/0", pattern=r"^[0-9a-f.:]+/[0-9]+$")
    # How long to wait for what the cluster does, until it is tried again.
    cnpg_patience_seconds: float = Field(default=120.0, gt=0)

    # Servers live in `servers` of this folder, or under /var/lib/bulkhead when we are root and the
    # folder is not open to the servers' user.
    servers_home: Path = LOCAL_STATE
    # 0600; passwords of databases are derived from it. Made when it is missing; lost with it is the
    # way into every database.
    database_secret_file: Path = LOCAL_STATE / "secrets/database"
    # 0600; an Ed25519 key in PEM that signs certificates of deletion. Made when it is missing; all
    # replicas have the same one.
    certificate_key_file: Path = LOCAL_STATE / "secrets/certificate-key.pem"
    # Public keys that signed before, as a JSON Web Key Set; published with the one that signs now.
    certificate_former_keys_file: Path | None = None
    # Where servers listen; below the ports that the system lends to outgoing connections.
    database_port_first: int = Field(default=20_000, ge=1_024, le=65_535)
    database_port_last: int = Field(default=25_999, ge=1_024, le=65_535)
    # Where tenants and deployments reach them: a port for each database, as long as it exists. The
    # address that is listened on, and the name by which others are told of it, if that is another.
    listener_host: str = Field(default="127.0.0.1", min_length=1)
    listener_address: str = ""
    listener_port_first: int = Field(default=26_000, ge=1_024, le=65_535)
    listener_port_last: int = Field(default=31_999, ge=1_024, le=65_535)
    # How many may be connected by these ports at once.
    listener_connections: int = Field(default=2_000, ge=1)
    # How often is looked which databases that are awake are to be measured: how much they hold, and
    # whether anybody uses them. Each is ten times in its idle time, and at least every so often.
    look_seconds: float = Field(default=5.0, gt=0)
    measure_seconds: float = Field(default=60.0, gt=0)
    # The longest that a statement of `reader` or `writer` may take.
    statement_timeout_seconds: float = Field(default=30.0, ge=0.1, le=3_600)

    # Where S3 is spoken, a URL, as deployments are told it; empty: no deployment can have a bucket.
    s3_endpoint: str = Field(default="", pattern=r"^(https?://[^/\s]+/?)?$")
    s3_region: str = "us-east-1"
    # Who administers every bucket there. The file: 0600, of the secret key alone.
    s3_access_key: str = ""
    s3_secret_file: Path = LOCAL_STATE / "s3/admin.secret"
    # The filer of SeaweedFS, a URL, where it is told who may open which bucket; over mutual TLS,
    # by an authority of the storage's own.
    seaweed_filer: str = Field(default="", pattern=r"^(https://[^/\s]+/?)?$", validate_default=True)
    seaweed_cert_file: Path = LOCAL_STATE / "s3/pki/provisioner.pem"
    seaweed_key_file: Path = LOCAL_STATE / "s3/pki/provisioner.key"
    seaweed_ca_file: Path = LOCAL_STATE / "s3/pki/ca.pem"

    # Where backups lie that are kept as files: sealed, 0600, in a folder of our own (0700).
    backups_home: Path = LOCAL_STATE / "backups"
    backups_per_deployment: int = Field(default=20, ge=1)

    # How much a database may hold if its deployment does not say, and at most; in bytes.
    storage_bytes_usual: int = Field(default=1 << 30, ge=1)
    storage_bytes_most: int = Field(default=100 << 30, ge=1)
    # How long a database is awake without use if its deployment does not say; 0: always.
    idle_seconds_usual: float = Field(default=300.0, ge=0, le=604_800)

    # How often what is wanted is held against what is.
    sweep_seconds: float = Field(default=15.0, gt=0)
    # False after an earlier database was restored, which does not know of what was made since.
    remove_unwanted: bool = True
    # How long a process that works on something may give no sign until another takes over.
    heartbeat_seconds: float = Field(default=10.0, ge=0.5)
    # Tries of a create, of a backup, or of a rotation that has changed nothing yet, before it fails
    # for good; with the pauses between them about five minutes.
    create_tries: int = Field(default=30, ge=1)

    @property
    def at_once(self) -> int:
        """How many operations are worked on at one moment, and how many calls hold locks."""
        return self.lock_pool_size // 3

    @field_validator("seaweed_filer")
    @classmethod
    def _with_an_endpoint(cls, filer: str, info: ValidationInfo) -> str:
        if bool(filer) != bool(info.data.get("s3_endpoint", filer)):
            raise ValueError("is needed with BULKHEAD_S3_ENDPOINT, and of no use without")
        return filer

    @field_validator("database_port_last")
    @classmethod
    def _not_below_the_first(cls, last: int, info: ValidationInfo) -> int:
        if last < info.data.get("database_port_first", last):
            raise ValueError("is below BULKHEAD_DATABASE_PORT_FIRST")
        return last

    @field_validator("storage_bytes_most")
    @classmethod
    def _not_below_the_usual(cls, most: int, info: ValidationInfo) -> int:
        if most < info.data.get("storage_bytes_usual", most):
            raise ValueError("is below BULKHEAD_STORAGE_BYTES_USUAL")
        return most

    @field_validator("listener_port_last")
    @classmethod
    def _not_below_its_first(cls, last: int, info: ValidationInfo) -> int:
        if last < info.data.get("listener_port_first", last):
            raise ValueError("is below BULKHEAD_LISTENER_PORT_FIRST")
        return last
