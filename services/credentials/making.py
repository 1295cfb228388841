"""Writing new connections down: once for each request, and within the tenant's limit."""

import hmac

from services.credentials import connection_store as store
from services.credentials.domain import GOING, Connection
from services.shared.errors import AlreadyExistsError, LimitExceededError, Reason
from services.shared.ids import TenantId
from services.shared.postgres import Connection as DbConnection


async def earlier(
    db: DbConnection, tenant: TenantId, request_id: str, digest: bytes
) -> Connection | None:
    """Returns what was made for the request before.

    Raises:
        AlreadyExistsError: the request_id stands for something else, or what it made is going.
    """
    found = await store.of_request(db, tenant, request_id)
    if found is None:
        return None
    connection, known = found
    if not hmac.compare_digest(known, digest):
        raise replayed()
    if connection.state in GOING:
        raise AlreadyExistsError(
            "the request_id was used before, for what is deleted now", Reason.REQUEST_REPLAYED
        )
    return connection


async def make(db: DbConnection, tenant: TenantId, row: store.NewRow, *, most: int) -> Connection:
    """Returns the connection, written down; of two for one request, the first one's stands.

    Raises:
        AlreadyExistsError: the request_id stands for something else, or what it made is going.
        LimitExceededError: the tenant has `most` connections.
    """
    await store.lock_tenant(db, tenant)
    made = await earlier(db, tenant, row.request_id, row.request_digest)
    if made is not None:
        return made
    await check_limit(db, tenant, most)
    return await store.insert(db, tenant, row)


async def check_limit(db: DbConnection, tenant: TenantId, most: int) -> None:
    """Returns when the tenant may have one more connection.

    Raises:
        LimitExceededError: it may not.
    """
    if await store.count(db, tenant) >= most:
        raise LimitExceededError(
            f"at most {most} connections are allowed", Reason.CONNECTION_LIMIT, "connections"
        )


def replayed() -> AlreadyExistsError:
    """Returns the refusal of a request_id that stands for something else."""
    return AlreadyExistsError(
        "the request_id was used before for something else", Reason.REQUEST_REPLAYED
    )
