"""The audit log over the wire: what is listed, by which filter, page by page."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from tests.audit_logs import whole_log
from tests.mesh import Customer, Mesh, bearer
from tests.refusals import expect_refused

PREFIX = "bulkhead.auth.v1.AuthService"


@pytest.fixture(scope="session")
def auth(mesh: Mesh) -> AuthServiceStub:
    return mesh.stub(AuthServiceStub, "auth")


async def listed(auth: AuthServiceStub, customer: Customer, **fields: Any) -> list[int]:
    """Returns the sequences of the events that are asked for."""
    answer = await auth.ListAuditEvents(
        pb2.ListAuditEventsRequest(**fields), metadata=bearer(customer.key)
    )
    return [event.sequence for event in answer.events]


async def test_a_log_without_events_has_no_head(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    answer = await auth.ListAuditEvents(pb2.ListAuditEventsRequest(), metadata=bearer(customer.key))
    assert (list(answer.events), answer.head_sequence, answer.head_hash) == ([], 0, b"")


async def test_events_are_listed_newest_first_with_the_head_of_the_whole_log(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    keys = [await mesh.key(customer) for _ in range(3)]
    await auth.RevokeKey(pb2.RevokeKeyRequest(key_id=keys[0].key_id), metadata=bearer(customer.key))
    answer = await auth.ListAuditEvents(
        pb2.ListAuditEventsRequest(page_size=1), metadata=bearer(customer.key)
    )
    (event,) = answer.events
    assert (event.sequence, event.method) == (4, f"{PREFIX}/RevokeKey")
    assert dict(event.resources) == {"key": keys[0].key_id}
    assert (event.key_id, event.peer, event.reason) == (customer.key_id, "edge", "")
    assert (answer.head_sequence, answer.head_hash) == (4, event.hash)
    # The head is that of the log, not of what was asked for.
    older = await auth.ListAuditEvents(
        pb2.ListAuditEventsRequest(method=f"{PREFIX}/IssueKey"), metadata=bearer(customer.key)
    )
    assert [one.sequence for one in older.events] == [3, 2, 1]
    assert (older.head_sequence, older.head_hash) == (4, event.hash)


async def test_each_filter_and_all_together(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    second = await mesh.key(customer)
    third = await mesh.key(Customer(customer.tenant_id, second.key, second.key_id))
    revoke = pb2.RevokeKeyRequest(key_id=third.key_id)
    await auth.RevokeKey(revoke, metadata=bearer(second.key))
    await auth.RevokeKey(revoke, metadata=bearer(customer.key))
    events, _ = await whole_log(mesh, customer)
    by_method = {"method": f"{PREFIX}/RevokeKey"}
    assert await listed(auth, customer, **by_method) == [4, 3]
    assert await listed(auth, customer, key_id=second.key_id) == [3, 2]
    assert await listed(auth, customer, resource_id=third.key_id) == [4, 3]
    assert await listed(auth, customer, start_time=events[2].time) == [4, 3]
    assert await listed(auth, customer, end_time=events[2].time) == [2, 1]
    only = {"start_time": events[1].time, "end_time": events[3].time, "key_id": second.key_id}
    assert await listed(auth, customer, **only, **by_method, resource_id=third.key_id) == [3]
    for nothing in ({"method": "x"}, {"key_id": "key_x"}, {"resource_id": "dep_x"}):
        assert await listed(auth, customer, **nothing) == []
    assert await listed(auth, customer, start_time=ahead(), end_time=events[0].time) == []


def ahead() -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    return stamp


async def test_pages_follow_each_other_while_the_log_grows(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    for _ in range(5):
        await mesh.key(customer)
    request = pb2.ListAuditEventsRequest(page_size=2, method=f"{PREFIX}/IssueKey")
    seen: list[int] = []
    while True:
        page = await auth.ListAuditEvents(request, metadata=bearer(customer.key))
        seen += [event.sequence for event in page.events]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
        await mesh.key(customer)
    assert seen == [5, 4, 3, 2, 1]


@pytest.mark.promise("P-41")
async def test_no_filter_shows_what_another_tenant_did(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer, other = await mesh.customer(), await mesh.customer()
    key = await mesh.key(customer)
    revoke = pb2.RevokeKeyRequest(key_id=key.key_id)
    await auth.RevokeKey(revoke, metadata=bearer(customer.key))
    for foreign in ({"key_id": customer.key_id}, {"resource_id": key.key_id}, {}):
        assert await listed(auth, other, **foreign) == []
    # What the other tenant tried itself is in its own log, and says nothing more.
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await auth.RevokeKey(revoke, metadata=bearer(other.key))
    assert await listed(auth, other, resource_id=key.key_id) == [1]
    assert await listed(auth, customer, resource_id=key.key_id) == [2]


@pytest.mark.promise("P-41")
async def test_a_token_belongs_to_its_filter_and_its_tenant(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer, other = await mesh.customer(), await mesh.customer()
    for one in (customer, customer, other, other):
        await mesh.key(one)
    page = await auth.ListAuditEvents(
        pb2.ListAuditEventsRequest(page_size=1), metadata=bearer(customer.key)
    )
    token = page.next_page_token
    assert await listed(auth, customer, page_token=token) == [1]
    for changed in ({"method": "x"}, {"key_id": "x"}, {"resource_id": "x"}, {"end_time": ahead()}):
        with expect_refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", field="page_token"):
            await listed(auth, customer, page_token=token, **changed)
    with expect_refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", field="page_token"):
        await listed(auth, other, page_token=token)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("page_size", 1_001),
        ("page_size", -1),
        ("method", "m" * 201),
        ("method", "a\nb"),
        ("key_id", "k" * 101),
        ("resource_id", "r" * 101),
        ("start_time", Timestamp(seconds=-(10**15))),
        ("end_time", Timestamp(seconds=10**15)),
    ],
)
async def test_a_bad_filter_is_refused_by_name(
    mesh: Mesh, auth: AuthServiceStub, field: str, value: Any
) -> None:
    customer = await mesh.customer()
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await listed(auth, customer, **{field: value})


async def test_an_id_that_cannot_be_stored_does_not_keep_a_call_from_being_recorded(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="key_id"):
        await auth.RevokeKey(
            pb2.RevokeKeyRequest(key_id="key_\0" + "x" * 200), metadata=bearer(customer.key)
        )
    ((event,), _) = await whole_log(mesh, customer)
    assert event.resources["key"] == "key_\ufffd" + "x" * 95


@pytest.mark.promise("P-04")
async def test_a_key_that_was_given_where_an_id_belongs_is_not_kept(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    pasted = (await mesh.key(customer)).key
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await auth.RevokeKey(pb2.RevokeKeyRequest(key_id=pasted), metadata=bearer(customer.key))
    answer = await auth.ListAuditEvents(
        pb2.ListAuditEventsRequest(page_size=1), metadata=bearer(customer.key)
    )
    assert dict(answer.events[0].resources) == {"key": "smcp_1t_…"}
