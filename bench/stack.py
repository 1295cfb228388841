"""What every benchmark is built from: a stack of its own, a tenant in it, a line of results."""

import asyncio
import json
import math
import os
import statistics
import sys
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from deploy.local.foreground import ended_by_signals
from deploy.local.programs import Options
from deploy.local.stack import Addresses
from deploy.local.story.temporary import temporary_stack

CALL_SECONDS = 30.0
_INTERRUPTED = 130

Measured = TypeVar("Measured")


@dataclass(frozen=True, slots=True)
class Customer:
    """A tenant that calls the API through the front door."""

    auth: AuthServiceStub
    provisioner: ProvisionerServiceStub
    key: str = field(repr=False)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What presents the tenant's key."""
        return bearer(self.key)

    async def create(self, name: str) -> provisioner_pb2.CreateDeploymentResponse:
        """Returns a deployment with MCP and a database that is being made."""
        request = provisioner_pb2.CreateDeploymentRequest(
            request_id=fresh_id(), name=name, mcp=True, database=True
        )
        return await self.provisioner.CreateDeployment(
            request, metadata=self.metadata, timeout=CALL_SECONDS
        )

    async def finished(self, operation: provisioner_pb2.Operation) -> None:
        """Returns once the operation has succeeded."""
        request = provisioner_pb2.WaitOperationRequest(operation_id=operation.operation_id)
        async for change in self.provisioner.WaitOperation(
            request, metadata=self.metadata, timeout=CALL_SECONDS
        ):
            operation = change.operation
        assert operation.state == provisioner_pb2.OPERATION_STATE_SUCCEEDED, operation

    async def issue_key(self, deployment_id: str) -> str:
        """Returns a new key of the deployment, with every scope."""
        request = auth_pb2.IssueKeyRequest(request_id=fresh_id(), deployment_id=deployment_id)
        issued = await self.auth.IssueKey(request, metadata=self.metadata, timeout=CALL_SECONDS)
        return issued.key

    async def delete(self, deployment_id: str) -> None:
        """Returns once nothing of the deployment is left."""
        request = provisioner_pb2.DeleteDeploymentRequest(deployment_id=deployment_id)
        answer = await self.provisioner.DeleteDeployment(
            request, metadata=self.metadata, timeout=CALL_SECONDS
        )
        await self.finished(answer.operation)


@asynccontextmanager
async def bench_stack(options: Options) -> AsyncIterator[Addresses]:
    """Yields the addresses of a stack of its own, which is gone afterwards."""
    async with temporary_stack(options, tell, prefix="bulkhead-bench-") as addresses:
        yield addresses


@asynccontextmanager
async def customer(
    addresses: Addresses, plan: "auth_pb2.Plan.ValueType"
) -> AsyncIterator[Customer]:
    """Yields a new tenant of the plan."""
    operator = addresses.operator_key_file.read_text().strip()
    async with grpc.aio.insecure_channel(addresses.api) as channel:
        auth = AuthServiceStub(channel)
        created = await auth.CreateTenant(
            auth_pb2.CreateTenantRequest(request_id=fresh_id(), name="bench", plan=plan),
            metadata=bearer(operator),
            timeout=CALL_SECONDS,
        )
        yield Customer(auth, ProvisionerServiceStub(channel), created.key)


def run(measuring: Coroutine[Any, Any, Measured]) -> Measured:
    """Returns what `measuring` returns.

    Raises:
        SystemExit: 130, when a signal ended it early; nothing stays behind.
    """

    async def measured() -> Measured:
        with ended_by_signals(lambda: tell("interrupted; stopping everything")):
            return await measuring

    try:
        return asyncio.run(measured())
    except asyncio.CancelledError:
        raise SystemExit(_INTERRUPTED) from None


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that presents `key`."""
    return (("authorization", f"Bearer {key}"),)


def fresh_id() -> str:
    """Returns an id for a request."""
    return uuid.uuid4().hex


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the nearest-rank percentile: a value that was measured."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


def median(values: Sequence[float]) -> float:
    """Returns the median."""
    return statistics.median(values)


def report(name: str, measured: Mapping[str, Any]) -> None:
    """Prints the result as one JSON line; the cores are those that everything shared."""
    print(json.dumps({"name": name, **measured, "cores": os.cpu_count()}), flush=True)


def tell(text: str) -> None:
    """Says how far it is, on standard error."""
    print(text, file=sys.stderr, flush=True)
