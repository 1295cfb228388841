"""Events that were gathered, recorded by one call: each in the log of the key that it is of."""

import asyncio
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.auth.settings import Settings
from services.shared.keyformat import digest, new_key
from services.shared.principal import KeyKind
from tests.audit_logs import verified, whole_log
from tests.databases import Databases
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused

VEND = "bulkhead.credentials.v1.CredentialsService/Vend"


@pytest.fixture(scope="session")
def credentials(mesh: Mesh) -> AuthServiceStub:
    """auth, as the service credentials calls it."""
    return mesh.stub(AuthServiceStub, "auth", "credentials")


def event(key: str, **fields: Any) -> pb2.NewAuditEvent:
    given = {"key_digest": digest(key), "method": VEND, "peer": "edge"} | fields
    return pb2.NewAuditEvent(**given)


async def record(credentials: AuthServiceStub, *events: pb2.NewAuditEvent) -> list[str]:
    answer = await credentials.RecordAuditEvents(pb2.RecordAuditEventsRequest(events=events))
    return list(answer.event_ids)


async def logged(mesh: Mesh, customer: Customer, method: str = VEND) -> list[pb2.AuditEvent]:
    """Returns the events of one method, oldest first, of a log that is a whole chain."""
    assert (await verified(mesh, customer)).problems == []
    return [event for event in (await whole_log(mesh, customer))[0] if event.method == method]


@pytest.mark.promise("P-33")
async def test_each_event_is_in_the_log_of_the_key_that_it_is_of_in_order(
    mesh: Mesh, credentials: AuthServiceStub
) -> None:
    customers = [await mesh.customer(), await mesh.customer(), await mesh.customer()]
    owners = [customers[number % 3] for number in range(31)]
    events = [
        event(
            owner.key,
            resources={"token": f"hash {number}"},
            reason=f"purpose {number}",
            trace_id=f"{number:032x}",
        )
        for number, owner in enumerate(owners)
    ]
    event_ids = await record(credentials, *events)
    assert len(set(event_ids)) == len(events)
    for customer in customers:
        numbers = [number for number, owner in enumerate(owners) if owner is customer]
        found = await logged(mesh, customer)
        assert [each.event_id for each in found] == [event_ids[number] for number in numbers]
        assert {(each.key_id, each.peer) for each in found} == {(customer.key_id, "edge")}
        assert [(dict(each.resources), each.reason, each.trace_id) for each in found] == [
            ({"token": f"hash {number}"}, f"purpose {number}", f"{number:032x}")
            for number in numbers
        ]


@pytest.mark.promise("P-33")
@pytest.mark.promise("P-37")
async def test_of_a_key_that_is_revoked_expired_or_unknown_nothing_is_recorded(
    mesh: Mesh, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    revoked = await mesh.key(customer)
    assert all(await record(credentials, event(revoked.key)))
    await mesh.stub(AuthServiceStub, "auth").RevokeKey(
        pb2.RevokeKeyRequest(key_id=revoked.key_id), metadata=bearer(customer.key)
    )
    false = [revoked.key, new_key(KeyKind.CONNECTION), await mesh.job_key(customer)]
    event_ids = await record(
        credentials, event(false[0]), event(customer.key), *map(event, false[1:])
    )
    assert [bool(each) for each in event_ids] == [False, True, False, False]
    assert [each.key_id for each in await logged(mesh, customer)] == [
        revoked.key_id,
        customer.key_id,
    ]


@pytest.mark.promise("P-30")
async def test_a_jobs_key_is_recorded_for_calls_of_the_service_that_holds_it_alone(
    mesh: Mesh, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    job = await mesh.job_key(customer)
    events = [event(job, peer=peer) for peer in ("edge", "provisioner", "credentials")]
    event_ids = await record(credentials, *events)
    assert [bool(each) for each in event_ids] == [False, True, False]
    assert [each.peer for each in await logged(mesh, customer)] == ["provisioner"]


async def test_a_key_that_expires_is_found_so_by_the_clock_of_the_database(
    mesh: Mesh, credentials: AuthServiceStub, databases: Databases
) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    settings = mesh.settings["auth"]
    assert isinstance(settings, Settings)
    superuser = await databases.postgres.connect(settings.postgres_database)
    try:
        # Nobody is told: who remembers the key takes it for valid.
        await superuser.execute("UPDATE keys SET expires_at = now() WHERE key_id = $1", key.key_id)
    finally:
        await superuser.close()
    assert await record(credentials, event(key.key)) == [""]
    assert await logged(mesh, customer) == []


async def test_an_operators_event_is_in_the_operators_own_chain(
    mesh: Mesh, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    event_ids = await record(credentials, event(mesh.operator_key), event(customer.key))
    assert all(event_ids)
    assert [each.event_id for each in await logged(mesh, customer)] == event_ids[1:]


async def test_many_calls_at_once_make_whole_chains(
    mesh: Mesh, credentials: AuthServiceStub
) -> None:
    one, two = await mesh.customer(), await mesh.customer()
    batch = [event(one.key), event(two.key), event(one.key)]
    answers = await asyncio.gather(
        *(record(credentials, *batch) for _ in range(20)),
        *(record(credentials, event(one.key)) for _ in range(20)),
    )
    event_ids = [event_id for answer in answers for event_id in answer]
    assert len(set(event_ids)) == 80
    found = [each.event_id for each in await logged(mesh, one)]
    # The events of one call follow each other.
    for answer in answers[:20]:
        place = found.index(answer[0])
        assert found[place + 1] == answer[2]
    assert {*found, *(each.event_id for each in await logged(mesh, two))} == set(event_ids)


async def test_what_a_caller_wrote_is_recorded_as_it_can_be_stored(
    mesh: Mesh, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    resources = {"connection": "con_\x1b1", "alias": customer.key}
    await record(
        credentials,
        event(customer.key, resources=resources, reason=f" with {customer.key}\n for \x00 "),
        event(customer.key, reason="r" * 200),
    )
    strange, longest = await logged(mesh, customer)
    assert dict(strange.resources) == {"connection": "con_\ufffd1", "alias": "smcp_1t_…"}
    assert strange.reason == "with smcp_1t_…\ufffd for \ufffd"
    assert longest.reason == "r" * 200


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("key_digest", {"key_digest": b"short"}),
        ("method", {"method": ""}),
        ("method", {"method": "bulkhead.auth.v1.AuthService/RevokeKey"}),
        ("peer", {"peer": ""}),
        ("peer", {"peer": "p" * 101}),
        ("resources", {"resources": {f"kind{number}": "id" for number in range(33)}}),
        ("resources", {"resources": {"": "id"}}),
        ("reason", {"reason": "r" * 201}),
        ("trace_id", {"trace_id": "0" * 31}),
        ("trace_id", {"trace_id": "G" * 32}),
    ],
)
async def test_one_bad_event_refuses_the_whole_call_by_its_field(
    mesh: Mesh, credentials: AuthServiceStub, field: str, fields: Any
) -> None:
    customer = await mesh.customer()
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await record(credentials, event(customer.key), event(customer.key, **fields))
    assert await logged(mesh, customer) == []


async def test_a_call_has_1_to_256_events_and_comes_from_credentials(
    mesh: Mesh, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    for events in ([], [event(customer.key)] * 257):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="events"):
            await record(credentials, *events)
    assert all(await record(credentials, *[event(customer.key)] * 256))
    assert len(await logged(mesh, customer)) == 256
    for peer in ("edge", "app_proxy"):
        with expect_refused("PERMISSION_DENIED", "PEER_REFUSED"):
            await record(mesh.stub(AuthServiceStub, "auth", peer), event(customer.key))


async def test_a_chain_that_cannot_be_written_keeps_no_other_from_being_whole(
    mesh: Mesh, credentials: AuthServiceStub, databases: Databases
) -> None:
    stuck, free = await mesh.customer(), await mesh.customer()
    settings = mesh.settings["auth"]
    assert isinstance(settings, Settings)
    superuser = await databases.postgres.connect(settings.postgres_database)
    name = f"stuck_{fresh_id()}"
    try:
        await superuser.execute(
            f"ALTER TABLE audit_events ADD CONSTRAINT {name} CHECK"
            f" (tenant_id <> '{stuck.tenant_id}' OR reason <> 'last') NOT VALID"
        )
        with expect_refused("UNAVAILABLE", "AUDIT_UNAVAILABLE"):
            await record(
                credentials,
                event(stuck.key),
                event(free.key),
                event(stuck.key, reason="last"),
                event(free.key),
            )
    finally:
        await superuser.execute(f"ALTER TABLE audit_events DROP CONSTRAINT IF EXISTS {name}")
        await superuser.close()
    # Of the one everything or nothing, of the other as well.
    assert await logged(mesh, stuck) == []
    assert len(await logged(mesh, free)) == 2
