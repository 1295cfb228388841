"""The catalogue that comes with the service, and files of operators, good and bad."""

import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import BaseModel

from services.credentials.domain import ConnectionKind, OAuthClient
from services.credentials.providers.catalogue import (
    Catalogue,
    Injection,
    OAuth,
    Provider,
    RevokeRequest,
)
from services.credentials.providers.clients import load_clients
from services.credentials.providers.files import load_catalogue
from services.credentials.providers.gateway import HttpGateway
from services.credentials.providers.injection import injected
from services.shared.errors import InvalidFieldError
from services.shared.settings import UnusableFileError

CATALOGUE = load_catalogue(None)
# A value for each parameter in the catalogue.
VALUES = {
    "tenant": "common",
    "domain": "acme--dev.sandbox",
    "subdomain": "acme",
    "shop": "acme-shop",
    "data_center": "us21",
    "company": "acme",
    "team": "acme",
}
OWN = """name: acme
title: Acme
source: https://docs.acme.example/oauth
kinds: [authorization_code, api_key]
api_base_url: https://{team}.acme.example/v1
parameters:
  team: "[a-z]{1,20}"
oauth:
  authorize_url: https://login.acme.example/authorize?team={team}
  token_url: https://login.acme.example/token
"""


def parameters_of(provider: Provider) -> dict[str, str]:
    return {name: VALUES[name] for name in provider.parameters}


def loaded(folder: Path, text: str, name: str = "acme", *, private: bool = False) -> Catalogue:
    (folder / f"{name}.yaml").write_text(text)
    return load_catalogue(folder, private_targets=private)


@pytest.fixture(scope="module")
async def gateway() -> AsyncIterator[HttpGateway]:
    async with httpx.AsyncClient() as http:
        yield HttpGateway(http)


def test_the_catalogue_knows_many_providers() -> None:
    providers = CATALOGUE.all()
    assert len(providers) >= 25
    assert [each.name for each in providers] == sorted(each.name for each in providers)
    assert len({each.title for each in providers}) == len(providers)
    assert CATALOGUE.get("nobody") is None


@pytest.mark.parametrize("provider", CATALOGUE.all(), ids=lambda provider: provider.name)
def test_each_provider_is_documented_and_can_be_spoken_with(provider: Provider) -> None:
    assert urlsplit(provider.source).hostname
    parameters = parameters_of(provider)
    provider.check_parameters(parameters)
    assert "{" not in provider.api_base(parameters)
    assert provider.api_base(parameters).startswith("https://")
    for kind in provider.kinds:
        assert injected(provider, kind, "s3cret", "me", "an-id").token_type


@pytest.mark.parametrize(
    "provider",
    [each for each in CATALOGUE.all() if each.oauth and each.oauth.authorize_url],
    ids=lambda provider: provider.name,
)
def test_each_provider_is_asked_as_it_wants_to_be(gateway: HttpGateway, provider: Provider) -> None:
    oauth = provider.oauth
    assert oauth is not None
    url = gateway.authorization_url(
        provider,
        OAuthClient("an-id", "a secret"),
        parameters_of(provider),
        redirect_url="https://bulkhead.example/oauth/callback",
        state="a-state",
        verifier="v" * 43,
        scopes=["one", "two"],
    )
    asked = httpx.URL(url).params
    assert asked["response_type"] == "code"
    assert (asked["client_id"], asked["state"]) == ("an-id", "a-state")
    assert asked["redirect_uri"] == "https://bulkhead.example/oauth/callback"
    assert asked[oauth.scope_parameter] == f"one{oauth.scope_separator}two"
    assert ("code_challenge" in asked) == oauth.pkce
    assert asked.get("code_challenge_method") == ("S256" if oauth.pkce else None)
    assert "verifier" not in url
    assert "a+secret" not in url
    for name, value in oauth.authorize_parameters.items():
        assert asked[name] == value


ESCAPES = [
    "",
    "evil.example/",
    "evil.example#",
    "evil.example?",
    "evil.example\\",
    "me@evil.example",
    "evil.example:443",
    "..",
    "a/../b",
    "a..b",
    "a%2fb",
    "a b",
    "a\n",
    "\nacme",
    "a\r\nHost: evil.example",
    "-",
    ".",
    "x" * 201,
    "bücher",
]


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Provider:
    """A provider whose pattern lets everything pass."""
    folder = tmp_path_factory.mktemp("careless")
    provider = loaded(folder, OWN.replace("[a-z]{1,20}", "(?s).*")).get("acme")
    assert provider is not None
    return provider


@pytest.mark.promise("P-33")
@pytest.mark.parametrize("value", ESCAPES)
def test_no_value_of_a_parameter_leads_to_another_host(careless: Provider, value: str) -> None:
    for provider in (*CATALOGUE.all(), careless):
        for name in provider.parameters:
            values = {**parameters_of(provider), name: value}
            with pytest.raises(InvalidFieldError) as refused:
                provider.check_parameters(values)
            assert refused.value.field == f"parameters.{name}"
    with pytest.raises(ValueError, match="no plain name"):
        careless.api_base({"team": value})


@pytest.mark.promise("P-33")
def test_whatever_fits_a_careless_pattern_the_host_is_the_catalogues(careless: Provider) -> None:
    for value in ("evil.example", "evil", "a~b", "a_b", "1.1.1.1"):
        careless.check_parameters({"team": value})
        host = urlsplit(careless.api_base({"team": value})).hostname
        assert str(host).endswith(".acme.example")


def test_parameters_are_neither_missing_nor_more() -> None:
    zendesk, github = CATALOGUE.get("zendesk"), CATALOGUE.get("github")
    assert zendesk is not None
    assert github is not None
    wrong: list[tuple[Provider, Mapping[str, str]]] = [
        (zendesk, {}),
        (zendesk, {"subdomain": "acme", "shop": "acme"}),
        (zendesk, {"subdomain": "ACME"}),
        (github, {"subdomain": "acme"}),
    ]
    for provider, values in wrong:
        with pytest.raises(InvalidFieldError):
            provider.check_parameters(values)


def test_an_operators_file_is_beside_ours_or_in_place_of_one(tmp_path: Path) -> None:
    (tmp_path / ".hidden.yaml").write_text("no provider")
    loaded(tmp_path, OWN)
    catalogue = loaded(
        tmp_path, OWN.replace("acme\n", "github\n").replace("Acme", "Our GitHub"), "github"
    )
    assert catalogue.get("acme") is not None
    assert len(catalogue.all()) == len(CATALOGUE.all()) + 1
    github = catalogue.get("github")
    assert github is not None
    assert github.title == "Our GitHub"


def test_plaintext_and_loopback_are_for_those_who_allow_it(tmp_path: Path) -> None:
    text = OWN.replace("https://login.acme.example", "http://127.0.0.1:8000")
    assert loaded(tmp_path, text, private=True).get("acme") is not None
    with pytest.raises(UnusableFileError, match=r"oauth\.authorize_url: must be https"):
        loaded(tmp_path, text)


BAD = [
    ("title: Acme", "titel: Acme", "titel: no such field (and 1 more)"),
    ("title: Acme", "title: [", "line "),
    ("title: Acme", "title: Acme\ntitle: Acme", "title is there twice"),
    ("title: Acme", "", "title: "),
    ("title: Acme", "title: ''", "title: "),
    ("title: Acme", "title: Acme\ncolour: red", "colour: "),
    ("name: acme", "name: acne", "name: must be acme"),
    ("name: acme", "name: Acme!", "name: "),
    ("source: https://", "source: http://", "source: "),
    ("[authorization_code, api_key]", "[]", "kinds: "),
    ("[authorization_code, api_key]", "[a_kind]", "kinds[0]: "),
    ("[authorization_code, api_key]", "[api_key, api_key]", "kinds: one is there twice"),
    ("[authorization_code, api_key]", "[api_key]", "oauth: no kind makes use of it"),
    ("[authorization_code, api_key]", "[client_credentials]", "oauth.authorize_url: "),
    ("  authorize_url: https://login.acme.example/authorize?team={team}\n", "", "authorize_url"),
    ("  token_url: https://login.acme.example/token\n", "", "oauth.token_url: "),
    ("https://login.acme.example/token", "http://login.acme.example/token", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://acme/token", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://127.0.0.1/token", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://me@acme.example/", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://acme.example#x", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://acme.example/a#x", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://{team}/token", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://{team}.example/t", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://acme.{team}/t", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://a{team}.acme.example/t", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://acme.example:{team}/", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://acme.example{team}/", "oauth.token_url: "),
    ("https://login.acme.example/token", "https://acme.example/{user}", "{user} is not declared"),
    ("https://login.acme.example/token", "https://acme.example/{", "a brace that is no part"),
    ("{team}.acme.example/v1", "{t}.acme.example/v1", "api_base_url: {t} is not declared"),
    ('team: "[a-z]{1,20}"', 'team: "["', "parameters.team: is no regular expression"),
    ('team: "[a-z]{1,20}"', 'team: "a"\n  client_id: "a"', "parameters: client_id"),
    ('team: "[a-z]{1,20}"', 'team: "a"\n  "no name": "a"', "parameters"),
    ("oauth:", "inject: {place: cookie}\noauth:", "inject.place: "),
    ("oauth:", "inject: {template: Bearer}\noauth:", "inject: template must hold {token}"),
    ("oauth:", 'inject: {template: "{token} {secret}"}\noauth:', "inject: template knows"),
    ("oauth:", 'inject: {place: basic, template: "{token}"}\noauth:', "inject: template must"),
    ("oauth:", "inject: {place: query, name: key}\noauth:", "inject: template must be said"),
    ("oauth:", 'inject: {name: "X Y"}\noauth:', "inject.name: "),
    ("oauth:", 'inject: {headers: {X-A: "a\\nb"}}\noauth:', "inject.headers.X-A: "),
    ("oauth:", 'inject: {headers: {X-A: "{user}"}}\noauth:', "inject: headers know"),
    ("oauth:", "oauth:\n  scope_separator: x", "oauth.scope_separator: "),
    ("oauth:", "oauth:\n  default_scopes: ['a b']", "oauth.default_scopes[0]: "),
    ("oauth:", "oauth:\n  pkce: perhaps", "oauth.pkce: "),
    ("oauth:", "oauth:\n  default_lifetime_seconds: 5", "oauth.default_lifetime_seconds: "),
    ("oauth:", "oauth:\n  refresh_rotation: never", "oauth.refresh_rotation: "),
    ("oauth:", "oauth:\n  access_token_at: a..b", "oauth.access_token_at: "),
    ("oauth:", "oauth:\n  revoke: {tokens: []}", "oauth.revoke.tokens: "),
    ("oauth:", "oauth:\n  token_parameters: {a: '{user}'}", "oauth.token_parameters.a: {user}"),
    ("oauth:", "oauth:\n  headers: {'a:b': c}", "oauth.headers"),
]


@pytest.mark.parametrize(("good", "bad", "said"), BAD)
def test_a_bad_file_is_refused_in_one_line_that_says_where(
    tmp_path: Path, good: str, bad: str, said: str
) -> None:
    assert good in OWN
    with pytest.raises(UnusableFileError) as refused:
        loaded(tmp_path, OWN.replace(good, bad, 1))
    assert str(refused.value).startswith(f"{tmp_path / 'acme.yaml'}: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "- a list", "a text", "\x00", "!!python/name:os.system"])
def test_what_is_no_provider_at_all_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnusableFileError, match=re.escape(str(tmp_path / "acme.yaml"))):
        loaded(tmp_path, text)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableFileError, match="is no folder"):
        load_catalogue(tmp_path / "nowhere")


def clients_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "clients"
    file.write_text(text)
    file.chmod(mode)
    return file


CLIENT = "github: {client_id: an-id, client_secret: s3cret}\n"


def test_the_operators_clients_are_known_by_provider(tmp_path: Path) -> None:
    clients = load_clients(clients_file(tmp_path, CLIENT), CATALOGUE)
    assert clients.get("github") == OAuthClient("an-id", "s3cret")
    assert clients.get("gitlab") is None
    assert "s3cret" not in repr(clients)
    assert load_clients(None, CATALOGUE).get("github") is None


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (CLIENT, 0o640, "must be its owner's alone"),
        (CLIENT, 0o604, "must be its owner's alone"),
        (CLIENT.replace("github", "nobody"), 0o600, "nobody: is no provider with OAuth"),
        (CLIENT.replace("github", "stripe"), 0o600, "stripe: is no provider with OAuth"),
        ("github: {client_secret: s3cret}", 0o600, "github.client_id"),
        ("github: {client_id: a, client_secret: [s3cret]}", 0o600, "github.client_secret"),
        ("github: {client_id: a, secret: s3cret}", 0o600, "github.secret"),
        ("github: s3cret", 0o600, "github"),
    ],
)
def test_a_bad_file_of_clients_is_refused_without_what_is_in_it(
    tmp_path: Path, text: str, mode: int, said: str
) -> None:
    with pytest.raises(UnusableFileError) as refused:
        load_clients(clients_file(tmp_path, text, mode), CATALOGUE)
    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_kind_says_how_it_is_carried() -> None:
    figma = CATALOGUE.get("figma")
    assert figma is not None
    assert figma.injection(ConnectionKind.API_KEY).name == "X-Figma-Token"
    assert figma.injection(ConnectionKind.AUTHORIZATION_CODE).name == "Authorization"


def test_the_document_tells_every_field_and_its_example_can_be_used(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
    told = set(re.findall(r"`(\w+)`", text))
    models: tuple[type[BaseModel], ...] = (Provider, Injection, OAuth, RevokeRequest)
    for model in models:
        assert model.model_fields.keys() <= told
    assert f"{len(CATALOGUE.all())} come with credentials" in text
    example, clients = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    catalogue = loaded(tmp_path, example)
    assert catalogue.get("acme") is not None
    assert load_clients(clients_file(tmp_path, clients), catalogue).get("acme") is not None
