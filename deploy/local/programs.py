"""What the stack is made of: the command line, environment and log of each process."""

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deploy.envoy.settings import Address, EdgeSettings, Identity
from deploy.local import envoy, pki, s3, valkey
from deploy.local.environment import PROCESS, override_name, service_environment
from deploy.local.layout import SERVICES, Layout
from deploy.local.pki import Paths
from deploy.local.ports import LOOPBACK
from deploy.local.probes import EDGE, POSTGRES, S3, VALKEY, probes
from deploy.local.processes import Program, rotate

Overrides = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Options:
    """How a stack is to run."""

    # A receiver of OTLP over gRPC as host:port; empty: no traces.
    otlp: str = ""
    # Part of the traces that is kept, 0 to 1.
    sampling: float = 1.0
    # Deployments are `<deployment>.<domain>`.
    domain: str = "localhost"
    # Where the front door listens; None: a free port, kept from then on.
    edge_port: int | None = None
    # Worker threads of the front door.
    concurrency: int = 2
    # Also open a front door without checks, for the benchmark.
    unchecked: bool = False
    # A module that starts the service it is given the name of, for benchmarks; empty: its own.
    launcher: str = ""
    # Settings by service, as {"ratelimit": {"BURST_FREE": "5"}}.
    overrides: Overrides = field(default_factory=dict)


def port_names(options: Options) -> list[str]:
    """Returns the names of the ports that a stack needs."""
    health = [f"{service}_health" for service in SERVICES]
    unchecked = ["unchecked"] if options.unchecked else []
    stores = [POSTGRES, VALKEY, *s3.port_names()]
    return [EDGE, "admin", *stores, *SERVICES, *health, "app_proxy_http", *unchecked]


@dataclass(frozen=True, slots=True)
class Programs:
    """Makes the programs of one stack; each writes its own configuration when it is made."""

    layout: Layout
    ports: Mapping[str, int]
    options: Options
    certificates: Mapping[str, Paths]

    def postgres(self) -> Program:
        """Returns the mesh's Postgres server, which starts itself (see `resident.py`)."""
        return self._program(POSTGRES, (), {})

    def valkey(self) -> Program:
        """Returns the mesh's Valkey server."""
        command = valkey.configure(self.layout.valkey, self.ports[VALKEY])
        return self._program(VALKEY, command, PROCESS)

    def s3(self) -> Program:
        """Returns the object storage."""
        command = s3.configure(self.layout.s3, self.ports)
        program = self._program(S3, command, s3.environment(self.layout.s3))
        # Told to end with nobody to insist, it ends its parts, and lives on without them.
        return replace(program, patience=s3.PATIENCE_SECONDS, orphaned=signal.SIGKILL)

    def service(self, service: str) -> Program:
        """Returns a service of the mesh."""
        environment = service_environment(
            service,
            self.layout,
            self.ports,
            self.certificates[service],
            domain=self.options.domain,
            otlp=self.options.otlp,
            sampling=self.options.sampling,
        )
        overrides = self.options.overrides.get(service, {})
        environment |= {override_name(name): value for name, value in overrides.items()}
        command = (sys.executable, "-P", "-m", *self._module(service))
        return self._program(service, command, environment)

    def _module(self, service: str) -> tuple[str, ...]:
        launcher = self.options.launcher
        return (launcher, service) if launcher else (f"services.{service}",)

    def edge(self) -> Program:
        """Returns the front door."""
        rotate(self.layout.log("access"))
        command = envoy.configure(self.layout.envoy, self._edge(), self.options.concurrency)
        return self._program(EDGE, command, PROCESS)

    def _program(
        self, name: str, command: tuple[str, ...], environment: Mapping[str, str]
    ) -> Program:
        return Program(
            name=name,
            command=command,
            log=self.layout.log(name),
            address=f"{LOOPBACK}:{self.ports[name]}",
            probe=probes(self.layout, self.ports)[name],
            environment=environment,
        )

    def _edge(self) -> EdgeSettings:
        paths = self.certificates[EDGE]
        unchecked = self._address("unchecked") if self.options.unchecked else None
        return EdgeSettings(
            listen=self._address(EDGE),
            admin=self._address("admin"),
            identity=Identity(paths.certificate, paths.key, paths.authority, pki.TRUST_DOMAIN),
            services={service: self._address(service) for service in SERVICES},
            app_proxy_http=self._address("app_proxy_http"),
            domain=self.options.domain,
            access_log=self.layout.log("access"),
            otlp=_parsed(self.options.otlp),
            sampling=self.options.sampling,
            # Whoever calls here is on this machine.
            trusts_traces=True,
            unchecked=unchecked,
        )

    def _address(self, name: str) -> Address:
        return Address(LOOPBACK, self.ports[name])


def _parsed(endpoint: str) -> Address | None:
    host, _, port = endpoint.rpartition(":")
    return Address(host, int(port)) if endpoint else None
