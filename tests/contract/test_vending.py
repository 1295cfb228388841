"""Vends over the wire: what comes, for how long, and each reason why nothing does."""

import ast
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.credentials import vending
from tests.borrowers import Borrower, borrower, reason
from tests.canaries import API_KEY, STATIC_TOKEN
from tests.mesh import Mesh, bearer
from tests.provider_double import ProviderDouble, answers
from tests.refusals import expect_refused

Item = pb2.VendItem


@pytest.fixture
async def own(mesh: Mesh) -> Borrower:
    return await borrower(mesh)


async def test_a_batch_is_answered_in_order_and_item_by_item(own: Borrower) -> None:
    github, notes = await own.static(), await own.allowed()
    bindings = [await own.bind(github), await own.bind(notes, "notes")]
    results = await own.vend(
        Item(alias="notes"), Item(alias="nobody"), Item(provider="github"), Item(alias="notes")
    )
    first, missing, second, again = results
    assert reason(missing.refusal) == "BINDING_MISSING"
    assert first.token.token == again.token.token
    assert dict(first.token.headers) == {"Authorization": f"Bearer {first.token.token}"}
    assert (first.token.token_type, first.token.provider) == ("Bearer", "loopback")
    assert set(first.token.scopes) == {"read", "write"}
    assert first.token.api_base_url.endswith("/api")
    found = second.token
    assert (found.token, found.alias, found.provider) == (STATIC_TOKEN, "github", "github")
    assert (found.connection_id, found.binding_id) == (github, bindings[0])
    assert (first.token.connection_id, first.token.binding_id) == (notes, bindings[1])


async def test_a_credential_comes_as_its_provider_wants_it(own: Borrower) -> None:
    weather = await own.create(provider="openweather", api_key=pb2.ApiKey(key=API_KEY))
    particular = await own.create(
        provider="particular",
        api_key=pb2.ApiKey(key=API_KEY, username="mia"),
        parameters={"subdomain": "acme"},
    )
    await own.bind(weather, "weather")
    await own.bind(particular, "particular")
    first, second = await own.vend(Item(alias="weather"), Item(alias="particular"))
    assert (dict(first.token.query), dict(first.token.headers)) == ({"appid": API_KEY}, {})
    assert (first.token.token_type, second.token.token_type) == ("ApiKey", "Basic")
    pair = b64encode(f"mia:{API_KEY}".encode()).decode()
    assert second.token.headers["Authorization"] == f"Basic {pair}"
    assert second.token.api_base_url == "https://acme.example.com/api"


async def test_what_is_told_of_a_tokens_life_is_true(own: Borrower) -> None:
    ends = datetime.now(UTC) + timedelta(hours=2)
    end = Timestamp()
    end.FromDatetime(ends)
    await own.bind(await own.static(expire_time=end), "ending")
    await own.bind(await own.static(provider="slack"), "lasting")
    await own.bind(await own.allowed(), "notes")
    told = await own.token("ending")
    assert told.expire_time == end
    assert timedelta(minutes=90) < told.lifetime.ToTimedelta() <= timedelta(hours=2)
    told = await own.token("lasting")
    assert not told.HasField("expire_time")
    assert not told.HasField("lifetime")
    assert (
        timedelta(minutes=1)
        <= (await own.token("notes")).lifetime.ToTimedelta()
        <= timedelta(hours=1)
    )


async def test_a_token_with_less_than_a_minute_is_refreshed_first(
    own: Borrower, provider: ProviderDouble
) -> None:
    client = pb2.ClientCredentials(
        client_id=provider.client.client_id, client_secret=provider.client.client_secret
    )
    robot = await own.create(provider="loopback", client_credentials=client)
    for alias, connection in (("notes", await own.allowed()), ("robot", robot)):
        await own.bind(connection, alias)
        before = await own.token(alias)
        await own.expire(connection)
        after = await own.token(alias)
        assert after.token != before.token
        assert provider.state.access_tokens[after.token].good
        assert after.lifetime.ToTimedelta() >= timedelta(minutes=1)
        assert (await own.token(alias)).token == after.token


async def test_no_binding_is_a_refusal_with_its_own_reason(own: Borrower) -> None:
    connection = await own.static()
    binding = await own.bind(connection, "mine")
    other = await borrower(own.mesh, own.customer)
    assert await other.reason("mine") == "BINDING_MISSING"
    assert await own.reason("mine", provider="slack") == "BINDING_MISSING"
    assert await own.reason(provider="slack") == "BINDING_MISSING"
    await own.unbind(binding)
    assert await own.reason("mine") == "BINDING_MISSING"


async def test_a_binding_whose_time_is_over_vends_nothing(own: Borrower) -> None:
    end = Timestamp()
    end.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    binding = await own.bind(await own.static(), "short", expire_time=end)
    assert (await own.token("short")).token == STATIC_TOKEN
    await own.execute("UPDATE bindings SET expires_at = now() WHERE binding_id = $1", binding)
    assert await own.reason("short") == "BINDING_EXPIRED"
    assert await own.reason(provider="github") == "BINDING_EXPIRED"


async def test_of_several_bindings_to_a_provider_none_is_guessed(own: Borrower) -> None:
    connection = await own.static()
    await own.bind(connection, "team-a")
    await own.bind(connection, "team-b")
    refusal = await own.refusal(provider="github")
    assert reason(refusal) == "BINDING_AMBIGUOUS"
    assert "team-a, team-b" in refusal.message
    assert (await own.token("team-b", provider="github")).alias == "team-b"


BAD: dict[str, tuple[list[Item], str]] = {
    "nothing": ([], "items"),
    "too many": ([Item(alias="a")] * 65, "items"),
    "neither": ([Item(alias="a"), Item(purpose="what for")], "items[1].alias"),
    "long alias": ([Item(alias="a" * 64)], "items[0].alias"),
    "long provider": ([Item(provider="a" * 64)], "items[0].provider"),
    "long purpose": ([Item(alias="a", purpose="a" * 201)], "items[0].purpose"),
    "strange purpose": ([Item(alias="a", purpose="a\nb")], "items[0].purpose"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_batch_is_refused_as_a_whole(own: Borrower, bad: str) -> None:
    items, field = BAD[bad]
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await own.vend(*items)


async def test_a_connections_key_opens_that_one_whatever_it_asks_for(own: Borrower) -> None:
    connection, other = await own.static(token="mine"), await own.static(token="other")
    await own.bind(other, "other")
    key = await own.connection_key(connection)
    items = [Item(), Item(alias="other"), Item(provider="slack")]
    results = await own.vend(*items, key=key)
    assert [(each.token.token, each.token.binding_id) for each in results] == [("mine", "")] * 3


async def test_no_token_reaches_beyond_the_ceiling(own: Borrower, provider: ProviderDouble) -> None:
    notes = await own.allowed()
    await own.bind(notes, "wide", scope_ceiling=["admin", "read", "write"])
    await own.bind(notes, "narrow", scope_ceiling=["admin", "read"])
    await own.bind(notes, "none", scope_ceiling=["admin"])
    static = await own.bind(await own.static(), "unknown")
    await own.execute("UPDATE bindings SET scope_ceiling = '{read}' WHERE binding_id = $1", static)
    wide, narrow = await own.token("wide"), await own.token("narrow")
    assert set(wide.scopes) == {"read", "write"}
    assert list(narrow.scopes) == ["read"]
    assert provider.state.access_tokens[narrow.token].scope == "read"
    assert (await own.token("narrow")).token == narrow.token
    # The one for all scopes is not replaced by it.
    assert (await own.token("wide")).token == wide.token
    assert [await own.reason(alias) for alias in ("none", "unknown")] == ["SCOPE_CEILING"] * 2


async def test_a_provider_that_gives_more_than_was_asked_for_gives_nothing(
    own: Borrower, provider: ProviderDouble
) -> None:
    await own.bind(await own.allowed(), "narrow", scope_ceiling=["read"])
    wide = '{"access_token": "w1de", "expires_in": 3600, "scope": "read write"}'
    provider.next("/token", answers(200, wide, content_type="application/json"))
    assert await own.reason("narrow") == "SCOPE_CEILING"


async def test_only_what_works_takes_the_place_of_what_is_lent(own: Borrower) -> None:
    await own.bind(await own.static(token="works"), "chat")
    waiting, ended = (await own.started()).connection.connection_id, await own.static()
    await own.execute(
        "UPDATE connections SET state = 'needs_reauthorization', state_reason = 'expired'"
        " WHERE connection_id = $1",
        ended,
    )
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_NOT_ACTIVE"):
        await own.bind(waiting, "chat", replace=True)
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_NEEDS_REAUTHORIZATION"):
        await own.bind(ended, "chat", replace=True)
    assert (await own.token("chat")).token == "works"
    # Where nothing is lent there is nothing to lose, and terms change whatever the state.
    await own.bind(waiting, "later")
    await own.bind(waiting, "later", scope_ceiling=["read"], replace=True)


async def test_a_connection_that_is_not_active_says_so(
    own: Borrower, provider: ProviderDouble
) -> None:
    await own.bind((await own.started()).connection.connection_id, "waiting")
    ended = await own.static()
    await own.bind(ended, "ended")
    await own.execute(
        "UPDATE connections SET secret_expires_at = now() WHERE connection_id = $1", ended
    )
    away = await own.allowed()
    await own.bind(away, "away")
    await own.expire(away)
    provider.next("/token", answers(429, retry_after="40"))
    assert await own.reason("waiting") == "CONNECTION_NOT_ACTIVE"
    refusal = await own.refusal("ended")
    assert reason(refusal) == "CONNECTION_NEEDS_REAUTHORIZATION"
    update = f"bulkhead connection update {ended} --token-file"
    assert ("expired" in refusal.message, update in refusal.message) == (True, True)
    assert "authorization" not in refusal.message
    assert not refusal.HasField("retry_after")
    refusal = await own.refusal("away")
    assert reason(refusal) == "PROVIDER_UNAVAILABLE"
    assert refusal.retry_after.ToTimedelta() >= timedelta(seconds=40)


async def test_what_cannot_be_decrypted_is_refused_alone(own: Borrower) -> None:
    broken, moved = await own.static(token="one"), await own.static(token="two")
    await own.bind(broken, "broken")
    await own.bind(moved, "moved")
    await own.bind(await own.static(), "whole")
    await own.execute(
        "UPDATE connections SET sealed_secret ="
        " (SELECT sealed_secret FROM connections WHERE connection_id = $2)"
        " WHERE connection_id = $1",
        broken,
        moved,
    )
    await own.execute(
        "UPDATE connections SET sealed_secret = substring(sealed_secret FOR 20)"
        " WHERE connection_id = $1",
        moved,
    )
    results = await own.vend(Item(alias="broken"), Item(alias="moved"), Item(alias="whole"))
    assert [reason(each.refusal) for each in results[:2]] == ["CONNECTION_UNREADABLE"] * 2
    assert results[2].token.token == STATIC_TOKEN


async def test_a_token_has_one_name_in_the_log_of_its_tenant(own: Borrower) -> None:
    await own.bind(await own.static(), "mine")

    async def fingerprint(by: Borrower, token: str) -> str:
        answer = await by.credentials.FingerprintToken(
            pb2.FingerprintTokenRequest(token=token), metadata=bearer(by.customer.key)
        )
        return answer.token_fingerprint

    name = await fingerprint(own, STATIC_TOKEN)
    assert name.startswith("tok_")
    assert await fingerprint(own, STATIC_TOKEN) == name
    assert await fingerprint(own, "another") != name
    other = await borrower(own.mesh)
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await fingerprint(other, STATIC_TOKEN)
    await other.static()
    assert await fingerprint(other, STATIC_TOKEN) != name
    for bad in ("", "a" * 16_385):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="token"):
            await fingerprint(own, bad)


_CLOCKS = {"utc_now", "now", "time", "utcnow"}


def test_no_life_is_reckoned_by_a_replicas_own_clock() -> None:
    folder = Path(vending.__file__).parent
    names = ("vending", "vended", "supply", "opening", "upkeep", "lending", "vend_store", "grants")
    own = [folder / f"{name}.py" for name in (*names, "last_vends")]
    for module in (*own, *(folder / "refresh").glob("*.py")):
        called = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(ast.parse(module.read_text()))
            if isinstance(node, ast.Call)
        }
        assert not called & _CLOCKS, module
