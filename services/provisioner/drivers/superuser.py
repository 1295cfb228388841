"""What the superuser does at a running server: its passwords, its quota, a measurement."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from services.provisioner.domain import DatabaseAddress
from services.provisioner.drivers.local_database import DATABASE, MAINTENANCE, SUPERUSER
from services.provisioner.drivers.protocol import Measured
from services.provisioner.drivers.server_command import ServerError

if TYPE_CHECKING:
    _Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

_PREPARED_NAME = "bulkhead.prepared"
_CONNECT_SECONDS = 5.0
_COMMAND_SECONDS = 15.0
_END_SECONDS = 15.0
_POLL_SECONDS = 0.05
_SETTINGS = {"search_path": "pg_catalog", "statement_timeout": "0"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a server was told; a file beside its data says so, and nothing is told it twice."""

    open_generations: tuple[int, ...]
    quota_bytes: int
    # Otherwise it is just being told something else, or whoever did so died.
    whole: bool = True

    @property
    def text(self) -> str:
        """What `told` reads."""
        return json.dumps(asdict(self))

    def write(self, directory: Path) -> None:
        """Writes the file, whole or not at all."""
        partial = directory / f".{_PREPARED_NAME}"
        partial.write_text(self.text)
        partial.rename(directory / _PREPARED_NAME)


def prepared(directory: Path) -> Prepared | None:
    """Returns what the server was told; None before it was told everything it has to know."""
    try:
        return told((directory / _PREPARED_NAME).read_text())
    except OSError:
        return None


def told(text: str) -> Prepared | None:
    """Returns what `Prepared.text` was; None for anything else."""
    try:
        said = json.loads(text)
        return Prepared(tuple(said["open_generations"]), said["quota_bytes"], said["whole"])
    except (ValueError, KeyError, TypeError):
        return None


class Superuser:
    """Opens a connection for each thing that is done, and tries each password in turn."""

    def __init__(
        self, address: DatabaseAddress, *passwords: str, tls: ssl.SSLContext | None = None
    ) -> None:
        self._address = address
        self._passwords = passwords
        self._tls = tls

    async def set_verifiers(self, verifiers: Mapping[str, str | None]) -> None:
        """Gives each role its password, or none; returns when nobody is in by an earlier one.

        Raises:
            ServerError: someone who has to go is still there.
        """
        async with self.connected(MAINTENANCE) as connection:
            await connection.execute("SELECT bulkhead.set_verifiers($1)", json.dumps(verifiers))
            # After the commit: whoever came in until then is ended. The guard goes on with that.
            await connection.execute("SELECT bulkhead.end_usurpers()")
            until = monotonic() + _END_SECONDS
            while await connection.fetchval("SELECT bulkhead.any_outdated()"):
                if monotonic() > until:
                    raise ServerError("a session of an earlier password does not end")
                await asyncio.sleep(_POLL_SECONDS)

    async def set_quota(self, quota_bytes: int) -> None:
        """Lets the database hold so much, from now on.

        Raises:
            ServerError: it is not in force yet; the guard will see to it.
        """
        async with self.connected(DATABASE) as connection:
            await connection.execute("SELECT setval('bulkhead.quota', $1::bigint)", quota_bytes)
            until = monotonic() + _END_SECONDS
            # Null while the guard is at it, which may not have seen the new quota.
            while await connection.fetchval(
                "SELECT used IS NULL OR room < 0 AND pending > 0 FROM bulkhead.keep_quota(NULL)"
            ):
                if monotonic() > until:
                    raise ServerError("the quota is not in force yet")
                await asyncio.sleep(_POLL_SECONDS)

    async def measure(self, quota_bytes: int) -> Measured:
        """Returns how the database is."""
        async with self.connected(MAINTENANCE) as connection:
            row = await connection.fetchrow(
                "SELECT used_bytes, busy, statements FROM bulkhead.measure()"
            )
        if row is None:
            raise ServerError("the server does not say how it is")
        return Measured(
            used_bytes=row["used_bytes"],
            over_quota=row["used_bytes"] > quota_bytes,
            busy=row["busy"],
            statements=row["statements"],
        )

    @asynccontextmanager
    async def connected(self, database: str) -> "AsyncIterator[_Connection]":
        """Yields a connection of its own to the database."""
        connection = await self._connect(database)
        try:
            yield connection
        finally:
            await connection.close(timeout=_CONNECT_SECONDS)

    async def _connect(self, database: str) -> "_Connection":
        refused: Exception = ServerError("the superuser is refused")
        for password in self._passwords:
            try:
                return await asyncpg.connect(
                    host=self._address.host,
                    port=self._address.port,
                    user=SUPERUSER,
                    database=database,
                    password=password,
                    ssl=self._tls or False,
                    timeout=_CONNECT_SECONDS,
                    command_timeout=_COMMAND_SECONDS,
                    server_settings=_SETTINGS,
                )
            except asyncpg.InvalidPasswordError as error:
                refused = error
        raise refused
