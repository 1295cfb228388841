"""A database of auth that was restored to an earlier moment: what ended since ends again."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from google.protobuf.duration_pb2 import Duration
from structlog.testing import capture_logs

from deploy.local.ports import free_ports
from deploy.local.postgres import MeshPostgres
from services.auth.restoration import UnreadableLineError, ended_keys
from services.auth.restored import restored
from services.auth.settings import Settings
from services.shared.ids import KeyId
from services.shared.keyformat import digest
from tests.conftest import StartMesh
from tests.mesh import Customer, Mesh, bearer, fresh_id

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Saved:
    """auth with keys in it, and a copy of its database from before three of them ended."""

    copy: Settings
    tenant: Customer
    revoked: str
    replaced: str
    # Works for another day.
    succeeded: str
    alive: str
    made_since: str
    ended: Mapping[KeyId, datetime]
    lines: str
    auth: Mesh


@pytest.fixture
async def saved(start_mesh: StartMesh, postgres: MeshPostgres) -> AsyncIterator[Saved]:
    async with start_mesh({}, ["auth"]) as mesh:
        tenant = await mesh.customer()
        revoked, replaced, succeeded, alive = [await mesh.key(tenant) for _ in range(4)]
        copy = await copied(mesh, postgres)
        with capture_logs() as logs:
            made_since = await mesh.key(tenant)
            stub = mesh.stub(AuthServiceStub, "auth")
            await stub.RevokeKey(
                pb2.RevokeKeyRequest(key_id=revoked.key_id), metadata=bearer(tenant.key)
            )
            for key, grace in ((replaced, 0), (succeeded, 86_400)):
                await stub.RotateKey(
                    pb2.RotateKeyRequest(
                        request_id=fresh_id(),
                        key_id=key.key_id,
                        grace_period=Duration(seconds=grace),
                    ),
                    metadata=bearer(tenant.key),
                )
        lines = "\n".join(json.dumps(line, default=str) for line in logs)
        keys = (revoked.key, replaced.key, succeeded.key, alive.key, made_since.key)
        yield Saved(copy, tenant, *keys, ended_keys(lines.splitlines()), lines, mesh)


async def copied(mesh: Mesh, postgres: MeshPostgres) -> Settings:
    """Returns the settings of an auth over a copy of the database as it is now."""
    settings = mesh.settings["auth"]
    assert isinstance(settings, Settings)
    name = f"{settings.postgres_database}_saved"
    await mesh.stop("auth")
    connection = await postgres.connect()
    try:
        await connection.execute(
            f'CREATE DATABASE "{name}" TEMPLATE "{settings.postgres_database}" OWNER auth'
        )
    finally:
        await connection.close()
    await mesh.start("auth")
    [port] = free_ports(1)
    return settings.model_copy(update={"postgres_database": name, "listen": f"127.0.0.1:{port}"})


@asynccontextmanager
async def serving(saved: Saved) -> AsyncIterator[Mesh]:
    """Yields auth over the copy."""
    port = int(saved.copy.listen.rsplit(":", 1)[1])
    first = saved.auth
    mesh = Mesh(first.home, first.pki, {"auth": port}, {"auth": saved.copy}, first.operator_key)
    await mesh.start("auth")
    try:
        yield mesh
    finally:
        for channel in mesh._channels.values():  # noqa: SLF001 as its own module closes them
            await channel.close()
        await mesh.stop("auth")


async def opens(mesh: Mesh, *keys: str) -> list[bool]:
    """Whether auth says of each key that it is someone's."""
    answer = await mesh.stub(AuthServiceStub, "auth", "ratelimit").ResolveKeys(
        pb2.ResolveKeysRequest(digests=[digest(key) for key in keys])
    )
    return [resolution.HasField("principal") for resolution in answer.resolutions]


@pytest.mark.promise("P-37")
async def test_keys_that_ended_since_end_again_by_the_log(saved: Saved) -> None:
    async with serving(saved) as mesh:
        # Without what follows they would live again.
        assert await opens(mesh, saved.revoked, saved.replaced) == [True, True]
    said = await restored(saved.copy, saved.ended, None)
    assert said == "3 keys ended; 0 tenants have no key left"
    async with serving(saved) as mesh:
        ended = await opens(mesh, saved.revoked, saved.replaced, saved.made_since)
        assert ended == [False, False, False]
        # The one that was to work for another day does, and ends then.
        assert await opens(mesh, saved.succeeded, saved.alive) == [True, True]
        listed = await mesh.stub(AuthServiceStub, "auth").ListKeys(
            pb2.ListKeysRequest(), metadata=bearer(saved.tenant.key)
        )
    ends = {key.key_id: key.expire_time.ToDatetime(UTC) for key in listed.keys}
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert any(abs(at - tomorrow) < 5 * MINUTE for at in ends.values())
    # Once more changes nothing.
    assert (await restored(saved.copy, saved.ended, None)).startswith("1 keys ended")


@pytest.mark.promise("P-37")
async def test_without_a_log_every_key_ends_and_each_tenant_gets_one(
    saved: Saved, tmp_path: Path
) -> None:
    folder = tmp_path / "keys"
    said = await restored(saved.copy, None, folder)
    assert said == f"5 keys ended; keys of 1 tenants are in {folder}"
    [file] = folder.iterdir()
    assert file.name == f"{saved.tenant.tenant_id}.key"
    assert file.stat().st_mode & 0o777 == 0o600
    new = file.read_text()
    async with serving(saved) as mesh:
        old = (saved.tenant.key, saved.revoked, saved.replaced, saved.succeeded, saved.alive)
        assert await opens(mesh, *old) == [False] * 5
        assert await opens(mesh, new) == [True]
        # The operator's key is that of its file, whatever the database says.
        await mesh.customer()
        made = await mesh.key(Customer(saved.tenant.tenant_id, new, ""))
        assert await opens(mesh, made.key) == [True]
        events = await mesh.stub(AuthServiceStub, "auth").ListAuditEvents(
            pb2.ListAuditEventsRequest(), metadata=bearer(new)
        )
    assert "restored: a key for a tenant without one" in {event.reason for event in events.events}


async def test_replicas_of_the_lost_time_are_told_to_forget_everything(saved: Saved) -> None:
    """What they heard of is not what the restored database would tell them."""
    await restored(saved.copy, saved.ended, None)
    async with serving(saved) as mesh:
        answer = await mesh.stub(AuthServiceStub, "auth", "ratelimit").AcknowledgeRevocations(
            pb2.AcknowledgeRevocationsRequest(watcher_id=fresh_id(), sequence=3)
        )
    assert answer.forget_all
    assert answer.sequence > 1_000_000


def test_lines_are_found_among_others_and_the_earliest_end_counts() -> None:
    at = datetime(2026, 11, 22, 12, tzinfo=UTC)

    def line(key: str, when: datetime) -> str:
        return json.dumps({"event": "keys ended", "key_ids": [key], "at": when.isoformat()})

    lines = (
        "auth-0 | " + line("key_a", at + MINUTE),
        line("key_a", at),
        '{"event": "call", "method": "keys ended"}',
        "something else",
        json.dumps({"log": line("key_b", at) + "\n", "stream": "stderr"}),
        '{app="auth"} ' + line("key_c", at) + " # of a collector",
    )
    assert ended_keys(lines) == {"key_a": at, "key_b": at, "key_c": at}


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "keys ended", "key_i',
        "keys ended",
        '{"event": "keys ended", "at": "2026-11-22T12:00:00Z"}',
        '{"event": "keys ended", "key_ids": ["key_a"], "at": "then"}',
    ],
    ids=["cut", "no event", "no keys", "no time"],
)
def test_a_line_of_ended_keys_that_does_not_say_which_is_not_passed_over(line: str) -> None:
    with pytest.raises(UnreadableLineError, match=r"^2$"):
        ended_keys(["something else", line])


def test_no_key_is_in_the_lines(saved: Saved) -> None:
    for key in (saved.revoked, saved.replaced, saved.succeeded):
        assert key not in saved.lines
