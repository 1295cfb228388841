"""Refreshes that many want at once, that providers answer badly, and that come too late."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from services.credentials import connection_store
from services.credentials.domain import Grant
from services.credentials.grants import keep_grant
from services.credentials.providers.places import Places
from services.credentials.refresh.terms import RefreshPoint
from services.credentials.settings import Settings
from services.credentials.supply import Outcome
from services.credentials.upkeep import refresh_due
from services.credentials.vended import Vended
from services.shared.deadline import set_time_remaining
from services.shared.errors import Reason, UnavailableError
from services.shared.ids import new_tenant_id
from services.shared.postgres import Database
from tests.databases import Databases
from tests.provider_double import (
    Fault,
    ProviderDouble,
    answers,
    drops_after,
    drops_before,
    hangs,
    refuses,
    replaces,
    truncates,
    waits,
)
from tests.vending_replica import NAME, Lease, Replica, lease, replica, replica_settings

ACTIVE, UNKNOWN = ("active", None, False), ("active", None, True)
LOST = ("needs_reauthorization", "refresh_lost", False)
AWAY, BROKEN = Reason.PROVIDER_UNAVAILABLE, Reason.CONNECTION_NEEDS_REAUTHORIZATION
PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
async def settings(home: Path, databases: Databases, provider: ProviderDouble) -> Settings:
    folder = home / "faults"
    folder.mkdir()
    return replica_settings(folder, provider, await databases.fresh("credentials"))


@pytest.fixture
async def own(settings: Settings) -> AsyncIterator[Replica]:
    async with replica(settings) as running:
        yield running


class Gate:
    """Stops a refresh at a point until it is opened."""

    def __init__(self, at: RefreshPoint) -> None:
        self._at = at
        self.arrived, self.open = asyncio.Event(), asyncio.Event()

    async def reached(self, point: RefreshPoint) -> None:
        """Returns when the refresh may go on."""
        if point is self._at:
            self.arrived.set()
            await self.open.wait()


@pytest.mark.promise("P-33")
async def test_200_vends_of_an_expired_token_on_3_replicas_refresh_it_once(
    settings: Settings, provider: ProviderDouble
) -> None:
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(replica(settings)) for _ in range(3)]
        lent = await lease(replicas[0], settings, provider)
        await replicas[0].expire(lent)
        seen = provider.state.seen.copy()
        tokens = await asyncio.gather(*(replicas[number % 3].vend(lent) for number in range(200)))
    assert len(set(tokens)) == 1
    assert provider.state.access_tokens[tokens[0]].good
    assert provider.state.seen["token"] - seen["token"] == 1


async def test_each_refresh_keeps_the_new_refresh_token(
    own: Replica, settings: Settings, provider: ProviderDouble
) -> None:
    lent = await lease(own, settings, provider)
    tokens = set()
    for _ in range(3):
        await own.expire(lent)
        tokens.add(await own.vend(lent))
    assert len(tokens) == 3
    assert await own.state(lent) == ACTIVE


async def test_a_token_of_which_no_end_is_said_does_not_expire(
    own: Replica, settings: Settings, provider: ProviderDouble
) -> None:
    lent = await lease(own, settings, provider)
    await own.expire(lent)
    provider.next("/token", replaces('{"access_token": "for-ever", "token_type": "Bearer"}'))
    (outcome,) = await own.outcomes(lent, 1)
    assert isinstance(outcome, Vended)
    assert (outcome.fresh.token, outcome.lifetime, outcome.expires_at) == ("for-ever", None, None)


ANSWERS = {
    "400": (refuses("invalid_grant"), BROKEN, ("needs_reauthorization", "grant_refused", False)),
    "401": (
        refuses("invalid_client", 401),
        BROKEN,
        ("needs_reauthorization", "client_refused", False),
    ),
    "429": (answers(429, retry_after="600"), AWAY, ACTIVE),
    "page of a proxy": (answers(404, "<html>no</html>"), AWAY, ACTIVE),
    "500": (answers(500), AWAY, UNKNOWN),
    "HTML": (answers(200, "<html>hello</html>", content_type="text/html"), AWAY, UNKNOWN),
    "nothing": (drops_before(), AWAY, UNKNOWN),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_provider_that_fails_is_told_from_one_that_refuses(
    own: Replica, settings: Settings, provider: ProviderDouble, answer: str
) -> None:
    fault, reason, state = ANSWERS[answer]
    lent = await lease(own, settings, provider)
    await own.expire(lent)
    provider.next("/token", fault)
    refusal = await own.refusal(lent)
    assert (refusal.reason, await own.state(lent)) == (reason, state)
    seen = provider.seen.copy()
    again = await own.refusal(lent)
    assert again.reason is reason
    assert provider.seen == seen, "it was asked again at once"
    if reason is AWAY:
        assert again.retry_after is not None
        assert again.retry_after > timedelta(seconds=500 if answer == "429" else 0)
        await own.settle(lent)
        assert provider.state.access_tokens[await own.vend(lent)].good
        assert await own.state(lent) == ACTIVE


SPENT: dict[str, Callable[[], Fault]] = {
    "nothing": drops_after,
    "half of it": truncates,
    "HTML": lambda: replaces("<html>", content_type="text/html"),
    "500": lambda: replaces("{}", 500),
}


@pytest.mark.parametrize("answer", SPENT)
async def test_a_spent_refresh_token_whose_answer_is_lost_needs_a_person(
    own: Replica, settings: Settings, provider: ProviderDouble, answer: str
) -> None:
    lent = await lease(own, settings, provider)
    await own.expire(lent)
    provider.next("/token", SPENT[answer]())
    assert (await own.refusal(lent)).reason is AWAY
    assert await own.state(lent) == UNKNOWN
    await own.settle(lent)
    assert (await own.refusal(lent)).reason is BROKEN
    assert await own.state(lent) == LOST


async def test_a_refresh_token_that_cannot_be_decrypted_needs_a_person(
    own: Replica, settings: Settings, provider: ProviderDouble
) -> None:
    lent = await lease(own, settings, provider)
    await own.expire(lent)
    await own.execute(
        "UPDATE connections SET sealed_refresh_token = sealed_refresh_token"
        " || decode('00', 'hex') WHERE connection_id = $1",
        lent.connection_id,
    )
    seen = provider.seen.copy()
    assert (await own.refusal(lent)).reason is Reason.CONNECTION_UNREADABLE
    assert await own.state(lent) == ("needs_reauthorization", "unreadable", False)
    assert provider.seen == seen


async def test_while_a_token_lives_nobody_finds_out_what_became_of_a_refresh(
    own: Replica, settings: Settings, provider: ProviderDouble
) -> None:
    lent = await lease(own, settings, provider)
    token = await own.vend(lent)
    provider.next("/token", drops_after())
    await own.expire(lent, "63 seconds")
    assert await own.vend(lent) == token
    assert await own.state(lent) == UNKNOWN
    await own.settle(lent)
    seen = provider.seen.copy()
    assert await own.vend(lent) == token
    assert (provider.seen, await own.state(lent)) == (seen, UNKNOWN)


async def test_a_refresh_that_can_be_repeated_is_repeated(
    home: Path, settings: Settings, provider: ProviderDouble
) -> None:
    folder = home / "stable"
    folder.mkdir()
    declared = provider.provider_yaml(NAME, introspects=False, rotation="stable")
    (folder / f"{NAME}.yaml").write_text(declared)
    stable = settings.model_copy(update={"providers_folder": folder})
    provider.rules.rotates = False
    try:
        async with replica(stable) as own:
            lent = await lease(own, stable, provider)
            await own.expire(lent)
            provider.next("/token", drops_after())
            assert (await own.refusal(lent)).reason is AWAY
            assert await own.state(lent) == UNKNOWN
            # Put off like any failure; but there is nothing to settle.
            await own.execute(
                "UPDATE connections SET next_refresh_at = NULL WHERE connection_id = $1",
                lent.connection_id,
            )
            assert provider.state.access_tokens[await own.vend(lent)].good
            assert await own.state(lent) == ACTIVE
    finally:
        provider.rules.rotates = True


async def test_a_provider_that_hangs_is_given_up_and_not_asked_twice(
    settings: Settings, provider: ProviderDouble
) -> None:
    over = asyncio.Event()
    hasty = settings.model_copy(update={"provider_timeout_seconds": 2.0})
    async with replica(settings) as own, replica(hasty) as impatient:
        lent = await lease(own, settings, provider)
        await own.expire(lent)
        provider.next("/token", hangs(over))
        assert (await impatient.refusal(lent)).reason is AWAY
        assert await own.state(lent) == UNKNOWN
        spent = provider.state.seen["refresh"]
        over.set()
        await _until(lambda: provider.state.seen["refresh"] == spent + 1)
        await own.settle(lent)
        assert (await own.refusal(lent)).reason is BROKEN
        assert await own.state(lent) == LOST


async def test_callers_that_leave_do_not_end_a_refresh(
    settings: Settings, provider: ProviderDouble
) -> None:
    gate = Gate(RefreshPoint.ANSWERED)
    async with replica(settings, gate) as own:
        lent = await lease(own, settings, provider)
        await own.expire(lent)
        leaving = asyncio.create_task(own.vend(lent))
        await asyncio.wait_for(gate.arrived.wait(), PATIENCE_SECONDS)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        late = await asyncio.create_task(_in_a_hurry(own, lent))
        assert isinstance(late, UnavailableError)
        seen = provider.seen.copy()
        gate.open.set()
        assert provider.state.access_tokens[await own.vend(lent)].good
        assert provider.seen == seen


async def _in_a_hurry(own: Replica, lent: Lease) -> Outcome:
    set_time_remaining(0.5)
    (outcome,) = await own.outcomes(lent, 1)
    return outcome


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.01)


async def _sessions_end(databases: Databases, database: str, which: str) -> None:
    """Ends sessions, and returns when their processes have closed their sockets as well.

    A lock is free a little before who held it can see that.
    """
    superuser = await databases.postgres.connect()
    try:
        ended = await superuser.fetch(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = $1 AND pid <> pg_backend_pid() {which}",
            database,
        )
    finally:
        await superuser.close()
    assert ended
    await _until(lambda: not any(psutil.pid_exists(row["pid"]) for row in ended))


_HOLDERS = "AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)"


@pytest.mark.promise("P-33")
async def test_who_lost_the_lock_does_not_ask_the_provider(
    settings: Settings, provider: ProviderDouble, databases: Databases
) -> None:
    gate = Gate(RefreshPoint.MARKED)
    async with replica(settings) as other, replica(settings, gate) as own:
        lent = await lease(own, settings, provider)
        await own.expire(lent)
        vend = asyncio.create_task(own.refusal(lent))
        await asyncio.wait_for(gate.arrived.wait(), PATIENCE_SECONDS)
        await _sessions_end(databases, settings.postgres_database, _HOLDERS)
        async with other.locks.hold(lent.connection_id, timedelta(seconds=PATIENCE_SECONDS)):
            seen = provider.seen.copy()
            gate.open.set()
            assert (await vend).reason is AWAY
            assert provider.seen == seen
        assert provider.state.access_tokens[await other.vend(lent)].good


@pytest.mark.promise("P-33")
async def test_a_late_answer_does_not_replace_a_newer_grant(
    settings: Settings, provider: ProviderDouble, databases: Databases
) -> None:
    answer = asyncio.Event()
    async with replica(settings) as other, replica(settings) as own:
        lent = await lease(own, settings, provider)
        await own.expire(lent)
        spent = provider.state.seen["refresh"]
        provider.next("/token", waits(answer))
        late = asyncio.create_task(own.vend(lent))
        await _until(lambda: provider.state.seen["refresh"] == spent + 1)
        await _sessions_end(databases, settings.postgres_database, _HOLDERS)
        await other.settle(lent)
        assert (await other.refusal(lent)).reason is BROKEN
        await _authorized_anew(other.database, other, lent)
        answer.set()
        assert await late == "newer"
        assert await other.vend(lent) == "newer"
        assert await other.state(lent) == ACTIVE


async def _authorized_anew(database: Database, own: Replica, lent: Lease) -> None:
    cipher = await own.data_keys.cipher(lent.tenant_id)
    grant = Grant("newer", "Bearer", timedelta(hours=1), "newer-too", None)
    async with database.tenant(lent.tenant_id) as db:
        assert await connection_store.get(db, lent.connection_id) is not None
        await keep_grant(db, cipher, lent.tenant_id, lent.connection_id, grant, asked=["read"])


async def test_what_was_granted_is_kept_although_the_database_was_away(
    settings: Settings, provider: ProviderDouble, databases: Databases
) -> None:
    gate = Gate(RefreshPoint.ANSWERED)
    async with replica(settings, gate) as own:
        lent = await lease(own, settings, provider)
        await own.expire(lent)
        seen = provider.state.seen.copy()
        vend: Awaitable[str] = asyncio.create_task(own.vend(lent))
        await asyncio.wait_for(gate.arrived.wait(), PATIENCE_SECONDS)
        await _sessions_end(databases, settings.postgres_database, "")
        gate.open.set()
        assert provider.state.access_tokens[await vend].good
        assert await own.state(lent) == ACTIVE
        assert provider.state.seen["refresh"] - seen["refresh"] == 1


async def test_what_is_in_use_is_refreshed_ahead_of_its_end(
    own: Replica, settings: Settings, provider: ProviderDouble
) -> None:
    used, idle = [await lease(own, settings, provider) for _ in range(2)]
    for lent in (used, idle):
        await own.expire(lent, "80 seconds")
    token = await own.vend(used)
    spent = provider.state.seen["refresh"]
    await _used_now(own, used)
    await refresh_due(own.database, own.refreshes)
    assert provider.state.seen["refresh"] - spent == 1
    assert await own.vend(used) != token


async def _used_now(own: Replica, lent: Lease) -> None:
    await own.execute(
        "UPDATE access_tokens SET last_vended_at = now() WHERE connection_id = $1",
        lent.connection_id,
    )


@pytest.mark.promise("P-38")
async def test_a_provider_that_hangs_leaves_others_their_places() -> None:
    places, patience = Places(4), timedelta(seconds=PATIENCE_SECONDS)
    async with AsyncExitStack() as stack:
        first, second = new_tenant_id(), new_tenant_id()
        for tenant in (first, second):
            await stack.enter_async_context(places.take(tenant, "slow", patience))
        for tenant, provider in ((new_tenant_id(), "slow"), (first, "other")):
            with pytest.raises(UnavailableError):
                await stack.enter_async_context(places.take(tenant, provider, timedelta(0)))
        await stack.enter_async_context(places.take(new_tenant_id(), "other", patience))
