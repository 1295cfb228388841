"""Stores are reached by TLS when that is asked for, and then by nothing else and nobody else."""

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from structlog.testing import capture_logs

from deploy.local.pki import Paths, certificates
from deploy.local.valkey import ValkeyServer
from services.shared.errors import UnavailableError
from services.shared.postgres import open_database, postgres_errors
from services.shared.redis import open_valkey, valkey_errors
from services.shared.settings import PostgresSettings, UnusableFileError, ValkeySettings
from tests.databases import SERVICES, Databases
from tests.tls_fronts import before_postgres, before_valkey


class Store(Protocol):
    """One store behind TLS, and a question to it."""

    async def ask(self, **settings: Any) -> None:
        """Returns when the store has answered."""


class Postgres:
    def __init__(self, settings: PostgresSettings, port: int) -> None:
        self._settings = settings
        self._port = port

    async def ask(self, **settings: Any) -> None:
        """Returns when Postgres has answered, to the pool and to a listener."""
        mine = {f"postgres_{name}": value for name, value in settings.items()}
        own = {"postgres_port": self._port, "postgres_tls": "verify-full"}
        asking = self._settings.model_copy(update=own | mine)
        folder = SERVICES / "auth" / "migrations"
        async with open_database(asking, "auth", folder) as database:
            with postgres_errors():
                assert await database.pool.fetchval("SELECT 1") == 1


class Valkey:
    def __init__(self, server: ValkeyServer, port: int) -> None:
        self._server = server
        self._port = port

    async def ask(self, **settings: Any) -> None:
        """Returns when Valkey has answered."""
        own: dict[str, Any] = {
            "valkey_host": self._server.host,
            "valkey_port": self._port,
            "valkey_user": "ratelimit",
            "valkey_password_file": self._server.password_files["ratelimit"],
            "valkey_tls": True,
        }
        mine = {f"valkey_{name}": value for name, value in settings.items()}
        async with open_valkey(ValkeySettings(**(own | mine))) as valkey:
            with valkey_errors():
                assert await valkey.ping()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Paths]:
    return certificates(tmp_path_factory.mktemp("stores-pki"), ["store", "auth"])


@pytest.fixture(params=["postgres", "valkey"])
async def store(
    request: pytest.FixtureRequest,
    files: Mapping[str, Paths],
    databases: Databases,
    valkey: ValkeyServer,
) -> AsyncIterator[Store]:
    if request.param == "postgres":
        settings = await databases.fresh("auth")
        async with before_postgres(settings.postgres_port, files["store"]) as port:
            yield Postgres(settings, port)
    else:
        async with before_valkey(valkey.port, files["store"]) as port:
            yield Valkey(valkey, port)


@asynccontextmanager
async def refused(problem: str) -> AsyncIterator[None]:
    """Expects that the store is as good as away, and that it is said once why."""
    with capture_logs() as logs:
        with pytest.raises(UnavailableError):
            yield
        (line,) = [each for each in logs if each["event"] == "store's certificate refused"]
    assert problem in line["problem"]


async def test_a_store_of_the_named_authority_is_used(
    store: Store, files: Mapping[str, Paths]
) -> None:
    await store.ask(ca_file=files["store"].authority)


async def test_a_client_may_present_itself(store: Store, files: Mapping[str, Paths]) -> None:
    mine = files["auth"]
    await store.ask(ca_file=mine.authority, cert_file=mine.certificate, key_file=mine.key)


async def test_a_store_of_another_authority_is_refused(store: Store, tmp_path: Path) -> None:
    foreign = certificates(tmp_path, ["store"])["store"]
    async with refused("certificate"):
        await store.ask(ca_file=foreign.authority)


async def test_a_store_of_no_authority_that_the_system_knows_is_refused(store: Store) -> None:
    async with refused("self-signed certificate in certificate chain"):
        await store.ask()


async def test_a_store_of_another_name_is_refused(store: Store, files: Mapping[str, Paths]) -> None:
    # The same machine by a name that its certificate does not have.
    async with refused("match"):
        await store.ask(ca_file=files["store"].authority, host="127.1")


async def test_a_store_in_plaintext_is_refused(
    databases: Databases, valkey: ValkeyServer, files: Mapping[str, Paths]
) -> None:
    settings = await databases.fresh("auth")
    for plain in (Postgres(settings, settings.postgres_port), Valkey(valkey, valkey.port)):
        with pytest.raises(UnavailableError):
            await plain.ask(ca_file=files["store"].authority)


async def test_an_authority_that_is_not_there_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnusableFileError, match="nowhere"):
        await store.ask(ca_file=tmp_path / "nowhere.pem")


async def test_another_authority_is_believed_from_the_next_connection_on(
    valkey: ValkeyServer, files: Mapping[str, Paths], tmp_path: Path
) -> None:
    believed = tmp_path / "ca.pem"
    shutil.copy(certificates(tmp_path / "other", ["store"])["store"].authority, believed)
    async with before_valkey(valkey.port, files["store"]) as port:
        settings = ValkeySettings(
            valkey_host=valkey.host,
            valkey_port=port,
            valkey_user="ratelimit",
            valkey_password_file=valkey.password_files["ratelimit"],
            valkey_tls=True,
            valkey_ca_file=believed,
        )
        async with open_valkey(settings) as client:
            with pytest.raises(UnavailableError), valkey_errors():
                await client.ping()
            shutil.copy(files["store"].authority, believed)
            assert await client.ping()
