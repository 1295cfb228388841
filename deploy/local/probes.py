"""Asking each process of the stack whether it is well."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.envoy.settings import Address
from deploy.local import envoy, postgres, s3, valkey
from deploy.local.layout import SERVICES, Layout
from deploy.local.ports import LOOPBACK
from deploy.local.processes import Probe
from services.provisioner.drivers import postgres_process

POSTGRES, VALKEY, S3, EDGE = "postgres", "valkey", "s3", "edge"
_ANSWER_SECONDS = 1.0


def probes(layout: Layout, ports: Mapping[str, int]) -> dict[str, Probe]:
    """Returns a probe per process of the stack, in the order in which they are started."""
    server = valkey.ValkeyServer(LOOPBACK, ports[VALKEY], valkey.password_files(layout.valkey))
    services: dict[str, Probe] = {
        service: partial(serving, Address(LOOPBACK, ports[f"{service}_health"]))
        for service in SERVICES
    }
    return {
        POSTGRES: partial(_postgres_ready, layout),
        VALKEY: partial(valkey.ready, server),
        S3: partial(s3.ready, Address(LOOPBACK, ports[S3])),
        **services,
        EDGE: partial(envoy.ready, Address(LOOPBACK, ports["admin"])),
    }


async def serving(health: Address) -> bool:
    """Whether the service with this health address says SERVING."""
    if not await _listens(health):
        return False
    try:
        async with grpc.aio.insecure_channel(str(health)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_ANSWER_SECONDS)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _listens(address: Address) -> bool:
    """Whether there is anyone to ask: a refused connection costs far less than a gRPC channel."""
    try:
        _, writer = await asyncio.open_connection(address.host, address.port)
    except OSError:
        return False
    writer.close()
    return True


async def _postgres_ready(layout: Layout) -> bool:
    server = postgres_process.running(layout.servers / postgres.DIRECTORY_NAME)
    return server is not None and server.ready
