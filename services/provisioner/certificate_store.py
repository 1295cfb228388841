"""Certificates of deployments' deletions, one function a query."""

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from services.provisioner.domain import Operation
from services.shared.ids import DeploymentId, OperationId
from services.shared.postgres import Connection


@dataclass(frozen=True, slots=True)
class DeploymentCertificate:
    """Which deletion a token opens, and what it ended in."""

    operation_id: OperationId
    deployment_id: DeploymentId
    # None until everything is verified to be gone.
    certificate: str | None


async def promise(connection: Connection, operation: Operation, digest: bytes) -> None:
    """Writes that the operation will end in a certificate, and which token opens it."""
    await connection.execute(
        "INSERT INTO certificates (operation_id, tenant_id, deployment_id, token_digest)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT (operation_id) DO NOTHING",
        operation.operation_id,
        operation.tenant_id,
        operation.deployment_id,
        digest,
    )


async def issue(connection: Connection, operation_id: OperationId, certificate: str) -> None:
    """Writes the certificate; the first one stands."""
    await connection.execute(
        "UPDATE certificates SET certificate = $2, issued_at = now()"
        " WHERE operation_id = $1 AND certificate IS NULL",
        operation_id,
        certificate,
    )


async def find(connection: Connection, digest: bytes) -> DeploymentCertificate | None:
    """Returns what the token of this SHA-256 opens."""
    row = await connection.fetchrow(
        "SELECT operation_id, deployment_id, certificate FROM certificates WHERE token_digest = $1",
        digest,
    )
    return None if row is None else _certificate(row)


async def now(connection: Connection) -> datetime:
    """Returns the time of this transaction, by the clock that all of a deletion's times are of."""
    at: datetime = await connection.fetchval("SELECT now()")
    return at


def _certificate(row: asyncpg.Record) -> DeploymentCertificate:
    return DeploymentCertificate(row["operation_id"], row["deployment_id"], row["certificate"])
