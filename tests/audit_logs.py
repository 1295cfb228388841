"""Audit logs: of a customer, as its own key reads it, and made up."""

from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from cli.chain import ChainCheck, Head, event_hash
from tests.mesh import Customer, Mesh, bearer


async def whole_log(mesh: Mesh, customer: Customer) -> tuple[list[pb2.AuditEvent], Head]:
    """Returns every event, oldest first, and the head."""
    stub = mesh.stub(AuthServiceStub, "auth")
    request = pb2.ListAuditEventsRequest(page_size=1_000)
    events: list[pb2.AuditEvent] = []
    while True:
        page = await stub.ListAuditEvents(request, metadata=bearer(customer.key))
        events += page.events
        request.page_token = page.next_page_token
        if not request.page_token:
            return events[::-1], Head(page.head_sequence, page.head_hash or bytes(32))


async def verified(mesh: Mesh, customer: Customer, *expected: Head) -> ChainCheck:
    """Returns what verifying the customer's log finds."""
    events, head = await whole_log(mesh, customer)
    return ChainCheck((*expected, head)).take_all(events)


def chain(length: int) -> list[pb2.AuditEvent]:
    """Returns a whole log, with a bit of everything in it."""
    events, previous = [], bytes(32)
    for number in range(1, length + 1):
        event = pb2.AuditEvent(
            event_id=f"aud_{number:026}",
            key_id="key_" + "0" * 26,
            peer="edge",
            method="bulkhead.auth.v1.AuthService/IssueKey",
            resources={"deployment": f"dep_{number}", "clé": "名 \ufffd"} if number % 2 else {},
            trace_id="",
            sequence=number,
            previous_hash=previous,
            reason="" if number % 3 else 'ticket "4711" née',
        )
        event.time.FromMicroseconds(1_800_000_000_000_000 + number * 1_234_567)
        previous = event.hash = event_hash(event)
        events.append(event)
    return events
