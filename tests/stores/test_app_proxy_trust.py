"""app_proxy speaks to the server that its deployment's database has, and to no other in its place.

The server proves who it is before anything is said to it: no login, and nothing of a statement.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from deploy.local.pki import Paths, certificates
from deploy.local.postgres import MeshPostgres
from services.app_proxy.database.executor import Executor, Owner
from services.app_proxy.database.failures import StatementError
from services.app_proxy.database.pools import open_pools
from services.app_proxy.database.results import Caps
from services.app_proxy.database.roles import Address, Role
from services.app_proxy.database.sessions import PoolLimits
from services.shared.ids import new_deployment_id, random_text
from tests.tls_fronts import before_postgres

_CAPS = Caps(rows=100, size=50_000, wire=2_000_000, seconds=2.0)
_LIMITS = PoolLimits(size=1, most=1, idle_seconds=30.0, wait_seconds=10.0)


@dataclass(frozen=True)
class Found:
    """A double of provisioner's GetDatabaseConnection, which says the same to everybody."""

    at: Address

    async def address(self, key: str, role: Role) -> Address:
        return self.at


async def answer(at: Address) -> object:
    """Returns what the server at `at` says through app_proxy's pools."""
    async with open_pools(Found(at), _LIMITS) as pools:
        executor, owner = Executor(pools, _CAPS), Owner(new_deployment_id(), "a key")
        sql = "SELECT count(*) AS mine FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        return (await executor.query(owner, sql, [])).rows[0]["mine"]


async def is_refused(at: Address) -> bool:
    """Returns whether app_proxy does without a server that is not the one it looks for."""
    with pytest.raises(StatementError) as caught:
        await answer(at)
    return caught.value.failure.code == "57P03"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Paths]:
    return certificates(tmp_path_factory.mktemp("servers-pki"), ["database"])


@pytest.fixture(scope="module")
async def plain(postgres: MeshPostgres) -> AsyncIterator[Address]:
    """A server without TLS, for `reader`."""
    login, password = f"asker_{random_text(6)}", random_text(20)
    superuser = await postgres.connect()
    if not await superuser.fetchval("SELECT 1 FROM pg_roles WHERE rolname = 'reader'"):
        await superuser.execute("CREATE ROLE reader")
    await superuser.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{password}' IN ROLE reader")
    await superuser.execute(f"GRANT CONNECT ON DATABASE postgres TO {login}")
    yield Address(postgres.host, postgres.port, "postgres", login, password)
    await superuser.execute(f"REVOKE ALL ON DATABASE postgres FROM {login}; DROP ROLE {login}")
    await superuser.close()


@pytest.fixture
async def proven(plain: Address, files: Mapping[str, Paths]) -> AsyncIterator[Address]:
    """The same server behind TLS."""
    authority = files["database"].authority.read_text()
    async with before_postgres(plain.port, files["database"]) as port:
        yield replace(plain, port=port, authority=authority)


async def test_a_server_of_the_deployments_authority_is_asked(proven: Address) -> None:
    assert await answer(proven) == 1


async def test_a_server_without_authority_is_asked_in_plaintext(plain: Address) -> None:
    assert await answer(plain) == 1


async def test_a_server_of_another_authority_is_told_nothing(
    proven: Address, tmp_path: Path
) -> None:
    foreign = certificates(tmp_path, ["database"])["database"].authority.read_text()
    assert await is_refused(replace(proven, authority=foreign))


async def test_a_server_of_another_name_is_told_nothing(proven: Address) -> None:
    # The same machine by a name that its certificate does not have.
    assert await is_refused(replace(proven, host="127.1"))


async def test_a_server_that_has_no_certificate_is_told_nothing(
    plain: Address, proven: Address
) -> None:
    assert await is_refused(replace(plain, authority=proven.authority))
