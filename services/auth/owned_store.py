"""The tables of deployments' and connections' ids, which have the same columns."""

from collections.abc import Sequence

from services.auth.domain import Owned
from services.auth.store import found
from services.shared.ids import TenantId
from services.shared.postgres import Connection

# ruff: noqa: S608 what is put into the statements is the name of a kind, not what a caller wrote


async def register(connection: Connection, tenant_id: TenantId, owned: Owned) -> None:
    """Binds the id to the tenant, unless it is bound already.

    Raises:
        NotFoundError: it is another tenant's, or was retired.
    """
    await connection.execute(
        f"INSERT INTO {owned.kind}s ({owned.kind}_id, tenant_id) VALUES ($1, $2)"
        " ON CONFLICT DO NOTHING",
        owned.id,
        tenant_id,
    )
    await verify(connection, tenant_id, owned)


async def verify(connection: Connection, tenant_id: TenantId, owned: Owned) -> None:
    """Returns when it is the tenant's and not retired.

    Raises:
        NotFoundError: otherwise.
    """
    row = await connection.fetchrow(
        f"SELECT 1 FROM {owned.kind}s WHERE tenant_id = $1 AND {owned.kind}_id = $2"
        " AND retired_at IS NULL",
        tenant_id,
        owned.id,
    )
    found(row, owned.kind)


async def retire(connection: Connection, tenant_id: TenantId, owned: Owned) -> int | None:
    """Lets no key of it be made again; returns the revocation that ended its keys.

    What was never registered is retired too, so that it never will be. What is another tenant's
    stays as it is, and nothing says that it exists.
    """
    await connection.execute(
        f"INSERT INTO {owned.kind}s ({owned.kind}_id, tenant_id, retired_at)"
        " VALUES ($1, $2, now()) ON CONFLICT DO NOTHING",
        owned.id,
        tenant_id,
    )
    sequence: int | None = await connection.fetchval(
        f"UPDATE {owned.kind}s SET retired_at = coalesce(retired_at, now())"
        f" WHERE tenant_id = $1 AND {owned.kind}_id = $2 RETURNING retired_sequence",
        tenant_id,
        owned.id,
    )
    return sequence


async def write_retired_sequence(
    connection: Connection, tenant_id: TenantId, owned: Owned, sequence: int
) -> None:
    """Writes the revocation that ended the keys of what was retired."""
    await connection.execute(
        f"UPDATE {owned.kind}s SET retired_sequence = $3"
        f" WHERE tenant_id = $1 AND {owned.kind}_id = $2",
        tenant_id,
        owned.id,
        sequence,
    )


async def lock(connection: Connection, tenant_id: TenantId, owned: Owned) -> None:
    """Holds it until the transaction ends, so that it is not retired meanwhile.

    Raises:
        NotFoundError: another tenant's, unknown or retired.
    """
    row = await connection.fetchrow(
        f"SELECT 1 FROM {owned.kind}s WHERE tenant_id = $1 AND {owned.kind}_id = $2"
        " AND retired_at IS NULL FOR UPDATE",
        tenant_id,
        owned.id,
    )
    found(row, owned.kind)


async def tenants_of(connection: Connection, deployments: Sequence[str]) -> list[TenantId | None]:
    """Returns whose the deployments are, in order, retired ones too; None: nobody's."""
    rows = await connection.fetch(
        "SELECT d.tenant_id FROM unnest($1::text[]) WITH ORDINALITY AS asked (id, place)"
        " LEFT JOIN deployments d ON d.deployment_id = asked.id ORDER BY asked.place",
        list(deployments),
    )
    return [None if row["tenant_id"] is None else TenantId(row["tenant_id"]) for row in rows]
