"""What the front door's configuration is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens: an IP address, or a name to be looked up, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Identity:
    """The front door's own certificate, and the authority that signs those of the services."""

    certificate: Path
    key: Path
    authority: Path
    trust_domain: str = "bulkhead.local"
    # Where the front door finds the files that tell it to watch these.
    folder: Path = Path("/etc/envoy")


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """One front door, whether local or in a cluster."""

    listen: Address
    admin: Address
    identity: Identity
    # gRPC of each service by its name: "auth", "credentials", "ratelimit", …
    services: Mapping[str, Address]
    # What deployments' requests go to once app_proxy has let them in.
    app_proxy_http: Address
    # More endpoints of the same, by service or as "app_proxy_http", where no name stands for all.
    further: Mapping[str, Sequence[Address]] = field(default_factory=dict)
    # Deployments are `<deployment>.<domain>`; any port.
    domain: str = "localhost"
    # Where the API is served; any port.
    api_hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    # A file that the process may append to; "/dev/stdout" in a container.
    access_log: Path = field(default=Path("/dev/stdout"))
    # A receiver of OTLP over gRPC; None: no traces.
    otlp: Address | None = None
    # Part of the traces that is kept, 0 to 1.
    sampling: float = 1.0
    # Whether requests from outside may name their traces; what is kept is decided here alone.
    trusts_traces: bool = False
    # Proxies before it, each of which adds in X-Forwarded-For whom it speaks for.
    gateways: int = 0
    # The same door without its checks, for the benchmark alone.
    unchecked: Address | None = None
    # Where a cluster looks whether the front door serves, and for its metrics; in plaintext.
    health: Address | None = None
    metrics: Address | None = None
    # How old a client's connection gets before it is asked to be made anew; None: any age.
    connection_life: timedelta | None = None
    # How long app_proxy may take to decide; the request is refused with 503 after.
    check_timeout: timedelta = timedelta(seconds=2)
    max_request_bytes: int = 4 << 20
