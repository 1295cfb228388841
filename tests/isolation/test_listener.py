"""Attacks on the public ports of databases by those who never prove who they are."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import psutil
import pytest

from services.provisioner.domain import DatabaseAddress
from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.crowd import Crowd
from services.provisioner.drivers.desk import MOST_AT_ONCE
from services.provisioner.drivers.login_watch import Heard, LoginWatch
from services.provisioner.drivers.reception import House, Reception
from services.shared.errors import NotFoundError
from tests.beds import Bed, a_bed
from tests.mesh import PATIENCE_SECONDS, Mesh

pytestmark = [pytest.mark.promise("P-38"), pytest.mark.promise("P-12")]

HALF = b"\0\0"
# More than all ports together hold of those who say nothing.
MANY = 600
# More than a server has places for, and than wait in line for one.
NO_PASSWORDS = 120


@pytest.fixture(scope="module")
async def attacked(mesh: Mesh) -> Bed:
    return await a_bed(mesh)


@pytest.fixture(scope="module")
async def neighbour(mesh: Mesh) -> Bed:
    return await a_bed(mesh)


def packet(code: int, body: bytes) -> bytes:
    return (len(body) + 8).to_bytes(4, "big") + code.to_bytes(4, "big") + body


STARTUP = packet(196_608, b"user\0reader_a\0database\0app\0\0")


@asynccontextmanager
async def flood(port: int, said: bytes, count: int) -> AsyncIterator[None]:
    """Opens connections that say so much, and then nothing."""
    opened = []
    try:
        for _ in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            opened.append(writer)
            writer.write(said)
        yield
    finally:
        for writer in opened:
            writer.close()


async def asked(uri: str) -> int:
    session = await asyncpg.connect(uri, timeout=PATIENCE_SECONDS)
    try:
        return int(await session.fetchval("SELECT 6 * 7"))
    finally:
        await session.close()


async def test_who_says_nothing_at_one_port_keeps_nobody_out(attacked: Bed, neighbour: Bed) -> None:
    async with flood(attacked.port, HALF, MANY):
        assert await asked(neighbour.reader) == 42
        assert await asked(attacked.reader) == 42


async def test_who_names_a_login_and_proves_nothing_takes_nobodys_place(
    attacked: Bed, neighbour: Bed
) -> None:
    session = await asyncpg.connect(attacked.writer, timeout=PATIENCE_SECONDS)
    async with flood(attacked.port, STARTUP, NO_PASSWORDS):
        assert await asked(attacked.reader) == 42
        assert await asked(neighbour.reader) == 42
        # As many as the login may have.
        answers = await asyncio.gather(*(asked(attacked.reader) for _ in range(10)))
        assert answers == [42] * 10
        # Whoever is known to the server gives way to nobody.
        assert await session.fetchval("SELECT 6 * 7") == 42
    await session.close()


async def test_those_who_wait_for_passwords_are_few_at_the_server(attacked: Bed) -> None:
    session = await asyncpg.connect(attacked.reader, timeout=PATIENCE_SECONDS)
    server = postgres_process.running(attacked.directory)
    assert server is not None
    before = len(psutil.Process(server.pid).children())
    async with flood(attacked.port, STARTUP, NO_PASSWORDS):
        # What is asked now is answered after all of them have been heard.
        assert await asked(attacked.reader) == 42
        # Those that are being sent away, and a worker of the server's own.
        assert len(psutil.Process(server.pid).children()) <= before + 2 * MOST_AT_ONCE + 2
    await session.close()


def test_a_crowd_makes_the_oldest_give_way_where_most_are() -> None:
    crowd: Crowd[str, int] = Crowd(3, 5)
    assert [crowd.enter("one", number) for number in range(5)] == [None, None, None, 0, 1]
    assert [crowd.enter("two", number) for number in (5, 6)] == [None, None]
    # All are five: where three are, one gives way to whoever comes to another place.
    assert crowd.enter("three", 7) == 2
    crowd.leave("one", 3)
    crowd.leave("one", 3)
    assert crowd.enter("three", 8) is None
    assert crowd.enter("three", 9) == 7
    for number in (4, 5, 6, 8, 9):
        crowd.leave("one" if number == 4 else "two" if number < 7 else "three", number)
    assert [crowd.enter("four", number) for number in range(4)] == [None, None, None, 0]


class Nowhere:
    """A double of what knows where servers are: nobody is to be brought to one."""

    async def wake(self, deployment: str) -> DatabaseAddress:
        raise NotFoundError("deployment")

    async def awake(self, deployment: str) -> DatabaseAddress | None:
        raise NotFoundError("deployment")


def all_that_one_gets(reception: Reception) -> int:
    """Returns how many come in at one more port until there is no room."""
    taken = 0
    while reception.has_room(taken):
        reception.enter()
        taken += 1
    return taken


def test_however_many_one_port_takes_another_finds_room() -> None:
    reception = Reception(Nowhere(), House("app", (), 12))
    assert [all_that_one_gets(reception) for _ in range(3)] == [6, 3, 2]
    assert reception.has_room(0)
    reception.leave()
    assert reception.has_room(1)


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


ASKS = message(b"R", (10).to_bytes(4, "big") + b"SCRAM-SHA-256\0\0")
WELCOMES = message(b"R", bytes(4))


@pytest.mark.parametrize("step", [1, 3, 1_000])
def test_a_welcome_is_heard_however_it_comes(step: int) -> None:
    said = message(b"N", b"R\0\0\0\x08\0\0\0\0\0") + ASKS + WELCOMES + message(b"S", b"x")
    watch, heard = LoginWatch(), []
    for at in range(0, len(said), step):
        heard.append(watch.read(said[at : at + step]))
        if heard[-1] is Heard.WELCOME:
            break
    assert heard[-1] is Heard.WELCOME
    assert (Heard.QUESTION in heard) is (step < 1_000)
    assert LoginWatch().read(said[: -len(WELCOMES) - 6]) is Heard.QUESTION
