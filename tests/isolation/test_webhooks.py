"""Webhooks attacked: to whom they go, where they may go, and at whose cost (P-33, P-36, P-38)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from services.credentials import webhook_store as store
from services.credentials.providers.outbound import open_outbound
from services.credentials.settings import Settings
from services.credentials.webhook_delivery import Deliveries
from services.credentials.webhook_store import Due, Webhook
from services.credentials.webhooks import Webhooks, read_url
from services.shared.background import background
from services.shared.data_keys import DataKeys
from services.shared.errors import InvalidFieldError
from services.shared.ids import TenantId, new_connection_id, new_tenant_id
from services.shared.keyring import open_keyring
from services.shared.postgres import Database, open_database
from tests.databases import SERVICES, Databases
from tests.webhook_receiver import PATIENCE_SECONDS, Receiver, receiving

LEASE = timedelta(minutes=2)


@dataclass(frozen=True)
class Office:
    """What reports are kept in, and who delivers them, without the service around."""

    database: Database
    data_keys: DataKeys
    settings: Settings

    async def tenant(self, url: str, events: int = 0) -> TenantId:
        """Returns a new tenant that is told at `url` of `events` broken connections."""
        tenant = new_tenant_id()
        await Webhooks(self.database, self.data_keys, allow_private_targets=True).set(tenant, url)
        for _ in range(events):
            await self.broken(tenant)
        return tenant

    async def broken(self, tenant: TenantId) -> str:
        """Breaks a connection of the tenant; returns its id."""
        connection_id = new_connection_id()
        async with self.database.tenant(tenant) as connection:
            await connection.execute(
                "INSERT INTO connections (connection_id, tenant_id, request_id, request_digest,"
                " name, provider, kind, exclusive, state) VALUES ($1, $2, $1, '', 'notes',"
                " 'github', 'static_token', false, 'active')",
                connection_id,
                tenant,
            )
            await connection.execute(
                "UPDATE connections SET state = 'needs_reauthorization', state_reason = 'expired'"
                " WHERE connection_id = $1",
                connection_id,
            )
        return connection_id

    async def webhook(self, tenant: TenantId) -> Webhook:
        async with self.database.tenant(tenant) as connection:
            found = await store.get_webhook(connection, tenant)
        assert found is not None
        return found

    async def failed(self, tenant: TenantId) -> str:
        """Returns what the tenant's first failed try met with."""
        found = await until(lambda: self.webhook(tenant), lambda found: found.last_failure)
        return found.last_failure

    async def claim(self, most: int = 100, lease: timedelta = LEASE) -> list[Due]:
        async with self.database.service() as connection:
            return list(await store.claim_due(connection, [], most, lease))

    @asynccontextmanager
    async def delivering(
        self,
        *,
        private: bool = True,
        at_once: int = 32,
        first_retry: timedelta = timedelta(seconds=0.1),
    ) -> AsyncIterator[None]:
        """Delivers meanwhile; a receiver has all the time of the test."""
        own = {"allow_private_targets": private, "provider_timeout_seconds": 60.0}
        async with open_outbound(self.settings.model_copy(update=own)) as http:
            deliveries = Deliveries(
                self.database,
                self.data_keys,
                http,
                first_retry=first_retry,
                poll_seconds=0.05,
                most_at_once=at_once,
            )
            async with background(deliveries.run()):
                yield


async def until(
    look: Callable[[], Awaitable[Webhook]], enough: Callable[[Webhook], object]
) -> Webhook:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not enough(found := await look()):
            await asyncio.sleep(0.05)
    return found


@pytest.fixture
async def office(databases: Databases, tmp_path: Path) -> AsyncIterator[Office]:
    postgres = (await databases.fresh("credentials")).model_dump()
    settings = Settings(**postgres, keyring_file=tmp_path / "keyring")
    async with AsyncExitStack() as stack:
        migrations = SERVICES / "credentials" / "migrations"
        database = await stack.enter_async_context(
            open_database(settings, "credentials", migrations)
        )
        keys = await stack.enter_async_context(open_keyring(settings))
        yield Office(database, DataKeys(database, keys), settings)


@pytest.mark.promise("P-33")
@pytest.mark.promise("P-36")
async def test_a_tenant_is_told_of_its_own_connections_and_of_no_others(office: Office) -> None:
    async with receiving() as mine, receiving() as theirs, office.delivering():
        me, them = await office.tenant(mine.url), await office.tenant(theirs.url)
        expected = {await office.broken(me) for _ in range(3)}
        unexpected = await office.broken(them)
        reports = await mine.until(lambda found: len(found) >= len(expected))
        await theirs.until(lambda found: len(found) >= 1)
        async with office.database.tenant(them) as connection:
            assert await store.get_webhook(connection, me) is None
    assert told(mine) == expected
    assert told(theirs) == {unexpected}
    assert len(reports) == len({report.event_id for report in reports})


def told(receiver: Receiver) -> set[str]:
    return {report.content["data"]["connection_id"] for report in receiver.reports}


@pytest.mark.promise("P-33")
async def test_a_report_follows_no_redirect(office: Office) -> None:
    async with receiving() as elsewhere, receiving(*[307] * 100) as first, office.delivering():
        first.location = elsewhere.url
        tenant = await office.tenant(first.url, events=1)
        assert await office.failed(tenant) == "the receiver answered 307"
        await first.until(lambda reports: len(reports) >= 2)
    assert elsewhere.connections == 0


@pytest.mark.promise("P-38")
async def test_a_receiver_that_hangs_holds_up_no_other_tenant(office: Office) -> None:
    async with receiving(silent=True) as hanging, receiving() as receiver:
        await office.tenant(hanging.url, events=5)
        await office.tenant(receiver.url, events=3)
        async with office.delivering(at_once=2):
            await receiver.until(lambda reports: len(reports) >= 3)
    assert hanging.connections == 1


@pytest.mark.promise("P-38")
async def test_a_receiver_that_is_away_is_tried_for_one_report_and_not_for_each(
    office: Office,
) -> None:
    an_hour = timedelta(hours=1)
    async with receiving(*[500] * 100) as receiver:
        tenant = await office.tenant(receiver.url, events=4)
        async with office.delivering(first_retry=an_hour):
            await office.failed(tenant)
        assert not await office.claim()
        async with office.database.tenant(tenant) as connection:
            untried = await connection.fetchval(
                "SELECT count(*) FROM webhook_events WHERE tries = 0"
            )
    assert untried == 3
    assert len(receiver.reports) == 1


@pytest.mark.promise("P-33")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_no_report_goes_to_an_address_of_the_mesh(office: Office, host: str) -> None:
    async with receiving() as receiver, office.delivering(private=False):
        tenant = await office.tenant(f"https://{host}:{receiver.port}/", events=1)
        failure = await office.failed(tenant)
    assert failure == "the receiver cannot be reached, or is not at a public address"
    assert receiver.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/",
        "https://127.0.0.1/",
        "https://10.1.2.3/",
        "https://192.168.0.1:8443/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[fd00::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::10.0.0.1]/",
        "https://0.0.0.0/",
    ],
)
def test_a_webhook_at_a_private_address_or_in_plaintext_is_refused(url: str) -> None:
    with pytest.raises(InvalidFieldError, match="url"):
        read_url(url, allow_private=False)


def test_a_webhook_at_a_public_address_is_taken() -> None:
    read_url("https://8.8.8.8/", allow_private=False)
    read_url("https://hooks.example:8443/a?b=c", allow_private=False)


async def test_a_report_whose_bearer_died_is_due_again_and_until_then_nobody_elses(
    office: Office,
) -> None:
    async with receiving(silent=True) as hanging:
        tenant = await office.tenant(hanging.url, events=1)
        async with office.delivering():
            await hanging.until(lambda reports: len(reports) >= 1)
        # It was cut off there: nobody has written down how it ended.
        assert not await office.claim()
        async with office.database.service() as connection:
            await connection.execute("UPDATE webhook_events SET next_try_at = now()")
        hanging.answering.set()
        async with office.delivering():
            first, second = await hanging.until(lambda reports: len(reports) >= 2)
            await until(lambda: office.webhook(tenant), lambda found: not found.undelivered)
    assert first.event_id == second.event_id


async def test_replicas_that_claim_at_once_claim_each_report_once(office: Office) -> None:
    async with receiving() as receiver:
        for _ in range(6):
            await office.tenant(receiver.url, events=2)
    claims = await asyncio.gather(*(office.claim() for _ in range(4)))
    claimed = [due.event_id for each in claims for due in each]
    assert len(claimed) == len(set(claimed))
    assert 6 <= len(claimed) <= 12


@pytest.mark.promise("P-09")
async def test_a_secret_moved_to_another_tenant_signs_nothing(office: Office) -> None:
    async with receiving() as receiver:
        me, them = await office.tenant(receiver.url), await office.tenant(receiver.url, events=1)
        async with office.database.service() as connection:
            await connection.execute(
                "UPDATE webhooks SET sealed_secret ="
                " (SELECT sealed_secret FROM webhooks WHERE tenant_id = $1) WHERE tenant_id = $2",
                me,
                them,
            )
        async with office.delivering():
            failure = await office.failed(them)
    assert failure == "the webhook's secret cannot be read: set the webhook anew"
    assert receiver.connections == 0
