"""How a request carries a credential."""

import base64

import pytest

from services.credentials.domain import ConnectionKind
from services.credentials.providers.catalogue import Provider
from services.credentials.providers.files import load_catalogue
from services.credentials.providers.injection import (
    MOST_SECRET_LENGTH,
    injected,
    is_sendable,
    is_username,
)

CATALOGUE = load_catalogue(None)
API_KEY, STATIC = ConnectionKind.API_KEY, ConnectionKind.STATIC_TOKEN
GRANTED = ConnectionKind.AUTHORIZATION_CODE


def named(name: str) -> Provider:
    provider = CATALOGUE.get(name)
    assert provider is not None
    return provider


def basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


@pytest.mark.parametrize(
    ("provider", "kind", "headers", "token_type"),
    [
        ("sendgrid", API_KEY, {"Authorization": "Bearer s3cret"}, "ApiKey"),
        ("google", GRANTED, {"Authorization": "Bearer s3cret"}, "Bearer"),
        ("twilio", API_KEY, {"Authorization": basic("me:s3cret")}, "Basic"),
        ("zendesk", API_KEY, {"Authorization": basic("me/token:s3cret")}, "Basic"),
        ("zendesk", GRANTED, {"Authorization": "Bearer s3cret"}, "Bearer"),
        ("figma", API_KEY, {"X-Figma-Token": "s3cret"}, "ApiKey"),
        ("discord", API_KEY, {"Authorization": "Bot s3cret"}, "ApiKey"),
        ("linear", API_KEY, {"Authorization": "s3cret"}, "ApiKey"),
        (
            "anthropic",
            API_KEY,
            {"x-api-key": "s3cret", "anthropic-version": "2023-06-01"},
            "ApiKey",
        ),
        ("twitch", GRANTED, {"Authorization": "Bearer s3cret", "Client-Id": "an-id"}, "Bearer"),
    ],
)
def test_a_credential_goes_where_the_provider_wants_it(
    provider: str, kind: ConnectionKind, headers: dict[str, str], token_type: str
) -> None:
    carried = injected(named(provider), kind, "s3cret", "me", "an-id")
    assert carried.headers == headers
    assert carried.query == {}
    assert carried.token_type == token_type
    assert "s3cret" not in repr(carried)


def test_a_key_in_the_query_is_in_no_header() -> None:
    carried = injected(named("openweather"), API_KEY, "s3cret")
    assert (carried.headers, carried.query) == ({}, {"appid": "s3cret"})


@pytest.mark.promise("P-33")
@pytest.mark.parametrize(
    "secret",
    [
        "",
        "two\r\nX-Evil: lines",
        "two\nlines",
        "nul\0",
        "tab\t",
        " ahead",
        "behind ",
        "nön-ascii",
        "x" * (MOST_SECRET_LENGTH + 1),
    ],
)
def test_a_secret_that_would_be_more_than_a_value_is_sent_nowhere(secret: str) -> None:
    assert not is_sendable(secret)
    for provider in ("sendgrid", "twilio", "openweather"):
        with pytest.raises(ValueError, match="cannot be sent") as refused:
            injected(named(provider), API_KEY, secret, "me")
        assert not secret or secret not in str(refused.value)


@pytest.mark.parametrize("username", ["", "a:b", "a\r\nb", "ünser", "x" * 20_000])
def test_a_name_that_would_be_more_than_a_name_is_sent_nowhere(username: str) -> None:
    assert not is_username(username)
    with pytest.raises(ValueError, match="cannot be sent"):
        injected(named("twilio"), API_KEY, "s3cret", username)


def test_a_name_cannot_stand_for_the_secret_and_a_secret_for_no_name() -> None:
    carried = injected(named("twilio"), API_KEY, "{username}", "{token}")
    assert carried.headers == {"Authorization": basic("{token}:{username}")}


def test_a_provider_that_wants_the_clients_id_is_not_asked_without() -> None:
    with pytest.raises(ValueError, match="client"):
        injected(named("twitch"), GRANTED, "s3cret")
