"""`envoy.service.ratelimit.v3.RateLimitService`, as the API and the Go service's users have it."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from bulkhead.envoy.ratelimit.v3 import rate_limit_pb2 as pb
from bulkhead.envoy.ratelimit.v3.rate_limit_pb2_grpc import RateLimitServiceStub
from google.protobuf import wrappers_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from deploy.local.valkey import valkey_server
from tests.conftest import StartMesh
from tests.mesh import Mesh

OK, OVER = pb.RateLimitResponse.OK, pb.RateLimitResponse.OVER_LIMIT
UNITS = pb.RateLimitResponse.RateLimit
CONFIG = """
domain: shop
descriptors:
  - key: path
    value: /search
    rate_limit: {unit: year, requests_per_unit: 3, name: search}
  - key: path
    value: /files/*
    rate_limit: {unit: month, requests_per_unit: 1}
  - key: path
    value: /shared/*
    share_threshold: true
    rate_limit: {unit: month, requests_per_unit: 1}
  - key: path
    rate_limit: {unit: week, requests_per_unit: 100}
  - key: user
    rate_limit: {unit: year, requests_per_unit: 2}
  - key: internal
    rate_limit: {unlimited: true}
  - key: banned
    rate_limit: {unit: day, requests_per_unit: 0}
  - key: trial
    shadow_mode: true
    rate_limit: {unit: year, requests_per_unit: 1}
  - key: tokens
    count_refused: true
    rate_limit: {unit: year, requests_per_unit: 10}
  - key: special
    rate_limit: {unit: year, requests_per_unit: 5, replaces: [{name: search}]}
  - key: plan
    value: free
    descriptors:
      - key: user
        rate_limit: {unit: year, requests_per_unit: 1}
"""


@pytest.fixture(scope="module")
async def limiter(
    start_mesh: StartMesh, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mesh]:
    """A mesh of the limiter alone, with limits of its own."""
    config = tmp_path_factory.mktemp("limits") / "shop.yaml"
    # Counters outlive a mesh: each has its own domain.
    config.write_text(CONFIG.replace("shop", domain(config)))
    overrides = {"ratelimit": {"ratelimit_config": config}}
    async with start_mesh(overrides, names=("auth", "ratelimit")) as mesh:
        yield mesh


def domain(config: Path) -> str:
    return f"shop-{uuid.uuid5(uuid.NAMESPACE_URL, str(config)).hex}"


def descriptor(
    *entries: tuple[str, str],
    hits: int | None = None,
    limit: pb.RateLimitDescriptor.RateLimitOverride | None = None,
    given_back: bool = False,
) -> pb.RateLimitDescriptor:
    return pb.RateLimitDescriptor(
        entries=[pb.RateLimitDescriptor.Entry(key=key, value=value) for key, value in entries],
        hits_addend=None if hits is None else wrappers_pb2.UInt64Value(value=hits),
        limit=limit,
        is_negative_hits=given_back,
    )


async def ask(
    mesh: Mesh,
    *descriptors: pb.RateLimitDescriptor,
    hits: int = 0,
    peer: str = "edge",
    **other: str,
) -> pb.RateLimitResponse:
    stub = mesh.stub(RateLimitServiceStub, "ratelimit", peer)
    named = other.get("domain", domain(mesh.settings["ratelimit"].ratelimit_config))  # type: ignore[attr-defined]
    request = pb.RateLimitRequest(domain=named, descriptors=descriptors, hits_addend=hits)
    return await stub.ShouldRateLimit(request)


def fresh(key: str = "user") -> pb.RateLimitDescriptor:
    return descriptor((key, uuid.uuid4().hex))


async def test_hits_are_admitted_up_to_the_limit_and_told(limiter: Mesh) -> None:
    asked = fresh()
    first, second, third = [await ask(limiter, asked) for _ in range(3)]
    assert [each.overall_code for each in (first, second, third)] == [OK, OK, OVER]
    assert [each.statuses[0].limit_remaining for each in (first, second, third)] == [1, 0, 0]
    (status,) = third.statuses
    assert status.code == OVER
    assert (status.current_limit.requests_per_unit, status.current_limit.unit) == (2, UNITS.YEAR)
    assert not status.current_limit.HasField("unit_multiplier")
    assert 0 < status.duration_until_reset.seconds <= 366 * 86_400
    assert status.duration_until_reset.nanos == 0


async def test_other_values_have_counters_of_their_own(limiter: Mesh) -> None:
    asked = fresh()
    await ask(limiter, asked, hits=2)
    assert (await ask(limiter, asked)).overall_code == OVER
    assert (await ask(limiter, fresh())).overall_code == OK


async def test_a_request_over_one_limit_burns_nothing_of_the_others(limiter: Mesh) -> None:
    used_up, other = fresh(), fresh()
    await ask(limiter, used_up, hits=2)
    refused = await ask(limiter, other, used_up)
    assert refused.overall_code == OVER
    assert [status.code for status in refused.statuses] == [OK, OVER]
    assert refused.statuses[0].limit_remaining == 2
    assert (await ask(limiter, other)).statuses[0].limit_remaining == 1


async def test_more_hits_than_are_left_take_none(limiter: Mesh) -> None:
    asked = fresh()
    refused = await ask(limiter, asked, hits=3)
    assert refused.overall_code == OVER
    assert refused.statuses[0].limit_remaining == 2


async def test_a_descriptor_asked_twice_counts_twice(limiter: Mesh) -> None:
    asked = fresh()
    assert (await ask(limiter, asked, asked, asked)).overall_code == OVER
    assert (await ask(limiter, asked, asked)).overall_code == OK
    assert (await ask(limiter, asked)).overall_code == OVER


async def test_hits_are_the_descriptors_own_or_the_requests_or_one(limiter: Mesh) -> None:
    shared, own, none = ("path", uuid.uuid4().hex), ("path", uuid.uuid4().hex), ("path", "none")
    answer = await ask(limiter, descriptor(shared), descriptor(own, hits=7), hits=5)
    assert [status.limit_remaining for status in answer.statuses] == [95, 93]
    before, after = [await ask(limiter, descriptor(none, hits=0)) for _ in range(2)]
    assert before.statuses[0].limit_remaining == after.statuses[0].limit_remaining == 100


async def test_no_hits_ask_whether_there_is_anything_left(limiter: Mesh) -> None:
    value = uuid.uuid4().hex
    assert (await ask(limiter, descriptor(("user", value), hits=0))).overall_code == OK
    await ask(limiter, descriptor(("user", value)), hits=2)
    assert (await ask(limiter, descriptor(("user", value), hits=0))).overall_code == OVER


async def test_hits_can_be_given_back_but_not_more_than_were_taken(limiter: Mesh) -> None:
    value = uuid.uuid4().hex
    await ask(limiter, descriptor(("user", value)), hits=2)
    back = descriptor(("user", value), hits=1, given_back=True)
    assert (await ask(limiter, back)).statuses[0].limit_remaining == 1
    many = descriptor(("user", value), hits=50, given_back=True)
    assert (await ask(limiter, many)).statuses[0].limit_remaining == 2


async def test_hits_that_happened_already_are_counted_though_they_are_refused(
    limiter: Mesh,
) -> None:
    value, other = uuid.uuid4().hex, fresh()
    told = await ask(limiter, descriptor(("tokens", value), hits=25), other)
    assert told.overall_code == OVER
    assert (await ask(limiter, descriptor(("tokens", value), hits=0))).overall_code == OVER
    assert (await ask(limiter, other)).statuses[0].limit_remaining == 1


async def test_shadow_mode_counts_and_admits(limiter: Mesh) -> None:
    asked = fresh("trial")
    first, second, third = [await ask(limiter, asked) for _ in range(3)]
    assert [each.overall_code for each in (first, second, third)] == [OK, OK, OK]
    assert [each.statuses[0].code for each in (first, second, third)] == [OK, OK, OK]
    assert [each.statuses[0].limit_remaining for each in (first, second, third)] == [0, 0, 0]


async def test_unlimited_is_ok_with_the_largest_number_left(limiter: Mesh) -> None:
    (status,) = (await ask(limiter, fresh("internal"), hits=1_000_000)).statuses
    assert (status.code, status.limit_remaining) == (OK, 2**32 - 1)
    assert not status.HasField("current_limit")


async def test_a_limit_of_none_bans(limiter: Mesh) -> None:
    assert (await ask(limiter, fresh("banned"))).overall_code == OVER


async def test_what_no_rule_is_for_has_no_limit(limiter: Mesh) -> None:
    unknown = await ask(limiter, descriptor(("other", "value")))
    shallow = await ask(limiter, descriptor(("plan", "free")))
    deep = await ask(limiter, descriptor(("plan", "free"), ("user", "a"), ("path", "/")))
    elsewhere = await ask(limiter, fresh(), domain="nobody's")
    for answer in (unknown, shallow, deep, elsewhere):
        assert answer.overall_code == OK
        assert not answer.statuses[0].HasField("current_limit")


async def test_nested_rules_match_entry_by_entry(limiter: Mesh) -> None:
    user = ("user", uuid.uuid4().hex)
    asked = descriptor(("plan", "free"), user)
    assert [(await ask(limiter, asked)).overall_code for _ in range(2)] == [OK, OVER]
    assert (await ask(limiter, descriptor(("plan", "pro"), user))).overall_code == OK


async def test_a_star_at_the_end_of_a_value_stands_for_the_rest(limiter: Mesh) -> None:
    one = descriptor(("path", "/files/one"))
    two = descriptor(("path", "/files/two"))
    assert [(await ask(limiter, each)).overall_code for each in (one, one, two)] == [OK, OVER, OK]
    assert (await ask(limiter, descriptor(("path", "/file")))).statuses[0].current_limit.unit == (
        UNITS.WEEK
    )


async def test_a_shared_star_is_counted_as_one(limiter: Mesh) -> None:
    one = descriptor(("path", "/shared/one"))
    two = descriptor(("path", "/shared/two"))
    assert [(await ask(limiter, each)).overall_code for each in (one, two)] == [OK, OVER]


async def test_a_limit_that_replaces_another_stands_alone(limiter: Mesh) -> None:
    search, special = descriptor(("path", "/search")), fresh("special")
    assert (await ask(limiter, search)).statuses[0].current_limit.name == "search"
    replaced, replacing = (await ask(limiter, search, special)).statuses
    assert not replaced.HasField("current_limit")
    assert replacing.current_limit.requests_per_unit == 5
    assert (await ask(limiter, search)).statuses[0].limit_remaining == 1


async def test_a_request_may_bring_a_limit_of_its_own(limiter: Mesh) -> None:
    limit = pb.RateLimitDescriptor.RateLimitOverride(
        requests_per_unit=1, unit=pb.YEAR, unit_multiplier=wrappers_pb2.UInt32Value(value=2)
    )
    asked = descriptor(("other", uuid.uuid4().hex), limit=limit)
    first, second = [await ask(limiter, asked) for _ in range(2)]
    assert [first.overall_code, second.overall_code] == [OK, OVER]
    assert second.statuses[0].current_limit.unit_multiplier.value == 2


@pytest.mark.parametrize(
    ("field", "descriptors", "named"),
    [
        ("domain", [fresh()], ""),
        ("descriptors", [], "any"),
        ("descriptors", [fresh()] * 65, "any"),
        ("descriptors[0].entries", [descriptor()], "any"),
        ("descriptors[0].entries", [descriptor(*[("key", "value")] * 33)], "any"),
        (
            "descriptors[1].limit.unit",
            [fresh(), descriptor(("a", "b"), limit=pb.RateLimitDescriptor.RateLimitOverride())],
            "any",
        ),
        (
            "descriptors[0].limit.unit_multiplier",
            [
                descriptor(
                    ("a", "b"),
                    limit=pb.RateLimitDescriptor.RateLimitOverride(
                        unit=pb.DAY, unit_multiplier=wrappers_pb2.UInt32Value(value=0)
                    ),
                )
            ],
            "any",
        ),
    ],
)
async def test_what_cannot_be_decided_is_refused_by_field(
    limiter: Mesh, field: str, descriptors: list[pb.RateLimitDescriptor], named: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(limiter, *descriptors, domain=named)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    request = error_details_pb2.BadRequest()
    status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]  # it is a call too
    assert [each for each in status.details if each.Unpack(request)]
    assert request.field_violations[0].field == field


@pytest.mark.parametrize("peer", ["auth", "provisioner", "app_proxy", "ratelimit"])
async def test_only_the_front_door_may_ask(limiter: Mesh, peer: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(limiter, fresh(), peer=peer)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_without_limits_of_its_own_it_refuses_to_answer(mesh: Mesh) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(mesh, fresh(), domain="any")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_when_the_counters_are_away_nothing_is_open(
    start_mesh: StartMesh, tmp_path: Path
) -> None:
    config = tmp_path / "shop.yaml"
    config.write_text(CONFIG)
    async with AsyncExitStack() as counters:
        server = await counters.enter_async_context(valkey_server(tmp_path / "valkey"))
        overrides = {
            "ratelimit": {
                "ratelimit_config": config,
                "valkey_port": server.port,
                "valkey_password_file": server.password_files["ratelimit"],
            }
        }
        async with start_mesh(overrides, names=("auth", "ratelimit")) as mesh:
            assert (await ask(mesh, fresh(), domain="shop")).overall_code == OK
            await counters.aclose()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(mesh, fresh(), domain="shop")
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
