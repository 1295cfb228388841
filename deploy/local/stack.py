"""The embedded stack: Postgres, Valkey, S3, the services and Envoy as processes of one machine."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Self

from deploy.local import postgres, s3
from deploy.local.environment import ensure_operator_key
from deploy.local.layout import SERVICES, WITH_DATABASE, Layout
from deploy.local.pki import certificates
from deploy.local.ports import is_free, keep_or_pick
from deploy.local.probes import EDGE, POSTGRES, S3, VALKEY
from deploy.local.processes import Supervised
from deploy.local.programs import Options, Programs, port_names
from deploy.local.record import leftovers, write_record
from deploy.local.resident import ResidentPostgres
from deploy.local.servers import stop_deployment_servers
from deploy.local.supervisor import (
    LEFTOVER_SECONDS,
    Kept,
    Progress,
    StartError,
    Supervisor,
    end_processes,
    sole_supervisor,
)
from services.provisioner.drivers import postgres_process

START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running stack is reached."""

    # A gRPC target.
    api: str
    # A URL; deployments are hosts below it.
    edge: str
    operator_key_file: Path
    state: Path
    # The front door without checks; None unless it was asked for.
    unchecked: str | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """One stack in a state folder."""

    state: Path
    options: Options = field(default_factory=Options)

    @asynccontextmanager
    async def running(self, progress: Progress = lambda _: None) -> AsyncIterator[Addresses]:
        """Yields the addresses once every process is healthy; ends every process after.

        Raises:
            AlreadyRunningError: the state folder has a supervisor.
            StartError: a process did not become healthy within 60 s.
        """
        layout = Layout.of(self.state)
        layout.make()
        with sole_supervisor(layout.lock):
            await end_processes(leftovers(layout), LEFTOVER_SECONDS)
            ports = self._ports(layout)
            layout.keep_ports(ports)
            async with _Running(layout, ports, self.options, progress) as running:
                yield running.addresses

    def _ports(self, layout: Layout) -> dict[str, int]:
        kept = layout.kept_ports()
        wanted = self.options.edge_port
        if wanted is not None:
            if not is_free(wanted):
                raise StartError(f"port {wanted} is taken")
            kept[EDGE] = wanted
        ports = keep_or_pick(kept, port_names(self.options))
        server = postgres_process.running(layout.servers / postgres.DIRECTORY_NAME)
        return ports | ({POSTGRES: server.port} if server else {})


def addresses_of(layout: Layout, ports: Mapping[str, int]) -> Addresses:
    """Returns where a stack with these ports is reached."""
    return Addresses(
        api=f"localhost:{ports[EDGE]}",
        edge=f"http://localhost:{ports[EDGE]}",
        operator_key_file=layout.operator_key,
        state=layout.state,
        unchecked=f"http://localhost:{ports['unchecked']}" if "unchecked" in ports else None,
    )


class _Running:
    """A stack from its first process to its last."""

    def __init__(
        self, layout: Layout, ports: dict[str, int], options: Options, progress: Progress
    ) -> None:
        issued = certificates(layout.pki, (*SERVICES, EDGE))
        self._layout = layout
        self._programs = Programs(layout, ports, options, issued)
        self._progress = progress
        self._supervisor = Supervisor(self._changed)
        self._ready = False
        ensure_operator_key(layout)
        self.addresses = addresses_of(layout, ports)

    async def __aenter__(self) -> Self:
        until = monotonic() + START_SECONDS
        try:
            await self._start_stores(until)
            await self._start_services(until)
        except BaseException:
            await self._stop()
            raise
        self._ready = True
        self._changed()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._progress("stopping")
        await self._stop()

    async def _start_stores(self, until: float) -> None:
        programs = self._programs
        stores: list[Kept] = [
            ResidentPostgres(programs.postgres(), self._layout.state, self._changed),
            Supervised(programs.valkey(), self._changed),
        ]
        await self._supervisor.start(stores, until, self._progress)
        server = await postgres.start(self._layout.state, programs.ports[POSTGRES])
        for service in WITH_DATABASE:
            await server.create_service(service)

    async def _start_services(self, until: float) -> None:
        # Nothing is asked of the storage while the services start: they start side by side.
        programs = [
            self._programs.s3(),
            *map(self._programs.service, SERVICES),
            self._programs.edge(),
        ]
        kept = [Supervised(program, self._changed) for program in programs]
        await self._supervisor.start(kept, until, self._progress)

    async def _stop(self) -> None:
        """Ends everything; who is cancelled meanwhile is so when all has ended."""
        stopping = asyncio.create_task(self._stop_in_order())
        try:
            await asyncio.shield(stopping)
        finally:
            await asyncio.gather(stopping, return_exceptions=True)

    async def _stop_in_order(self) -> None:
        """Ends everything from the outside in; deployments' servers after what could start one."""
        self._ready = False
        await self._supervisor.stop([EDGE])
        await self._supervisor.stop(SERVICES)
        await stop_deployment_servers(self._layout)
        await self._supervisor.stop([VALKEY, S3, POSTGRES])
        s3.remove_sockets(self._programs.ports)
        await asyncio.to_thread(self._layout.running.unlink, missing_ok=True)

    def _changed(self) -> None:
        write_record(self._layout, self._supervisor.kept, ready=self._ready)
