"""What the gateway asks of a provider, and what it is given: real OAuth 2."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from services.credentials.domain import (
    AnswerLostError,
    Grant,
    GrantRefusedError,
    OAuthClient,
    ProviderAwayError,
    ProviderError,
    StateReason,
)
from tests.provider_desk import JSON, VERIFIER, Desk, catalogue_with, cleared, open_desk
from tests.provider_double import answers, raw_answer, refuses


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path_factory.mktemp("providers")) as desk:
        yield desk


@pytest.fixture
def desk(shared: Desk) -> Desk:
    return cleared(shared)


async def whoami(desk: Desk, grant: Grant) -> httpx.Response:
    authorization = f"{grant.token_type} {grant.access_token}"
    url = f"{desk.double.url}/api/whoami"
    return await desk.http.get(url, headers={"authorization": authorization})


async def test_a_code_is_good_for_a_token_that_the_api_takes(desk: Desk) -> None:
    grant = await desk.granted()
    assert (await whoami(desk, grant)).json()["scopes"] == ["read", "write"]
    assert grant.scopes == ("read", "write")
    assert grant.expires_in is not None
    assert timedelta(seconds=3_500) < grant.expires_in <= timedelta(hours=1)
    assert grant.access_token not in repr(grant)
    assert str(grant.refresh_token) not in repr(grant)


async def test_a_code_without_its_verifier_is_refused(desk: Desk) -> None:
    code = await desk.code()
    with pytest.raises(GrantRefusedError) as refused:
        await desk.exchange(code, VERIFIER[::-1])
    assert (refused.value.reason, refused.value.provider_error) == (
        StateReason.GRANT_REFUSED,
        "invalid_grant",
    )


async def test_a_code_used_twice_ends_what_came_of_it(desk: Desk) -> None:
    code = await desk.code()
    grant = await desk.exchange(code)
    with pytest.raises(GrantRefusedError):
        await desk.exchange(code)
    assert (await whoami(desk, grant)).status_code == httpx.codes.UNAUTHORIZED


async def test_a_refresh_rotates_and_can_ask_for_fewer_scopes(desk: Desk) -> None:
    first = await desk.granted()
    second = await desk.refresh(first.refresh_token, "read")
    assert second.refresh_token not in {None, first.refresh_token}
    assert second.scopes == ("read",)
    third = await desk.refresh(second.refresh_token)
    assert third.scopes == ("read", "write")


async def test_a_refresh_token_used_twice_ends_the_family(desk: Desk) -> None:
    first = await desk.granted()
    second = await desk.refresh(first.refresh_token)
    for token in (first.refresh_token, second.refresh_token):
        with pytest.raises(GrantRefusedError) as refused:
            await desk.refresh(token)
        assert refused.value.reason is StateReason.GRANT_REFUSED
    assert (await whoami(desk, second)).status_code == httpx.codes.UNAUTHORIZED


async def test_without_rotation_the_refresh_token_stays(desk: Desk) -> None:
    desk.double.rules.rotates = False
    first = await desk.granted()
    assert (await desk.refresh(first.refresh_token)).refresh_token is None
    desk.double.rules.repeats_refresh_token = True
    assert (await desk.refresh(first.refresh_token)).refresh_token == first.refresh_token


async def test_whether_a_refresh_token_is_good_is_told_without_spending_it(desk: Desk) -> None:
    first = await desk.granted()

    async def good(token: str | None) -> bool | None:
        return await desk.gateway.is_active(
            desk.provider, desk.client, {}, refresh_token=str(token)
        )

    assert await good(first.refresh_token) is True
    second = await desk.refresh(first.refresh_token)
    assert await good(first.refresh_token) is False
    assert await good(second.refresh_token) is True
    desk.double.next("/introspect", answers(200, "<!doctype html>"))
    assert await good(second.refresh_token) is None
    desk.double.next("/introspect", answers(500))
    with pytest.raises(ProviderError):
        await good(second.refresh_token)


async def test_revoking_a_refresh_token_ends_the_grant(desk: Desk) -> None:
    grant = await desk.granted()

    async def revoke() -> None:
        await desk.gateway.revoke(
            desk.provider, desk.client, {}, token=str(grant.refresh_token), hint="refresh_token"
        )

    desk.double.next("/revoke", answers(503), refuses("invalid_client", 401))
    with pytest.raises(AnswerLostError):
        await revoke()
    with pytest.raises(GrantRefusedError):
        await revoke()
    assert (await whoami(desk, grant)).status_code == httpx.codes.OK
    await revoke()
    assert (await whoami(desk, grant)).status_code == httpx.codes.UNAUTHORIZED
    await revoke()


async def test_what_the_catalogue_says_of_a_provider_is_done(desk: Desk, tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        heard.append(head + await reader.readexactly(length))
        answer = '{"ok": true, "user": {"token": "a-token", "for": "0"}, "code": "invalid"}'
        writer.write(raw_answer(200, answer, **JSON))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    odd = f"""name: odd
title: Odd
source: https://example.org/
kinds: [authorization_code]
api_base_url: {url}
parameters: {{team: "[a-z]+"}}
oauth:
  authorize_url: {url}/{{team}}/authorize
  token_url: {url}/{{team}}/token
  refresh_url: {url}/refresh
  revoke_url: {url}/clients/{{client_id}}
  revoke: {{method: DELETE, authentication: bearer, body: json, parameter: key, hint: false,
           gone_errors: [invalid], tokens: [access_token]}}
  authorize_parameters: {{audience: "of {{team}}"}}
  token_parameters: {{audience: "of {{team}}"}}
  headers: {{X-Version: "7"}}
  scope_parameter: user_scope
  scope_separator: ","
  client_authentication: basic
  token_request: json
  access_token_at: user.token
  expires_in_at: user.for
  errors_at: [code]
  zero_is_forever: true
"""
    provider = catalogue_with(tmp_path, odd).get("odd")
    assert provider is not None
    client, team, gateway = OAuthClient("an-id", "a secret"), {"team": "blue"}, desk.gateway
    asked = gateway.authorization_url(
        provider,
        client,
        team,
        redirect_url="https://a/b",
        state="s",
        verifier="v" * 43,
        scopes="ab",
    )
    assert httpx.URL(asked).params["user_scope"] == "a,b"
    assert httpx.URL(asked).params["audience"] == "of blue"
    grant = await gateway.exchange(
        provider, client, team, redirect_url="https://a/b", code="a code", verifier="v" * 43
    )
    assert (grant.access_token, grant.expires_in) == ("a-token", None)
    await gateway.refresh(provider, client, team, refresh_token="rt")
    await gateway.revoke(provider, client, team, token="at", hint="access_token")
    listener.close()
    exchange, refresh, revoke = (text.decode() for text in heard)
    assert exchange.startswith("POST /blue/token HTTP/1.1\r\n")
    assert "X-Version: 7\r\n" in exchange
    assert "Authorization: Basic YW4taWQ6YSBzZWNyZXQ=\r\n" in exchange
    assert json.loads(exchange.partition("\r\n\r\n")[2]) == {
        "grant_type": "authorization_code",
        "redirect_uri": "https://a/b",
        "code": "a code",
        "code_verifier": "v" * 43,
        "audience": "of blue",
    }
    assert refresh.startswith("POST /refresh HTTP/1.1\r\n")
    assert revoke.startswith("DELETE /clients/an-id HTTP/1.1\r\n")
    assert "Authorization: Bearer at\r\n" in revoke
    assert json.loads(revoke.partition("\r\n\r\n")[2]) == {"key": "at"}


async def test_parameters_that_the_catalogue_asks_for_no_more_spend_nothing(
    desk: Desk, tmp_path: Path
) -> None:
    text = desk.double.provider_yaml("changed").replace(
        f"{desk.double.url}/token", f"{desk.double.url}/{{team}}/token"
    )
    provider = catalogue_with(tmp_path, f'{text}parameters: {{team: "[a-z]+"}}\n').get("changed")
    assert provider is not None
    with pytest.raises(ProviderAwayError):
        await desk.gateway.client_credentials(provider, desk.client, {}, scopes=[])
    assert not desk.double.seen
