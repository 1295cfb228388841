"""Peppers: told apart by id, rotated while two replicas with different ones answer."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from structlog.testing import capture_logs

from deploy.local.files import write_private
from deploy.local.ports import free_ports
from services.auth.pepper import Keyring, Pepper
from services.auth.pepper_census import Census, PepperCensus
from services.auth.server import compose
from services.auth.settings import Settings
from services.shared.keyformat import digest
from services.shared.postgres import open_database
from services.shared.settings import UnusableFileError
from tests.conftest import StartMesh
from tests.databases import SERVICES
from tests.mesh import Customer, Mesh, bearer

MIGRATIONS = SERVICES / "auth" / "migrations"


def pepper_of(file: Path) -> Pepper:
    return Pepper(file.read_bytes())


def settings_of(mesh: Mesh) -> Settings:
    settings = mesh.settings["auth"]
    assert isinstance(settings, Settings)
    return settings


@pytest.fixture
async def first(start_mesh: StartMesh) -> AsyncIterator[Mesh]:
    """auth alone, under its first pepper."""
    async with start_mesh({}, ["auth"]) as mesh:
        yield mesh


@pytest.fixture
def old(first: Mesh) -> Path:
    return settings_of(first).pepper_file


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_private(tmp_path / "pepper.new", secrets.token_hex(32))


@asynccontextmanager
async def replica(
    first: Mesh, current: Path, previous: Sequence[Path] = (), upcoming: Path | None = None
) -> AsyncIterator[Mesh]:
    """Yields another auth over the same database, with peppers of its own."""
    (port,) = free_ports(1)
    settings = settings_of(first).model_copy(
        update={
            "listen": f"127.0.0.1:{port}",
            "pepper_file": current,
            "previous_pepper_files": tuple(previous),
            "next_pepper_file": upcoming,
        }
    )
    mesh = Mesh(first.home, first.pki, {"auth": port}, {"auth": settings}, first.operator_key)
    await mesh.start("auth")
    try:
        yield mesh
    finally:
        for channel in mesh._channels.values():  # noqa: SLF001 as its own module closes them
            await channel.close()
        await mesh.stop("auth")


async def opens(mesh: Mesh, *keys: str) -> list[bool]:
    """Whether this replica says of each key that it is someone's."""
    answer = await mesh.stub(AuthServiceStub, "auth", "ratelimit").ResolveKeys(
        pb2.ResolveKeysRequest(digests=[digest(key) for key in keys])
    )
    return [resolution.HasField("principal") for resolution in answer.resolutions]


async def census(mesh: Mesh, *known: Path) -> Census:
    """Returns the count of a replica that knows these peppers, the first of them current."""
    current, *previous = map(pepper_of, known)
    async with open_database(settings_of(mesh), "auth", MIGRATIONS) as database:
        return await PepperCensus(database, Keyring(current, previous), NoOpMeter("test")).take()


def test_the_id_of_a_pepper_is_its_own_and_tells_nothing_of_it() -> None:
    one, other = Pepper(b"a" * 32), Pepper(b"b" * 32)
    # Kept in the database: it must never come out otherwise.
    assert (one.id, other.id) == ("8ea57c5e", "aea50884")
    assert one.apply(b"x") != other.apply(b"x")
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Pepper(b"a" * 31)


def test_a_ring_finds_by_every_pepper_and_moves_from_the_previous_ones_alone() -> None:
    current, before, upcoming = (Pepper(bytes([n]) * 32) for n in range(3))
    ring = Keyring(current, [before], upcoming)
    assert ring.ids == [current.id, before.id, upcoming.id]
    assert ring.candidates(b"x") == [one.apply(b"x") for one in (current, before, upcoming)]
    assert [ring.is_previous(place) for place in range(3)] == [False, True, False]
    for twice in ((current, [current], None), (current, [before, before], None)):
        with pytest.raises(ValueError, match="named twice"):
            Keyring(*twice)
    with pytest.raises(ValueError, match="named twice"):
        Keyring(current, [before], before)


@pytest.mark.parametrize(
    ("text", "files"),
    [("", ()), ("a", (Path("a"),)), ("a, b,", (Path("a"), Path("b")))],
)
def test_previous_peppers_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, text: str, files: tuple[Path, ...]
) -> None:
    monkeypatch.setenv("BULKHEAD_PREVIOUS_PEPPER_FILES", text)
    assert Settings().previous_pepper_files == files


async def test_a_pepper_that_is_named_twice_stops_the_start(first: Mesh, old: Path) -> None:
    settings = settings_of(first).model_copy(update={"previous_pepper_files": (old,)})
    with pytest.raises(UnusableFileError, match="the same pepper is named twice"):
        async with compose(settings):
            pass


async def test_replicas_with_the_old_and_the_new_pepper_answer_for_every_key(
    first: Mesh, old: Path, new: Path
) -> None:
    customer = await first.customer()
    async with replica(first, old, upcoming=new) as prepared, replica(first, new, [old]) as moved:
        under_new = await moved.key(customer)
        under_old = await prepared.key(customer)
        keys = (customer.key, under_new.key, under_old.key, first.operator_key)
        for mesh in (prepared, moved, prepared, moved):
            assert await opens(mesh, *keys) == [True] * 4
        # Why every replica is told of the next pepper before one of them writes under it.
        assert await opens(first, under_new.key) == [False]


async def test_a_used_key_moves_and_the_old_pepper_can_go_when_it_has_none(
    first: Mesh, old: Path, new: Path
) -> None:
    customer = await first.customer()
    unused = await first.key(customer)
    ids = pepper_of(old).id, pepper_of(new).id
    async with replica(first, new, [old]) as moved:
        # The operator's key moved when the replica started.
        assert (await census(moved, new, old)).keys == {ids[0]: 2, ids[1]: 1}
        assert await opens(moved, customer.key) == [True]
        assert (await census(moved, new, old)).keys == {ids[0]: 1, ids[1]: 2}
    async with replica(first, new) as last:
        assert await opens(last, customer.key, first.operator_key) == [True, True]
        # Under a pepper that nobody knows any more a key is no key.
        assert await opens(last, unused.key) == [False]
        counted = await census(last, new)
        assert (counted.keys, counted.lost) == ({ids[1]: 2}, 1)
    async with replica(first, new, [old]) as again:
        assert await opens(again, unused.key) == [True]
        assert (await census(again, new)).lost == 0


async def test_a_replica_that_is_only_prepared_moves_nothing(
    first: Mesh, old: Path, new: Path
) -> None:
    customer = await first.customer()
    async with replica(first, new, [old]) as moved:
        assert await opens(moved, customer.key) == [True]
        async with replica(first, old, upcoming=new) as prepared:
            before = (await census(moved, new, old)).keys[pepper_of(new).id]
            assert await opens(prepared, customer.key) == [True]
            assert (await census(moved, new, old)).keys[pepper_of(new).id] == before


async def test_first_uses_at_two_replicas_at_once_are_never_refused(
    first: Mesh, old: Path, new: Path
) -> None:
    customer = await first.customer()
    keys = [(await first.key(customer)).key for _ in range(40)]
    async with replica(first, new, [old]) as one, replica(first, new, [old]) as other:
        answers = await asyncio.gather(
            *(opens(mesh, *part) for part in (keys, keys[::-1]) for mesh in (one, other)),
            *(opens(mesh, key) for key in keys for mesh in (one, other)),
        )
        assert all(all(answer) for answer in answers)
        async with asyncio.timeout(30):
            while (await census(one, new, old)).keys[pepper_of(old).id] > 0:
                # What two moved at once was left for the next use.
                assert all(await opens(one, customer.key, *keys))


async def test_a_repeated_request_writes_under_the_pepper_of_who_answers_it(
    first: Mesh, old: Path, new: Path
) -> None:
    customer = await first.customer()
    request = pb2.IssueKeyRequest(request_id="again")
    before = await first.stub(AuthServiceStub, "auth").IssueKey(
        request, metadata=bearer(customer.key)
    )
    async with replica(first, new, [old]) as moved:
        after = await moved.stub(AuthServiceStub, "auth").IssueKey(
            request, metadata=bearer(customer.key)
        )
        assert after.key_id == before.key_id
        assert await opens(moved, before.key, after.key) == [False, True]
    async with replica(first, new) as last:
        assert await opens(last, after.key) == [True]


async def test_keys_from_before_peppers_had_ids_are_counted_once_one_pepper_is_known(
    first: Mesh, databases: Any, old: Path, new: Path
) -> None:
    customer: Customer = await first.customer()
    connection = await databases.postgres.connect(settings_of(first).postgres_database)
    try:
        await connection.execute("UPDATE keys SET pepper_id = NULL")
    finally:
        await connection.close()
    counted = await census(first, new, old)
    assert (counted.unrecorded, counted.lost) == (2, 0)
    async with replica(first, new, [old]) as moved:
        assert await opens(moved, customer.key, first.operator_key) == [True, True]
        assert (await census(moved, new, old)).unrecorded == 0
    assert (await census(first, old)).unrecorded == 0


async def test_the_start_tells_the_numbers_and_warns_of_lost_keys(
    first: Mesh, old: Path, new: Path
) -> None:
    await first.customer()
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    async with open_database(settings_of(first), "auth", MIGRATIONS) as database:
        with capture_logs() as logs:
            await PepperCensus(database, Keyring(pepper_of(new)), meter).tell()
    # The mesh beside it logs as well.
    told, warned = (line for line in logs if "keys" in line)
    assert gauged(reader) == {pepper_of(new).id: 0}
    assert told["keys"] == {pepper_of(new).id: 0}
    assert (warned["log_level"], warned["keys"]) == ("warning", 2)
    secret = await asyncio.to_thread(old.read_text)
    assert not any(secret in str(line) for line in logs)


def gauged(reader: InMemoryMetricReader) -> dict[str, int]:
    """Returns what the gauge says of each pepper."""
    read: Any = reader.get_metrics_data()
    (metric,) = read.resource_metrics[0].scope_metrics[0].metrics
    assert metric.name == "bulkhead.auth.valid_keys"
    return {point.attributes["pepper"]: point.value for point in metric.data.data_points}
