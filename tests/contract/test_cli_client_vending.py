"""Vending, providers and webhooks on the command line."""

from datetime import timedelta
from typing import Any

import pytest
from bulkhead.common.v1 import error_reason_pb2
from bulkhead.credentials.v1 import credentials_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from typer.testing import CliRunner

from cli.program import build
from services.shared.errors import InvalidFieldError
from tests.canaries import ACCESS_TOKEN
from tests.scripted_api import CREATED, ScriptedApi, bulkhead, time

TOKEN = f"{ACCESS_TOKEN}-9xyz"


def token(alias: str = "github", **more: Any) -> pb.VendedToken:
    known: dict[str, Any] = {
        "token": TOKEN,
        "token_type": "Bearer",
        "expire_time": time(CREATED + timedelta(hours=1)),
        "headers": {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json"},
        "scopes": ["repo", "user"],
        "connection_id": "con_1",
        "alias": alias,
        "provider": "github",
    }
    return pb.VendedToken(**(known | more))


def answer(*outcomes: pb.VendedToken | pb.VendRefusal) -> pb.VendResponse:
    return pb.VendResponse(
        results=[
            pb.VendResult(token=one)
            if isinstance(one, pb.VendedToken)
            else pb.VendResult(refusal=one)
            for one in outcomes
        ]
    )


MISSING = pb.VendRefusal(
    reason=error_reason_pb2.ERROR_REASON_BINDING_MISSING,
    message="nothing is bound under this name",
    retry_after=Duration(seconds=2, nanos=500_000_000),
)


async def test_a_token_is_masked_unless_it_is_asked_for(api: ScriptedApi) -> None:
    api.answers["Vend"] = answer(token())
    masked = await bulkhead(api.port, "vend", "github", "--purpose", "nightly")
    assert masked.code == 0, masked.err
    head, row = masked.out.splitlines()
    assert head.split() == ["ALIAS", "PROVIDER", "TYPE", "SCOPES", "EXPIRES", "TOKEN"]
    assert row == "github  github    Bearer  repo,user  2026-11-22 13:00:00Z  …9xyz"
    whole = await bulkhead(api.port, "vend", "github", "--show-token")
    assert whole.out.count(TOKEN) == 1
    shown = (await bulkhead(api.port, "vend", "github", "--json")).json
    assert shown["results"][0]["token"]["token"] == TOKEN
    (item,) = api.requests("Vend")[0].items
    assert (item.alias, item.provider, item.purpose) == ("github", "", "nightly")


async def test_a_short_token_shows_nothing_of_itself(api: ScriptedApi) -> None:
    api.answers["Vend"] = answer(token(token="short-token"))
    assert (await bulkhead(api.port, "vend", "github")).out.endswith("  …\n")


async def test_headers_are_printed_as_curl_takes_them(api: ScriptedApi) -> None:
    api.answers["Vend"] = answer(token())
    outcome = await bulkhead(api.port, "vend", "--provider", "github", "--header")
    assert outcome.out == f"Accept: application/json\nAuthorization: Bearer {TOKEN}\n"
    assert api.requests("Vend")[0].items[0].provider == "github"
    api.answers["Vend"] = answer(token(headers={}, query={"key": TOKEN}))
    without = await bulkhead(api.port, "vend", "github", "--header")
    assert (without.code, without.out) == (1, "")
    assert "takes the credential in the query" in without.err


async def test_what_is_refused_is_told_beside_what_is_not(api: ScriptedApi) -> None:
    api.answers["Vend"] = answer(token(), MISSING)
    outcome = await bulkhead(api.port, "vend", "github", "slack")
    assert outcome.code == 1
    assert len(outcome.out.splitlines()) == 2
    assert outcome.err.splitlines() == [
        "refused: slack: BINDING_MISSING; try again in 2.5 s",
        "  nothing is bound under this name",
    ]
    shown = await bulkhead(api.port, "vend", "github", "slack", "--json")
    assert shown.code == 1
    first, second = shown.json["results"]
    assert (first["alias"], first["token"]["token"]) == ("github", TOKEN)
    assert (second["alias"], second["provider"]) == ("slack", "")
    assert second["refusal"]["reason"] == "BINDING_MISSING"
    api.answers["Vend"] = answer(MISSING)
    alone = await bulkhead(api.port, "vend", "slack", "--header")
    assert (alone.code, alone.out) == (1, "")


async def test_a_connections_key_needs_no_alias(api: ScriptedApi) -> None:
    api.answers["Vend"] = answer(token(alias=""))
    outcome = await bulkhead(api.port, "vend")
    assert "con_1" in outcome.out
    assert list(api.requests("Vend")[0].items) == [pb.VendItem()]
    api.answers["Vend"] = InvalidFieldError("items[0].alias", "name an alias or a provider")
    nameless = await bulkhead(api.port, "vend")
    assert (nameless.code, "or --provider" in nameless.err) == (2, True)


@pytest.mark.parametrize("arguments", [("a", "b", "--header"), ("a", "--header", "--json")])
def test_headers_are_of_one_alias(arguments: tuple[str, ...]) -> None:
    outcome = CliRunner().invoke(build(), ["vend", *arguments], env={"BULKHEAD_KEY": "k"})
    assert (outcome.exit_code, "--header is for one" in outcome.output) == (2, True)


async def test_provider_list_says_what_each_takes(api: ScriptedApi) -> None:
    api.answers["ListProviders"] = pb.ListProvidersResponse(
        providers=[
            pb.Provider(
                name="zendesk",
                title="Zendesk",
                kinds=[pb.CONNECTION_KIND_API_KEY, pb.CONNECTION_KIND_AUTHORIZATION_CODE],
                parameters=["subdomain"],
                operator_client=True,
            )
        ]
    )
    outcome = await bulkhead(api.port, "provider", "list")
    assert outcome.out.splitlines()[1] == (
        "zendesk   Zendesk  api key, authorization code  subdomain   yes"
    )


async def test_a_webhook_is_set_shown_and_ended(api: ScriptedApi) -> None:
    url = "https://hooks.example.com/"
    api.answers["SetWebhook"] = pb.SetWebhookResponse(url=url, secret="whsec_1")
    api.answers["GetWebhook"] = pb.GetWebhookResponse(
        url=url, create_time=time(), undelivered=3, last_failure="status 500"
    )
    api.answers["DeleteWebhook"] = pb.DeleteWebhookResponse()
    made = await bulkhead(api.port, "webhook", "set", url)
    assert (made.out.count("whsec_1"), "not shown again" in made.err) == (1, True)
    shown = (await bulkhead(api.port, "webhook", "show")).out
    assert [line.split()[-1] for line in shown.splitlines()] == [
        url, "12:00:00Z", "3", "yet", "500",
    ]  # fmt: skip
    assert (await bulkhead(api.port, "webhook", "delete")).code == 0
    api.answers["GetWebhook"] = pb.GetWebhookResponse()
    assert "bulkhead webhook set" in (await bulkhead(api.port, "webhook", "show")).out
