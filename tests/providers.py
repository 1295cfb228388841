"""The providers of the tests' mesh, and what a person does there."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from deploy.local.files import write_private
from tests.provider_double import ProviderDouble

# Where the mesh has its front door, and where a caller of its own listens.
AT_DOOR = "http://localhost:8080/oauth/callback"
OWN_REDIRECT = "http://127.0.0.1:9/callback"
LOOPBACK, UNREVOKING, PARTICULAR = "loopback", "unrevoking", "particular"
# One that wants to be told its subdomain, and a user's name beside the key.
_PARTICULAR = """\
name: particular
title: Particular
source: https://www.rfc-editor.org/rfc/rfc7617
kinds: [api_key]
api_base_url: https://{subdomain}.example.com/api
parameters: {subdomain: "[a-z]{2,8}"}
inject: {place: basic, template: "{username}:{token}"}
"""


def catalogue_settings(home: Path, provider: ProviderDouble) -> dict[str, Any]:
    """Returns settings by which credentials knows the provider, with a client of the operator's."""
    folder = home / "providers"
    folder.mkdir(exist_ok=True)
    loopback = provider.provider_yaml(LOOPBACK)
    kept = [line for line in loopback.splitlines() if "revoke_url" not in line]
    unrevoking = "\n".join(kept).replace("name: loopback", "name: unrevoking")
    (folder / f"{LOOPBACK}.yaml").write_text(loopback)
    (folder / f"{UNREVOKING}.yaml").write_text(unrevoking)
    (folder / f"{PARTICULAR}.yaml").write_text(_PARTICULAR)
    clients = provider.server.clients_yaml(LOOPBACK)
    return {
        "redirect_url": AT_DOOR,
        "providers_folder": folder,
        "oauth_clients_file": write_private(home / "oauth-clients.yaml", clients),
    }


async def allowed(authorization_url: str) -> tuple[str, str]:
    """Opens the URL as a person who allows it; returns the state and the code that come back."""
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(authorization_url)
    assert answer.is_redirect, answer.text
    query = parse_qs(urlsplit(answer.headers["location"]).query)
    return query["state"][0], query["code"][0]


def state_of(authorization_url: str) -> str:
    """Returns the state in the URL."""
    return parse_qs(urlsplit(authorization_url).query)["state"][0]
