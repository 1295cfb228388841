"""Webhooks over the wire: set, told, told again, given up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from standardwebhooks import WebhookVerificationError

from services.credentials.settings import Settings
from services.credentials.webhook_delivery import retry_delay
from services.credentials.webhooks import signing_key
from services.shared.ids import new_connection_id
from services.shared.postgres import Connection, connect
from tests.mesh import Customer, Mesh, bearer
from tests.refusals import expect_refused
from tests.webhook_receiver import PATIENCE_SECONDS, receiving


@pytest.fixture
async def customer(mesh: Mesh) -> Customer:
    return await mesh.customer()


@pytest.fixture
def credentials(mesh: Mesh) -> CredentialsServiceStub:
    return mesh.stub(CredentialsServiceStub, "credentials")


@asynccontextmanager
async def database(mesh: Mesh) -> AsyncIterator[Connection]:
    settings = mesh.settings["credentials"]
    assert isinstance(settings, Settings)
    connection = await connect(settings)
    try:
        await connection.execute("SET ROLE credentials_service")
        yield connection
    finally:
        await connection.close()


async def set_webhook(mesh: Mesh, customer: Customer, url: str) -> str:
    answer = await mesh.stub(CredentialsServiceStub, "credentials").SetWebhook(
        pb2.SetWebhookRequest(url=url), metadata=bearer(customer.key)
    )
    return str(answer.secret)


async def got_webhook(mesh: Mesh, customer: Customer) -> pb2.GetWebhookResponse:
    return await mesh.stub(CredentialsServiceStub, "credentials").GetWebhook(
        pb2.GetWebhookRequest(), metadata=bearer(customer.key)
    )


async def a_connection(mesh: Mesh, customer: Customer) -> str:
    """Returns an active connection of the customer, written past the service."""
    connection_id = new_connection_id()
    async with database(mesh) as connection:
        await connection.execute(
            "INSERT INTO connections (connection_id, tenant_id, request_id, request_digest, name,"
            " provider, kind, exclusive, state) VALUES ($1, $2, $1, '', 'notes', 'github',"
            " 'static_token', false, 'active')",
            connection_id,
            customer.tenant_id,
        )
    return connection_id


async def set_state(mesh: Mesh, connection_id: str, state: str, reason: str | None = None) -> None:
    async with database(mesh) as connection:
        await connection.execute(
            "UPDATE connections SET state = $2, state_reason = $3 WHERE connection_id = $1",
            connection_id,
            state,
            reason,
        )


async def a_broken_connection(mesh: Mesh, customer: Customer) -> str:
    connection_id = await a_connection(mesh, customer)
    await set_state(mesh, connection_id, "needs_reauthorization", "grant_refused")
    return connection_id


async def until_delivered(mesh: Mesh, customer: Customer) -> pb2.GetWebhookResponse:
    """Returns the webhook once nothing waits for it."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (webhook := await got_webhook(mesh, customer)).undelivered:
            await asyncio.sleep(0.05)
    return webhook


async def test_a_webhook_is_set_shown_and_ended(mesh: Mesh, customer: Customer) -> None:
    assert await got_webhook(mesh, customer) == pb2.GetWebhookResponse()
    secret = await set_webhook(mesh, customer, "https://hooks.example/a?b=c")
    assert secret.startswith("whsec_")
    assert len(signing_key(secret)) == 32
    shown = await got_webhook(mesh, customer)
    assert shown.url == "https://hooks.example/a?b=c"
    assert (shown.undelivered, shown.last_failure) == (0, "")
    assert shown.HasField("create_time")
    assert not shown.HasField("last_delivery_time")
    stub = mesh.stub(CredentialsServiceStub, "credentials")
    for _ in range(2):
        await stub.DeleteWebhook(pb2.DeleteWebhookRequest(), metadata=bearer(customer.key))
    assert await got_webhook(mesh, customer) == pb2.GetWebhookResponse()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example",
        "ftp://hooks.example/",
        "https:///path",
        "https://user@hooks.example/",
        "https://user:secret@hooks.example/",
        "https://hooks.example/#part",
        "https://hooks.example/ a",
        "https://hooks.example/\n",
        "https://hoöks.example/",
        "https://hooks.example:99999/",
        "https://hooks.example:0/",
        "https://[::1/",
        f"https://hooks.example/{'a' * 2_000}",
    ],
)
async def test_a_url_that_cannot_be_called_is_refused(
    credentials: CredentialsServiceStub, customer: Customer, url: str
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="url"):
        await credentials.SetWebhook(pb2.SetWebhookRequest(url=url), metadata=bearer(customer.key))


@pytest.mark.parametrize("name", ["SetWebhook", "DeleteWebhook"])
async def test_whoever_may_only_read_sets_and_ends_no_webhook(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer, name: str
) -> None:
    reader = await mesh.key(customer, scopes=("connections:read",))
    assert not (
        await credentials.GetWebhook(pb2.GetWebhookRequest(), metadata=bearer(reader.key))
    ).url
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await getattr(credentials, name)(
            getattr(pb2, f"{name}Request")(), metadata=bearer(reader.key)
        )


async def test_a_connection_that_broke_is_told_signed_and_again_when_it_is_mended(
    mesh: Mesh, customer: Customer
) -> None:
    async with receiving() as receiver:
        secret = await set_webhook(mesh, customer, receiver.url)
        connection_id = await a_broken_connection(mesh, customer)
        (broken,) = await receiver.until(lambda reports: len(reports) >= 1)
        await set_state(mesh, connection_id, "active")
        _, mended = await receiver.until(lambda reports: len(reports) >= 2)
        webhook = await until_delivered(mesh, customer)
    told = broken.verified(secret)
    assert told["type"] == "connection.broken"
    assert told["timestamp"]
    assert told["data"] == {
        "connection_id": connection_id,
        "name": "notes",
        "provider": "github",
        "state": "needs_reauthorization",
        "state_reason": "grant_refused",
    }
    assert mended.verified(secret)["type"] == "connection.restored"
    assert broken.event_id != mended.event_id
    assert webhook.HasField("last_delivery_time")


async def test_a_report_is_signed_by_the_secret_that_was_shown_last(
    mesh: Mesh, customer: Customer
) -> None:
    async with receiving() as receiver:
        old = await set_webhook(mesh, customer, receiver.url)
        new = await set_webhook(mesh, customer, receiver.url)
        await a_broken_connection(mesh, customer)
        (report,) = await receiver.until(lambda reports: len(reports) >= 1)
    assert report.verified(new)
    with pytest.raises(WebhookVerificationError):
        report.verified(old)


@pytest.mark.parametrize("status", [500, 404, 302])
async def test_a_report_that_was_not_taken_is_told_again_as_the_same(
    mesh: Mesh, customer: Customer, status: int
) -> None:
    async with receiving(status, status) as receiver:
        secret = await set_webhook(mesh, customer, receiver.url)
        await a_broken_connection(mesh, customer)
        reports = await receiver.until(lambda found: len(found) >= 3)
        webhook = await until_delivered(mesh, customer)
    assert len({report.event_id for report in reports}) == 1
    assert len({report.body for report in reports}) == 1
    assert all(report.verified(secret) for report in reports)
    assert webhook.last_failure == ""


async def test_a_failure_is_told_in_our_words(mesh: Mesh, customer: Customer) -> None:
    async with receiving(*[503] * 100) as receiver:
        await set_webhook(mesh, customer, receiver.url)
        await a_broken_connection(mesh, customer)
        await receiver.until(lambda reports: len(reports) >= 2)
        webhook = await got_webhook(mesh, customer)
    assert webhook.last_failure == "the receiver answered 503"
    assert webhook.undelivered == 1


async def test_a_receiver_that_is_gone_is_told_no_more(mesh: Mesh, customer: Customer) -> None:
    async with receiving(410) as receiver:
        await set_webhook(mesh, customer, receiver.url)
        await a_broken_connection(mesh, customer)
        await receiver.until(lambda reports: len(reports) >= 1)
        webhook = await until_delivered(mesh, customer)
        assert webhook.last_failure == "the receiver answered 410; it was given up"
        await a_broken_connection(mesh, customer)
        reports = await receiver.until(lambda found: len(found) >= 2)
    assert reports[0].event_id != reports[1].event_id


async def test_a_report_is_given_up_after_three_days(mesh: Mesh, customer: Customer) -> None:
    async with receiving(*[500] * 100) as receiver:
        await set_webhook(mesh, customer, receiver.url)
        for _ in range(3):
            await a_broken_connection(mesh, customer)
        await receiver.until(lambda reports: len(reports) >= 1)
        assert (await got_webhook(mesh, customer)).undelivered == 3
        async with database(mesh) as connection:
            await connection.execute(
                "UPDATE webhook_events SET created_at = now() - interval '3 days'"
                " WHERE tenant_id = $1",
                customer.tenant_id,
            )
        webhook = await until_delivered(mesh, customer)
    assert webhook.last_failure == "the receiver answered 500; it was given up"


async def test_nothing_is_told_once_the_webhook_has_ended(mesh: Mesh, customer: Customer) -> None:
    async with receiving(*[500] * 100) as receiver:
        await set_webhook(mesh, customer, receiver.url)
        await a_broken_connection(mesh, customer)
        await receiver.until(lambda reports: len(reports) >= 1)
        await mesh.stub(CredentialsServiceStub, "credentials").DeleteWebhook(
            pb2.DeleteWebhookRequest(), metadata=bearer(customer.key)
        )
        async with database(mesh) as connection:
            left = await connection.fetchval(
                "SELECT count(*) FROM webhook_events WHERE tenant_id = $1", customer.tenant_id
            )
    assert left == 0


def test_waiting_grows_to_six_hours_and_never_beyond() -> None:
    first = timedelta(seconds=5)
    assert retry_delay(first, 1, 0.0) == first
    assert retry_delay(first, 3, 0.0) == timedelta(seconds=80)
    assert retry_delay(first, 1_000, 0.0) == timedelta(hours=6)
    assert retry_delay(first, 1_000, 1.0) == timedelta(hours=3)
