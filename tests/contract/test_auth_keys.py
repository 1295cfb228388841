"""Keys over the wire: expiry, rotation, and what a list shows of them."""

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as limits_pb2
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.shared.ids import new_deployment_id
from services.shared.keyformat import digest
from tests.conftest import StartMesh
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused

HOUR = timedelta(hours=1)
UNKNOWN = "key_" + "0" * 26


@pytest.fixture(scope="session")
def auth(mesh: Mesh) -> AuthServiceStub:
    return mesh.stub(AuthServiceStub, "auth")


async def registered(mesh: Mesh, customer: Customer) -> str:
    deployment_id = new_deployment_id()
    await mesh.stub(AuthServiceStub, "auth", "provisioner").RegisterDeployment(
        pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    return deployment_id


async def issue(
    mesh: Mesh, key: str, expires_at: datetime | None, request_id: str = ""
) -> pb2.IssueKeyResponse:
    return await mesh.stub(AuthServiceStub, "auth").IssueKey(
        pb2.IssueKeyRequest(
            request_id=request_id or fresh_id(),
            expire_time=stamp(expires_at) if expires_at is not None else None,
        ),
        metadata=bearer(key),
    )


async def rotate(
    mesh: Mesh, key: str, key_id: str, grace: timedelta, request_id: str = ""
) -> pb2.RotateKeyResponse:
    span = Duration()
    span.FromTimedelta(grace)
    return await mesh.stub(AuthServiceStub, "auth").RotateKey(
        pb2.RotateKeyRequest(request_id=request_id or fresh_id(), key_id=key_id, grace_period=span),
        metadata=bearer(key),
    )


async def works(mesh: Mesh, key: str) -> bool:
    """Whether auth knows the key; it is used by being asked for."""
    answer = await mesh.stub(AuthServiceStub, "auth", "app_proxy").ResolveKeys(
        pb2.ResolveKeysRequest(digests=[digest(key)])
    )
    return bool(answer.resolutions[0].HasField("principal"))


async def listed(mesh: Mesh, key: str) -> dict[str, pb2.Key]:
    page = await mesh.stub(AuthServiceStub, "auth").ListKeys(
        pb2.ListKeysRequest(), metadata=bearer(key)
    )
    return {found.key_id: found for found in page.keys}


def stamp(at: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(at)
    return message


async def test_a_key_works_until_it_expires(mesh: Mesh) -> None:
    customer = await mesh.customer()
    at = datetime.now(UTC) + timedelta(seconds=3)
    issued = await issue(mesh, customer.key, at)
    assert issued.expire_time.ToDatetime(UTC) == at
    assert await works(mesh, issued.key) or datetime.now(UTC) >= at
    assert (await listed(mesh, customer.key))[issued.key_id].expire_time == issued.expire_time
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await works(mesh, issued.key):
            await asyncio.sleep(0.05)
    assert datetime.now(UTC) >= at


async def test_a_key_is_not_issued_for_the_past(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    past = datetime.now(UTC) - timedelta(seconds=1)
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="expire_time"):
        await issue(mesh, customer.key, past)
    for no_time in (Timestamp(seconds=-(2**62)), Timestamp(seconds=2**40), Timestamp(nanos=-1)):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="expire_time"):
            await auth.IssueKey(
                pb2.IssueKeyRequest(request_id=fresh_id(), expire_time=no_time),
                metadata=bearer(customer.key),
            )


async def test_a_key_never_outlives_the_key_that_issued_it(mesh: Mesh) -> None:
    customer = await mesh.customer()
    issuer = await issue(mesh, customer.key, datetime.now(UTC) + HOUR)
    for asked in (None, datetime.now(UTC) + 2 * HOUR):
        assert (await issue(mesh, issuer.key, asked)).expire_time == issuer.expire_time
    sooner = datetime.now(UTC) + HOUR / 2
    assert (await issue(mesh, issuer.key, sooner)).expire_time.ToDatetime(UTC) == sooner


async def test_repeating_a_request_with_another_expiry_is_refused(mesh: Mesh) -> None:
    customer, request_id = await mesh.customer(), fresh_id()
    at = datetime.now(UTC) + HOUR
    first = await issue(mesh, customer.key, at, request_id)
    assert (await issue(mesh, customer.key, at, request_id)).key_id == first.key_id
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await issue(mesh, customer.key, None, request_id)


async def test_both_keys_work_until_the_grace_period_ends(mesh: Mesh) -> None:
    customer = await mesh.customer()
    deployment_id = await registered(mesh, customer)
    old = await mesh.key(customer, deployment_id, ("db:read",))
    before = datetime.now(UTC)
    new = await rotate(mesh, customer.key, old.key_id, timedelta(seconds=3))
    assert (new.kind, new.deployment_id, new.scopes) == (old.kind, deployment_id, old.scopes)
    assert not new.HasField("expire_time")
    ends_at = new.old_key_expire_time.ToDatetime(UTC)
    assert await works(mesh, old.key) or datetime.now(UTC) >= ends_at
    assert await works(mesh, new.key)
    assert before + timedelta(seconds=3) <= ends_at
    keys = await listed(mesh, customer.key)
    assert keys[old.key_id].successor_key_id == new.key_id
    assert keys[old.key_id].expire_time == new.old_key_expire_time
    assert keys[new.key_id].name == keys[old.key_id].name
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await works(mesh, old.key):
            await asyncio.sleep(0.05)
    assert datetime.now(UTC) >= ends_at
    assert await works(mesh, new.key)


async def test_without_grace_the_old_key_is_revoked_before_the_answer(mesh: Mesh) -> None:
    customer = await mesh.customer()
    old = await mesh.key(customer)
    assert await works(mesh, old.key)
    new = await rotate(mesh, customer.key, old.key_id, timedelta(0))
    assert not await works(mesh, old.key)
    assert await works(mesh, new.key)
    shown = (await listed(mesh, customer.key))[old.key_id]
    assert shown.revoke_time == new.old_key_expire_time
    assert new.effect.effective_at.ToDatetime(UTC) >= shown.revoke_time.ToDatetime(UTC)
    assert shown.successor_key_id == new.key_id


async def test_the_presented_key_can_be_rotated(mesh: Mesh) -> None:
    customer = await mesh.customer()
    graced = await rotate(mesh, customer.key, customer.key_id, HOUR)
    assert await works(mesh, customer.key)
    assert set(graced.scopes) >= {"keys:write", "tenants:write"}
    last = await rotate(mesh, graced.key, graced.key_id, timedelta(0))
    assert not await works(mesh, graced.key)
    assert await works(mesh, last.key)


async def test_a_rotation_prolongs_nothing(mesh: Mesh) -> None:
    customer = await mesh.customer()
    old = await issue(mesh, customer.key, datetime.now(UTC) + HOUR)
    new = await rotate(mesh, customer.key, old.key_id, 2 * HOUR)
    assert new.old_key_expire_time == old.expire_time
    assert new.expire_time == old.expire_time


async def test_repeating_a_rotation_before_the_new_keys_use_gives_it_a_fresh_secret(
    mesh: Mesh,
) -> None:
    customer = await mesh.customer()
    for grace in (HOUR, timedelta(0)):
        old, request_id = await mesh.key(customer), fresh_id()
        first, second = await asyncio.gather(
            *(rotate(mesh, customer.key, old.key_id, grace, request_id) for _ in range(2))
        )
        assert first.key_id == second.key_id
        assert first.old_key_expire_time == second.old_key_expire_time
        third = await rotate(mesh, customer.key, old.key_id, grace, request_id)
        assert third.key_id == first.key_id
        assert not await works(mesh, first.key)
        assert await works(mesh, third.key)
        with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
            await rotate(mesh, customer.key, old.key_id, grace, request_id)


async def test_a_request_that_was_made_with_other_content_is_refused(mesh: Mesh) -> None:
    customer, request_id = await mesh.customer(), fresh_id()
    old, other = await mesh.key(customer), await mesh.key(customer)
    await rotate(mesh, customer.key, old.key_id, HOUR, request_id)
    for key_id, grace in ((other.key_id, HOUR), (old.key_id, 2 * HOUR)):
        with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
            await rotate(mesh, customer.key, key_id, grace, request_id)
    # One request_id is one request, whichever method it went to.
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await issue(mesh, customer.key, None, request_id)
    issued_by = fresh_id()
    await issue(mesh, customer.key, None, issued_by)
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await rotate(mesh, customer.key, other.key_id, HOUR, issued_by)


async def test_a_key_that_has_ended_has_no_successor(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    rotated, revoked = await mesh.key(customer), await mesh.key(customer)
    expired = await issue(mesh, customer.key, datetime.now(UTC) + timedelta(seconds=1))
    await rotate(mesh, customer.key, rotated.key_id, HOUR)
    await auth.RevokeKey(pb2.RevokeKeyRequest(key_id=revoked.key_id), metadata=bearer(customer.key))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await works(mesh, expired.key):
            await asyncio.sleep(0.05)
    for ended in (rotated, revoked, expired):
        with expect_refused("FAILED_PRECONDITION", "KEY_ENDED"):
            await rotate(mesh, customer.key, ended.key_id, HOUR)


async def test_a_key_of_a_retired_deployment_has_no_successor(mesh: Mesh) -> None:
    customer = await mesh.customer()
    deployment_id = await registered(mesh, customer)
    key = await mesh.key(customer, deployment_id)
    await mesh.stub(AuthServiceStub, "auth", "provisioner").RetireDeployment(
        pb2.RetireDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    with expect_refused("FAILED_PRECONDITION", "KEY_ENDED"):
        await rotate(mesh, customer.key, key.key_id, HOUR)


@pytest.mark.promise("P-41")
async def test_another_tenants_key_is_rotated_as_little_as_an_unknown_one(mesh: Mesh) -> None:
    owner, other = await mesh.customer(), await mesh.customer()
    key = await mesh.key(owner)
    for key_id in (key.key_id, UNKNOWN):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await rotate(mesh, other.key, key_id, timedelta(0))
    assert await works(mesh, key.key)


async def test_a_narrow_key_does_not_get_a_wider_one_by_rotating_it(mesh: Mesh) -> None:
    customer = await mesh.customer()
    narrow = await mesh.key(customer, scopes=("keys:write",))
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await rotate(mesh, narrow.key, customer.key_id, HOUR)
    assert list((await rotate(mesh, narrow.key, narrow.key_id, HOUR)).scopes) == ["keys:write"]


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("request_id", pb2.RotateKeyRequest(key_id=UNKNOWN)),
        ("request_id", pb2.RotateKeyRequest(key_id=UNKNOWN, request_id="r" * 65)),
        ("key_id", pb2.RotateKeyRequest(request_id="r")),
        (
            "grace_period",
            pb2.RotateKeyRequest(request_id="r", key_id="k", grace_period=Duration(seconds=-1)),
        ),
        (
            "grace_period",
            pb2.RotateKeyRequest(
                request_id="r", key_id="k", grace_period=Duration(seconds=604_801)
            ),
        ),
        (
            "grace_period",
            pb2.RotateKeyRequest(request_id="r", key_id="k", grace_period=Duration(seconds=2**62)),
        ),
        (
            "grace_period",
            pb2.RotateKeyRequest(
                request_id="r", key_id="k", grace_period=Duration(seconds=604_800, nanos=1)
            ),
        ),
        (
            "grace_period",
            pb2.RotateKeyRequest(
                request_id="r", key_id="k", grace_period=Duration(seconds=1, nanos=-5)
            ),
        ),
        (
            "grace_period",
            pb2.RotateKeyRequest(
                request_id="r", key_id="k", grace_period=Duration(nanos=2_147_483_647)
            ),
        ),
    ],
)
async def test_a_rotation_with_a_bad_field_is_refused_by_name(
    mesh: Mesh, auth: AuthServiceStub, field: str, request_: pb2.RotateKeyRequest
) -> None:
    customer = await mesh.customer()
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await auth.RotateKey(request_, metadata=bearer(customer.key))


async def test_a_list_shows_the_minute_of_the_last_use_wherever_it_was(mesh: Mesh) -> None:
    customer = await mesh.customer()
    unused, used = await mesh.key(customer), await mesh.key(customer)
    deployment_id = await registered(mesh, customer)
    elsewhere = await mesh.key(customer, deployment_id)
    before = datetime.now(UTC).replace(second=0, microsecond=0)
    # One at auth itself, one at a service that remembers it.
    await listed(mesh, used.key)
    await usage(mesh, elsewhere.key)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not shown_as_used(keys := await listed(mesh, customer.key), used, elsewhere):
            await asyncio.sleep(0.1)
    at = keys[elsewhere.key_id].last_use_time.ToDatetime(UTC)
    assert before <= at <= datetime.now(UTC)
    assert (at.second, at.microsecond) == (0, 0)
    assert not keys[unused.key_id].HasField("last_use_time")


async def test_what_was_noted_of_uses_is_written_before_auth_ends(start_mesh: StartMesh) -> None:
    async with start_mesh({}, ("auth",)) as own:
        customer = await own.customer()
        used = await own.key(customer)
        await listed(own, used.key)
        await own.stop("auth")
        await own.start("auth")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    keys = await listed(own, customer.key)
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)
        assert shown_as_used(keys, used)


def shown_as_used(keys: dict[str, pb2.Key], *issued: pb2.IssueKeyResponse) -> bool:
    return all(keys[key.key_id].HasField("last_use_time") for key in issued)


async def usage(mesh: Mesh, key: str) -> None:
    """Calls ratelimit with the key."""
    await mesh.stub(RatelimitServiceStub, "ratelimit").GetUsage(
        limits_pb2.GetUsageRequest(), metadata=bearer(key)
    )


async def test_a_list_shows_the_readable_prefix_and_the_last_four_and_no_more(mesh: Mesh) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    new = await rotate(mesh, customer.key, key.key_id, HOUR)
    shown = (await listed(mesh, customer.key))[new.key_id]
    assert shown.hint == f"smcp_1t_…{new.key[-4:]}"
    assert new.key[8:-4] not in str(shown)


async def test_a_key_that_ends_sooner_replaces_no_other(mesh: Mesh) -> None:
    customer = await mesh.customer()
    lasting = await mesh.key(customer)
    soon = await issue(mesh, customer.key, datetime.now(UTC) + HOUR)
    with expect_refused("FAILED_PRECONDITION", "KEY_EXPIRES_SOONER"):
        await rotate(mesh, soon.key, lasting.key_id, timedelta(0))
    assert await works(mesh, lasting.key)
    # Nor does it get another's successor by repeating the rotation.
    made = await rotate(mesh, customer.key, lasting.key_id, HOUR, "nightly")
    with expect_refused("FAILED_PRECONDITION", "KEY_EXPIRES_SOONER"):
        await rotate(mesh, soon.key, lasting.key_id, HOUR, "nightly")
    assert await works(mesh, made.key)
    # Itself it may replace, also a second time when the answer was lost.
    first = await rotate(mesh, soon.key, soon.key_id, HOUR, "own")
    again = await rotate(mesh, soon.key, soon.key_id, HOUR, "own")
    assert (again.key_id, again.expire_time) == (first.key_id, soon.expire_time)
