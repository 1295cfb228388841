"""A gateway and a provider that it speaks with."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from deploy.local.authorization_state import Rules
from services.credentials.domain import Grant, OAuthClient, ProviderError
from services.credentials.providers.catalogue import Catalogue, Provider
from services.credentials.providers.files import load_catalogue
from services.credentials.providers.gateway import HttpGateway
from services.credentials.providers.outbound import open_outbound
from tests.provider_double import Fault, ProviderDouble, answers, running_provider

JSON = {"content_type": "application/json"}
VERIFIER = "verifier-0123456789-0123456789-0123456789-abcdef"


@dataclass(frozen=True)
class Patience:
    """Settings of calls out of the mesh."""

    provider_timeout_seconds: float = 10.0
    allow_private_targets: bool = True


@dataclass
class Desk:
    """Asks the double for tokens, by way of the gateway."""

    double: ProviderDouble
    http: httpx.AsyncClient
    provider: Provider
    gateway: HttpGateway
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def client(self) -> OAuthClient:
        return OAuthClient(self.double.client.client_id, self.double.client.client_secret)

    @property
    def redirect_url(self) -> str:
        return self.double.client.redirect_urls[0]

    async def code(self) -> str:
        url = self.gateway.authorization_url(
            self.provider,
            self.client,
            {},
            redirect_url=self.redirect_url,
            state="a state",
            verifier=VERIFIER,
            scopes=["read", "write"],
        )
        led_back = httpx.URL((await self.http.get(url)).headers["location"])
        assert led_back.params["state"] == "a state"
        return led_back.params["code"]

    async def exchange(self, code: str, verifier: str = VERIFIER) -> Grant:
        return await self.gateway.exchange(
            self.provider,
            self.client,
            {},
            redirect_url=self.redirect_url,
            code=code,
            verifier=verifier,
        )

    async def granted(self) -> Grant:
        return await self.exchange(await self.code())

    async def refresh(self, refresh_token: str | None, *scopes: str) -> Grant:
        assert refresh_token is not None
        return await self.gateway.refresh(
            self.provider, self.client, {}, refresh_token=refresh_token, scopes=scopes
        )

    async def met(self, fault: Fault) -> ProviderError:
        """Returns what asking for a token raises when the provider behaves so."""
        self.double.next("/token", fault)
        with pytest.raises(ProviderError) as raised:
            await self.gateway.client_credentials(self.provider, self.client, {}, scopes=["read"])
        assert self.client.client_secret not in repr(raised.value)
        assert raised.value.__cause__ is None
        return raised.value

    async def given(self, answer: Mapping[str, object]) -> Grant:
        """Returns what the gateway makes of this answer."""
        self.double.next("/token", answers(200, json.dumps(answer), **JSON))
        return await self.gateway.client_credentials(self.provider, self.client, {}, scopes=[])


def catalogue_with(folder: Path, *files: str) -> Catalogue:
    """Returns our catalogue with these files beside."""
    for text in files:
        name = text.partition("name: ")[2].partition("\n")[0]
        (folder / f"{name}.yaml").write_text(text)
    return load_catalogue(folder, private_targets=True)


@asynccontextmanager
async def open_desk(folder: Path) -> AsyncIterator[Desk]:
    """Yields a desk whose catalogue is kept in `folder`."""
    async with running_provider() as double, open_outbound(Patience()) as http:
        provider = catalogue_with(folder, double.provider_yaml()).get("loopback")
        assert provider is not None
        yield Desk(double, http, provider, HttpGateway(http))


def cleared(desk: Desk) -> Desk:
    """Returns the desk as if nothing had happened yet."""
    desk.double.state.rules = Rules()
    desk.double.state.seen.clear()
    desk.double.seen.clear()
    desk.double.faults.clear()
    return desk
