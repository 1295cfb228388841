"""The connection to Valkey, as the service's own ACL user."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, TryAgainError
from redis.exceptions import TimeoutError as ValkeyTimeoutError

from services.shared.errors import UnavailableError
from services.shared.settings import ValkeySettings, secret_text

# The client, so that who passes it on need not know the driver.
Valkey: TypeAlias = redis.asyncio.Redis

# A hung server must fail a call well within its deadline.
_SOCKET_TIMEOUT_SECONDS = 1.0
_CONNECTIONS = 32
_AWAY = (
    ValkeyConnectionError,
    ValkeyTimeoutError,
    # It answers but cannot write: to its callers that is the same.
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)


@asynccontextmanager
async def open_valkey(settings: ValkeySettings) -> AsyncIterator[Valkey]:
    """Yields a client; it connects when it is first used, and closes at the end."""
    pool = redis.asyncio.BlockingConnectionPool(
        host=settings.valkey_host,
        port=settings.valkey_port,
        username=settings.valkey_user or None,
        password=secret_text(settings.valkey_password_file),
        socket_timeout=_SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=_SOCKET_TIMEOUT_SECONDS,
        health_check_interval=30,
        max_connections=_CONNECTIONS,
        timeout=_SOCKET_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1),
    )
    client = redis.asyncio.Redis.from_pool(pool)
    try:
        yield client
    finally:
        await client.aclose()


@contextmanager
def valkey_errors() -> Iterator[None]:
    """Turns a Valkey that is away inside the block into UnavailableError."""
    try:
        yield
    except (*_AWAY, OSError) as error:
        raise UnavailableError("the store of limits and routes is away") from error
