"""Settings of the app_proxy service: `BULKHEAD_*`."""

from pathlib import Path

from pydantic import Field

from services.app_proxy.database.results import Caps
from services.app_proxy.database.sessions import PoolLimits
from services.app_proxy.web_middleware import Bounds
from services.shared.limits import PATIENCE_SECONDS
from services.shared.settings import (
    LOCAL_PKI,
    LOCAL_STATE,
    PostgresSettings,
    ServiceSettings,
    ValkeySettings,
)


class Settings(ServiceSettings, PostgresSettings, ValkeySettings):
    """Where deployments' requests come in and what they may take, beside what every service has."""

    listen: str = "127.0.0.1:7104"
    tls_cert_file: Path = LOCAL_PKI / "app_proxy.pem"
    tls_key_file: Path = LOCAL_PKI / "app_proxy.key"
    postgres_database: str = "app_proxy"
    postgres_user: str = "app_proxy"
    postgres_password_file: Path | None = LOCAL_STATE / "postgres/app_proxy.password"
    valkey_user: str = "app_proxy"
    valkey_password_file: Path | None = LOCAL_STATE / "valkey/app_proxy.password"

    # Where HTTP is served to the front door, with mTLS; port 0 picks a free one.
    http_listen: str = Field(default="127.0.0.1:0", pattern=r":\d{1,5}$")
    # Hosts are one label below it.
    domain: str = Field(default="localhost", pattern=r"^[a-z0-9.-]{1,200}$")
    # The API's hosts, without port: there, and nowhere else, providers may lead people back to.
    api_hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    # People who are being led back at once; one more is asked to wait.
    callbacks_in_flight: int = Field(default=32, ge=1)
    # Largest body of a request, in bytes.
    request_bytes: int = Field(default=4 * 1024 * 1024, ge=1_024)

    # Requests of one deployment served at once; one more is answered 503.
    deployment_in_flight: int = Field(default=64, ge=1)

    # Seconds for which Valkey remembers a route that was read, and a host that was not found.
    route_seconds: int = Field(default=3_600, ge=1)
    route_unknown_seconds: int = Field(default=3, ge=1)
    # Seconds for which a deleted host is remembered as nobody's; longer than any reader takes.
    route_tombstone_seconds: int = Field(default=60, ge=20)

    # Seconds that ratelimit may take to admit a request; then it is answered 503.
    limit_patience_seconds: float = Field(default=PATIENCE_SECONDS, gt=0)

    # Seconds that one statement may take.
    statement_seconds: float = Field(default=10.0, gt=0, le=300)
    # Most rows, and most bytes of rows as JSON, in one result.
    result_rows: int = Field(default=1_000, ge=1)
    result_bytes: int = Field(default=256_000, ge=1_000)
    # Most values in one result: columns of rows, elements of arrays, parts of json.
    result_values: int = Field(default=20_000, ge=100)
    # Most bytes that Postgres may send for one statement; beyond it the connection is cut. Rows
    # beyond twice `result_bytes` are thrown away as they arrive.
    statement_wire_bytes: int = Field(default=4_000_000, ge=100_000)
    # Seconds of the processor that one result may take; beyond it the result is cut.
    statement_work_seconds: float = Field(default=0.1, gt=0)

    # Connections to one deployment's database per role, and pools of this process.
    pool_size: int = Field(default=5, ge=1, le=50)
    pools_most: int = Field(default=200, ge=1)
    # Seconds without use until a pool is closed.
    pool_idle_seconds: float = Field(default=60.0, gt=0)
    # Seconds that a statement waits for a connection.
    pool_wait_seconds: float = Field(default=5.0, gt=0)

    def caps(self) -> Caps:
        """Returns the caps of one statement."""
        return Caps(
            rows=self.result_rows,
            size=self.result_bytes,
            wire=self.statement_wire_bytes,
            seconds=self.statement_seconds,
            values=self.result_values,
            work_seconds=self.statement_work_seconds,
        )

    def bounds(self) -> Bounds:
        """Returns how many requests may be in flight."""
        return Bounds(process=self.max_in_flight, deployment=self.deployment_in_flight)

    def pool_limits(self) -> PoolLimits:
        """Returns the limits of the deployments' pools."""
        return PoolLimits(
            size=self.pool_size,
            most=self.pools_most,
            idle_seconds=self.pool_idle_seconds,
            wait_seconds=self.pool_wait_seconds,
        )
