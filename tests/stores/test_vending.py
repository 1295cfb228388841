"""What vends and their upkeep write beside: when a token was vended last, and what is forgotten."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.credentials.domain import Grant
from services.credentials.grants import keep_grant
from services.credentials.last_vends import LastVends
from services.credentials.refresh import store
from services.credentials.settings import Settings
from services.shared.errors import NotFoundError
from services.shared.ids import random_text
from tests.databases import Databases
from tests.provider_double import ProviderDouble
from tests.vending_replica import Lease, Replica, lease, replica, replica_settings


@pytest.fixture(scope="module")
async def settings(home: Path, databases: Databases, provider: ProviderDouble) -> Settings:
    folder = home / "vending-stores"
    folder.mkdir()
    return replica_settings(folder, provider, await databases.fresh("credentials"))


@pytest.fixture
async def own(settings: Settings) -> AsyncIterator[Replica]:
    async with replica(settings) as running:
        yield running


@pytest.fixture
async def lent(own: Replica, settings: Settings, provider: ProviderDouble) -> Lease:
    return await lease(own, settings, provider)


async def test_a_vend_is_noted_by_the_minute_where_it_belongs(own: Replica, lent: Lease) -> None:
    last_vends = LastVends(own.database)
    last_vends.note(lent.connection_id, "")
    last_vends.note(lent.connection_id, "a scope nobody has")
    await last_vends.write()
    async with own.database.service() as db:
        noted = await db.fetchrow(
            "SELECT c.last_vended_at = date_trunc('minute', c.last_vended_at),"
            " now() - c.last_vended_at < interval '5 minutes', c.last_vended_at = t.last_vended_at"
            " FROM connections c JOIN access_tokens t USING (connection_id)"
            " WHERE c.connection_id = $1",
            lent.connection_id,
        )
    assert noted is not None
    assert list(noted) == [True, True, True]


async def test_what_ended_a_day_ago_is_forgotten(own: Replica, lent: Lease) -> None:
    for hours in (23, 25):
        await own.execute(
            "INSERT INTO authorizations (authorization_id, tenant_id, connection_id, request_id,"
            " request_digest, key_id, beneficiary, state_digest, sealed_verifier, scopes,"
            " redirect_url, at_door, sealed_key_digest, expires_at)"
            " VALUES ($1, $2, $3, $1, '', '', '', $4, '', '{}', '', false, '',"
            " now() - make_interval(hours => $5))",
            random_text(),
            lent.tenant_id,
            lent.connection_id,
            random_text().encode(),
            hours,
        )
        for scope_key in ("", f"narrowed-{hours}"):
            await own.execute(
                "INSERT INTO access_tokens (connection_id, scope_key, tenant_id, sealed_token,"
                " token_type, expires_at) VALUES ($1, $2, $3, '', '', now()"
                " - make_interval(hours => $4)) ON CONFLICT (connection_id, scope_key)"
                " DO UPDATE SET expires_at = excluded.expires_at",
                lent.connection_id,
                scope_key,
                lent.tenant_id,
                hours,
            )
    async with own.database.service() as db:
        assert await store.purge_authorizations(db, 500) == 1
        assert await store.purge_narrowed(db, 500) == 1
        left = await db.fetch(
            "SELECT scope_key FROM access_tokens WHERE connection_id = $1", lent.connection_id
        )
    assert {row["scope_key"] for row in left} == {"", "narrowed-23"}


async def test_a_connection_that_is_going_takes_no_grant(own: Replica, lent: Lease) -> None:
    await own.execute(
        "UPDATE connections SET state = 'deleting' WHERE connection_id = $1", lent.connection_id
    )
    cipher = await own.data_keys.cipher(lent.tenant_id)
    grant = Grant("late", "Bearer", None, None, None)
    async with own.database.tenant(lent.tenant_id) as db:
        with pytest.raises(NotFoundError):
            await keep_grant(db, cipher, lent.tenant_id, lent.connection_id, grant, asked=[])
