"""What a stack lets others see of itself: its logs, its spans, and its processes."""

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc
import psutil
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb2_grpc

from deploy.local.layout import Layout
from deploy.local.ports import LOOPBACK
from deploy.local.traces import Traces
from services.shared.crypto import KeyBinding
from services.shared.keyring.file import FileSource
from tests.canaries import Secret
from tests.e2e.outside import Stack


@dataclass
class Exports(pb2_grpc.TraceServiceServicer):
    """Every export as it came, whatever is in it: spans, and metrics as text."""

    endpoint: str = ""
    received: list[bytes] = field(default_factory=list)
    traces: Traces = field(default_factory=Traces)

    async def Export(  # noqa: N802 the contract's name
        self, request: pb2.ExportTraceServiceRequest, _context: object
    ) -> pb2.ExportTraceServiceResponse:
        self.received.append(request.SerializeToString())
        return await self.traces.Export(request, _context)

    @property
    def text(self) -> str:
        """All of it; texts in it are as they are."""
        return b"\n".join(self.received).decode("latin-1")


@dataclass(frozen=True)
class _Measured(metrics_grpc.MetricsServiceServicer):
    """Keeps exported metrics beside the spans."""

    received: list[bytes]

    async def Export(  # noqa: N802 the contract's name
        self, request: metrics_pb2.ExportMetricsServiceRequest, _context: object
    ) -> metrics_pb2.ExportMetricsServiceResponse:
        self.received.append(request.SerializeToString())
        return metrics_pb2.ExportMetricsServiceResponse()


@asynccontextmanager
async def exports() -> AsyncIterator[Exports]:
    """Yields a receiver of OTLP over gRPC that keeps everything."""
    receiver = Exports()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    measured = _Measured(receiver.received)
    metrics_grpc.add_MetricsServiceServicer_to_server(measured, server)  # type: ignore[no-untyped-call]
    receiver.endpoint = f"{LOOPBACK}:{server.add_insecure_port(f'{LOOPBACK}:0')}"
    await server.start()
    try:
        yield receiver
    finally:
        await server.stop(0)


def logs(stack: Stack) -> dict[str, str]:
    """Returns what the stack's processes have logged, by file."""
    folder = Layout.of(stack.state).logs
    return {file.name: _text(file) for file in folder.rglob("*") if file.is_file()}


async def processes(stack: Stack) -> dict[str, str]:
    """Returns command line and environment of each process of the stack."""
    status = await stack.status()
    pids = [each["pid"] for each in (*status["processes"], *status["servers"]) if each["pid"]]
    return {f"{each.pid}/{name}": text for each in _families(pids) for name, text in _seen(each)}


async def keys(stack: Stack, tenant_id: str) -> list[Secret]:
    """Returns the key-encryption keys and the tenant's data keys, in every form that they have."""
    of_credentials = await _keys(stack, tenant_id, "credentials", "keyring")
    return of_credentials + await _keys(stack, tenant_id, "provisioner", "provisioner-keyring")


async def _keys(stack: Stack, tenant_id: str, service: str, keyring: str) -> list[Secret]:
    layout = Layout.of(stack.state)
    held = FileSource(layout.secrets / keyring).read()
    password = (layout.state / "postgres" / f"{service}.password").read_text()
    connection = await asyncpg.connect(
        host=LOOPBACK,
        port=layout.kept_ports()["postgres"],
        user=service,
        database=service,
        password=password,
    )
    try:
        await connection.execute(f"SET ROLE {service}_service")
        row = await connection.fetchrow(
            "SELECT data_key_id, kek_id, wrapped_key FROM data_keys WHERE tenant_id = $1", tenant_id
        )
    finally:
        await connection.close()
    assert row is not None
    bound = KeyBinding(tenant_id, row["data_key_id"])  # type: ignore[arg-type]
    return [*held.keys.values(), held.unwrap(row["kek_id"], row["wrapped_key"], bound), password]


def _families(pids: list[int]) -> Iterator[psutil.Process]:
    """Yields the processes, what started them, and what they started."""
    parents = {psutil.Process(pid).ppid() for pid in pids} - {1, os.getpid()}
    found = {*pids, *parents}
    for pid in list(found):
        with suppress(psutil.NoSuchProcess):
            found |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
    for pid in sorted(found):
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def _seen(process: psutil.Process) -> Iterator[tuple[str, str]]:
    for name in ("cmdline", "environ"):
        # It may have ended since.
        with suppress(OSError):
            yield name, _text(Path(f"/proc/{process.pid}/{name}"))


def _text(file: Path) -> str:
    return file.read_bytes().decode("latin-1")


def named(prefix: str, texts: Mapping[str, str]) -> dict[str, str]:
    """Returns the texts under names that say what they are."""
    return {f"{prefix} {name}": text for name, text in texts.items()}
