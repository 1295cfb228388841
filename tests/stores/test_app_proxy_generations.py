"""Passwords that change under pools: by generations, by refusals, and for whom sessions act."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from deploy.local.postgres import MeshPostgres
from services.app_proxy.database.executor import Executor, Owner
from services.app_proxy.database.failures import LoginRefusedError
from services.app_proxy.database.pools import Pools, open_pools
from services.app_proxy.database.results import Caps
from services.app_proxy.database.roles import Address, Role
from services.app_proxy.database.sessions import PoolLimits
from services.shared.errors import FailedPreconditionError, Reason, UnavailableError
from services.shared.ids import DeploymentId, new_deployment_id, random_text
from tests.ratelimit_replicas import until

CAPS = Caps(rows=100, size=50_000, wire=2_000_000, seconds=30.0)
LIMITS = PoolLimits(size=2, most=4, idle_seconds=30.0, wait_seconds=30.0)


@dataclass
class Rotating:
    """A double of provisioner's GetDatabaseConnection, whose logins take turns."""

    port: int
    database: str
    tag: str
    generation: int = 1
    asked: int = 0
    wrong: list[str] = field(default_factory=list)
    suspended: bool = False
    away: bool = False

    def login(self, role: Role, generation: int) -> str:
        return f"{role.value}_{self.tag}_{'b' if generation % 2 == 0 else 'a'}"

    async def address(self, key: str, role: Role) -> Address:
        self.asked += 1
        if self.away:
            raise UnavailableError("provisioner is away")
        if self.suspended:
            raise FailedPreconditionError(
                "the deployment is suspended", Reason.DEPLOYMENT_SUSPENDED
            )
        password = self.wrong.pop() if self.wrong else f"password of {self.generation}"
        user = self.login(role, self.generation)
        return Address("127.0.0.1", self.port, self.database, user, password)


@dataclass(frozen=True)
class Setting:
    server: Rotating
    pools: Pools
    executor: Executor
    deployment: DeploymentId
    postgres: MeshPostgres

    async def run(self, sql: str, generation: int, role: Role = Role.WRITER) -> dict[str, Any]:
        owner = Owner(self.deployment, "a key", generation)
        does = self.executor.execute if role is Role.WRITER else self.executor.query
        rows = (await does(owner, sql, [])).rows
        return dict(rows[0]) if rows else {}

    async def who(self, generation: int, role: Role = Role.WRITER) -> tuple[str, str]:
        row = await self.run("SELECT session_user AS login, current_user AS role", generation, role)
        return row["login"], row["role"]

    @asynccontextmanager
    async def in_flight(self) -> AsyncIterator["asyncio.Task[dict[str, Any]]"]:
        """Yields a statement that runs until the block ends."""
        superuser = await self.postgres.connect(self.server.database)
        try:
            await superuser.execute("SELECT pg_advisory_lock(1)")
            slow = asyncio.create_task(
                self.run("SELECT session_user AS login FROM pg_advisory_xact_lock(1)", 1)
            )

            async def waits() -> bool:
                found: bool = await superuser.fetchval(
                    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory'"
                    " AND NOT granted AND database = (SELECT oid FROM pg_database"
                    " WHERE datname = current_database()))"
                )
                return found

            await until(waits)
            yield slow
        finally:
            await superuser.close()

    async def sessions(self, generation: int) -> int:
        superuser = await self.postgres.connect(self.server.database)
        try:
            found = await superuser.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = $1",
                self.server.login(Role.WRITER, generation),
            )
        finally:
            await superuser.close()
        assert isinstance(found, int)
        return found


async def _ensure_groups(superuser: Any) -> None:
    for role in Role:
        if not await superuser.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role.value):
            await superuser.execute(f"CREATE ROLE {role.value}")


async def _make_logins(superuser: Any, server: Rotating) -> None:
    for role in Role:
        for generation in (1, 2):
            login = server.login(role, generation)
            await superuser.execute(
                f"CREATE ROLE {login} LOGIN PASSWORD 'password of {generation}'"
                f" IN ROLE {role.value}; ALTER ROLE {login} SET role = '{role.value}'"
            )


@pytest.fixture
async def rotating(postgres: MeshPostgres) -> Rotating:
    tag = random_text(6)
    server = Rotating(postgres.port, f"rotating_{tag}", tag)
    superuser = await postgres.connect()
    await _ensure_groups(superuser)
    await _make_logins(superuser, server)
    await superuser.execute(f"CREATE DATABASE {server.database}")
    await superuser.execute(f"GRANT ALL ON DATABASE {server.database} TO reader, writer")
    await superuser.close()
    inside = await postgres.connect(server.database)
    await inside.execute("GRANT ALL ON SCHEMA public TO writer")
    await inside.close()
    return server


@asynccontextmanager
async def _setting(
    server: Rotating, postgres: MeshPostgres, limits: PoolLimits = LIMITS
) -> AsyncIterator[Setting]:
    async with open_pools(server, limits) as pools:
        yield Setting(server, pools, Executor(pools, CAPS), new_deployment_id(), postgres)


@pytest.fixture
async def setting(rotating: Rotating, postgres: MeshPostgres) -> AsyncIterator[Setting]:
    async with _setting(rotating, postgres) as opened:
        yield opened


@pytest.mark.promise("P-02")
async def test_a_later_generation_gets_a_new_pool_and_nothing_in_flight_is_cut(
    setting: Setting,
) -> None:
    first = setting.server.login(Role.WRITER, 1)
    assert await setting.who(1) == (first, "writer")
    async with setting.in_flight() as slow:
        setting.server.generation = 2
        second = setting.server.login(Role.WRITER, 2)
        assert await setting.who(2) == (second, "writer")
        # By a route that is a little old: the pool of now serves it.
        assert await setting.who(1) == (second, "writer")
        assert not slow.done()
    assert (await slow)["login"] == first
    assert setting.server.asked == 2

    async def ended() -> bool:
        return await setting.sessions(1) == 0

    await until(ended)
    assert setting.pools.open_count == 1


async def test_no_query_fails_while_passwords_change_again_and_again(setting: Setting) -> None:
    stop = asyncio.Event()
    done = 0

    async def ask() -> None:
        nonlocal done
        while not stop.is_set():
            generation = setting.server.generation
            assert (await setting.who(generation))[1] == "writer"
            done += 1

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    for generation in range(2, 6):
        before = done
        password = f"password of {generation}"
        superuser = await setting.postgres.connect(setting.server.database)
        login = setting.server.login(Role.WRITER, generation)
        await superuser.execute(f"ALTER ROLE {login} PASSWORD '{password}'")
        await superuser.close()
        setting.server.generation = generation

        async def went_on(before: int = before) -> bool:
            return done >= before + 6 or any(each.done() for each in asking)

        await until(went_on)
    stop.set()
    await asyncio.gather(*asking)
    assert await setting.who(5) == (setting.server.login(Role.WRITER, 5), "writer")


async def test_a_login_that_is_refused_is_asked_for_anew_once_for_all_that_is_asked(
    setting: Setting,
) -> None:
    setting.server.wrong = ["of yesterday"]
    async with setting.pools.connection(setting.deployment, Role.READER, "a key") as session:
        assert await session.connection.fetchval("SELECT 1") == 1
    assert setting.server.asked == 2
    setting.server.wrong = ["of yesterday"] * 2
    other = new_deployment_id()
    with pytest.raises(LoginRefusedError):
        async with setting.pools.connection(other, Role.READER, "a key"):
            pass
    assert setting.server.asked == 4


async def test_a_refused_login_cuts_nothing_that_is_in_flight(
    rotating: Rotating, postgres: MeshPostgres
) -> None:
    async with _setting(rotating, postgres) as setting:
        async with setting.in_flight() as slow:
            superuser = await postgres.connect()
            await superuser.execute(
                f"ALTER ROLE {rotating.login(Role.WRITER, 1)} PASSWORD 'another'"
            )
            await superuser.close()
            rotating.generation = 2
            # A second session of the same pool: its login is refused, and asked for anew.
            assert (await setting.who(1))[0] == rotating.login(Role.WRITER, 2)
            assert not slow.done()
        assert await slow == {"login": rotating.login(Role.WRITER, 1)}


@pytest.mark.promise("P-02")
@pytest.mark.parametrize(
    "leave",
    [
        "SELECT 1 AS x",
        "SELECT set_config('role', 'none', false) AS x",
        "SELECT set_config('search_path', 'nowhere', false) AS x",
    ],
)
async def test_whatever_a_call_left_the_next_acts_as_the_role_and_not_as_its_login(
    rotating: Rotating, postgres: MeshPostgres, leave: str
) -> None:
    alone = PoolLimits(size=1, most=4, idle_seconds=30.0, wait_seconds=30.0)
    async with _setting(rotating, postgres, alone) as setting:
        for role in Role:
            backend = await setting.run("SELECT pg_backend_pid() AS pid", 1, role)
            await setting.run(leave, 1, role)
            assert await setting.who(1, role) == (rotating.login(role, 1), role.value)
            assert await setting.run("SELECT pg_backend_pid() AS pid", 1, role) == backend
        await setting.run("CREATE TABLE made (x int)", 1)
        owner = await setting.run("SELECT tableowner AS owner FROM pg_tables"
                                  " WHERE tablename = 'made'", 1)  # fmt: skip
        assert owner == {"owner": "writer"}


async def test_a_suspended_database_is_said_to_be_so(setting: Setting) -> None:
    setting.server.suspended = True
    with pytest.raises(FailedPreconditionError) as caught:
        await setting.run("SELECT 1 AS x", 1, Role.READER)
    assert caught.value.reason is Reason.DEPLOYMENT_SUSPENDED


@pytest.mark.promise("P-02")
async def test_the_login_of_before_is_used_while_nobody_can_say_what_the_new_one_is(
    setting: Setting,
) -> None:
    before, after = (setting.server.login(Role.WRITER, generation) for generation in (1, 2))
    assert (await setting.who(1))[0] == before
    setting.server.generation, setting.server.away = 2, True
    logins = await asyncio.gather(*(setting.who(2) for _ in range(4)))
    assert {login for login, _ in logins} == {before}
    setting.server.away = False
    assert (await setting.who(2))[0] == after
    assert setting.pools.open_count == 1
