"""The audit log of a customer, as its own key reads it."""

from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from cli.chain import ChainCheck, Head
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
