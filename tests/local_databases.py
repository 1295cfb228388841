"""Local databases as tests want them, and sessions at them."""

import asyncpg

from services.provisioner.domain import DatabaseAddress
from services.provisioner.drivers.protocol import Login, WantedDatabase
from services.shared.ids import DeploymentId
from services.shared.server_trust import trusting

QUOTA_BYTES = 1 << 30


def wanted(
    deployment: DeploymentId,
    port: int | None = None,
    *,
    generations: tuple[int, ...] = (1,),
    quota_bytes: int = QUOTA_BYTES,
) -> WantedDatabase:
    """Returns the wish for a database whose newest generation is the last of `generations`."""
    return WantedDatabase(deployment, generations[-1], generations, quota_bytes, port)


async def open_session(
    address: DatabaseAddress, login: Login, database: str = "app"
) -> "asyncpg.Connection[asyncpg.Record]":
    """Returns a session that forgets nothing it needs when everything of it is discarded."""
    return await asyncpg.connect(
        host=address.host,
        port=address.port,
        user=login.user,
        password=login.password,
        database=database,
        ssl=trusting(address.authority) if address.authority else False,
        statement_cache_size=0,
    )
