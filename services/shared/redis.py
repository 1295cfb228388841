"""The connection to Valkey, as the service's own ACL user."""

import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterError, OutOfMemoryError, ReadOnlyError
from redis.exceptions import ConnectionError as ValkeyConnectionError
from redis.exceptions import RedisClusterException as ClusterUnreachableError
from redis.exceptions import TimeoutError as ValkeyTimeoutError

from services.shared.errors import UnavailableError
from services.shared.recording import Recording
from services.shared.settings import ValkeySettings, secret_text
from services.shared.store_recording import Commands
from services.shared.store_tls import StoreTls, valkey_tls

# The client, so that who passes it on need not know the driver.
Valkey: TypeAlias = redis.asyncio.Redis | RedisCluster

_CONNECTIONS = 32
_HEALTH_CHECK_SECONDS = 30
_AWAY = (
    ValkeyConnectionError,
    ValkeyTimeoutError,
    # It answers but cannot write, or has no node for the slot: to its callers that is the same.
    OutOfMemoryError,
    ReadOnlyError,
    ClusterError,
    ClusterUnreachableError,
)


@asynccontextmanager
async def open_valkey(settings: ValkeySettings) -> AsyncIterator[Valkey]:
    """Yields a client; it connects when it is first used, and closes at the end.

    On a cluster the host and port are those of any of its nodes.
    """
    client = _cluster(settings) if settings.valkey_cluster else _single(settings)
    if settings.is_measured:
        client.commands = Commands(Recording.of(settings))
    try:
        yield client
    finally:
        await client.aclose()


def is_cluster(valkey: Valkey) -> bool:
    """Whether keys of different slots are at different servers."""
    return isinstance(valkey, RedisCluster)


class _Single(redis.asyncio.Redis):
    """The client of one server."""

    commands: Commands | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.commands is None:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        return await _recorded(
            self.commands, args[0], partial(super().execute_command, *args, **options)
        )


async def _recorded(commands: Commands, name: str, execute: Callable[[], Awaitable[Any]]) -> Any:
    span, began = commands.begun(name), time.perf_counter()
    try:
        answer = await execute()
    except BaseException as error:
        commands.ended(name, span, time.perf_counter() - began, error)
        raise
    commands.ended(name, span, time.perf_counter() - began, None)
    return answer


class _Secured(SSLConnection):
    """A connection by TLS alone, which looks at its files anew each time it is made."""

    def __init__(self, *, tls: StoreTls, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls
        # The client's own would believe every authority of the system beside the one that is named.
        self.ssl_context = tls  # type: ignore[assignment]

    async def _connect(self) -> None:
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except ssl.SSLError as error:
            self._tls.refused(error)
            raise


def _secured(settings: ValkeySettings) -> dict[str, Any]:
    tls = valkey_tls(settings)
    return {} if tls is None else {"connection_class": _Secured, "tls": tls}


def _secured_nodes(settings: ValkeySettings) -> dict[str, Any]:
    """Returns the same for a cluster, whose client has connections of its own making alone.

    It believes the authorities of the system beside the one that is named.
    """
    if not settings.valkey_tls:
        return {}
    return {
        "ssl": True,
        "ssl_check_hostname": True,
        "ssl_ca_certs": _path(settings.valkey_ca_file),
        "ssl_certfile": _path(settings.valkey_cert_file),
        "ssl_keyfile": _path(settings.valkey_key_file),
    }


def _path(file: Path | None) -> str | None:
    return str(file) if file is not None else None


def _single(settings: ValkeySettings) -> _Single:
    pool = redis.asyncio.BlockingConnectionPool(
        **_secured(settings),
        host=settings.valkey_host,
        port=settings.valkey_port,
        username=settings.valkey_user or None,
        password=secret_text(settings.valkey_password_file),
        socket_timeout=settings.valkey_timeout_seconds,
        socket_connect_timeout=settings.valkey_timeout_seconds,
        health_check_interval=_HEALTH_CHECK_SECONDS,
        max_connections=_CONNECTIONS,
        timeout=settings.valkey_timeout_seconds,
        retry=Retry(NoBackoff(), 1),
    )
    return _Single.from_pool(pool)  # type: ignore[return-value]  # it makes one of its own class


class _Cluster(RedisCluster):
    """The cluster's client, which learns where the slots are before it sends the first command.

    By itself it chooses the nodes of first commands before it knows any, and then closes the
    connections of some because others were sent to the wrong ones.
    """

    commands: Commands | None = None

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        await self.initialize()
        if self.commands is None:
            return await super().execute_command(*args, **kwargs)
        return await _recorded(
            self.commands, args[0], partial(super().execute_command, *args, **kwargs)
        )


def _cluster(settings: ValkeySettings) -> _Cluster:
    # Connections are per node; one too many is refused, not queued, so there is room to spare.
    return _Cluster(
        host=settings.valkey_host,
        port=settings.valkey_port,
        username=settings.valkey_user or None,
        password=secret_text(settings.valkey_password_file),
        socket_timeout=settings.valkey_timeout_seconds,
        socket_connect_timeout=settings.valkey_timeout_seconds,
        health_check_interval=_HEALTH_CHECK_SECONDS,
        max_connections=2 * _CONNECTIONS,
        retry=Retry(NoBackoff(), 1),
        **_secured_nodes(settings),
    )


@contextmanager
def valkey_errors() -> Iterator[None]:
    """Turns a Valkey that is away inside the block into UnavailableError."""
    try:
        yield
    except (*_AWAY, OSError) as error:
        raise UnavailableError("the store of limits and routes is away") from error
