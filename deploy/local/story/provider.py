"""The outside provider of the story: a real authorization server, in this very process."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.envoy.routes import CALLBACK_PATH
from deploy.local.authorization_server import AuthorizationServer, running_authorization_server
from deploy.local.authorization_state import Rules
from deploy.local.files import private_folder, write_private
from deploy.local.ports import free_ports

NAME = "loopback"


@dataclass(frozen=True, slots=True)
class OutsideProvider:
    """A running provider, and how a stack comes to know it."""

    server: AuthorizationServer
    # Settings by service, by which the stack has it in its catalogue.
    overrides: Mapping[str, Mapping[str, str]]
    # Where the front door must listen, since the provider leads people back to it.
    edge_port: int


@asynccontextmanager
async def outside_provider(folder: Path) -> AsyncIterator[OutsideProvider]:
    """Yields a provider that asks people before it grants anything; its files are in `folder`."""
    (edge_port,) = free_ports(1)
    back = f"http://localhost:{edge_port}{CALLBACK_PATH}"
    rules = Rules(auto_consent=False)
    async with running_authorization_server(redirect_urls=[back], rules=rules) as server:
        catalogue = private_folder(folder / "providers")
        write_private(catalogue / f"{NAME}.yaml", server.provider_yaml(NAME))
        clients = write_private(folder / "oauth-clients.yaml", server.clients_yaml(NAME))
        settings = {
            "providers_folder": str(catalogue),
            "oauth_clients_file": str(clients),
            "allow_private_targets": "true",
        }
        yield OutsideProvider(server, {"credentials": settings}, edge_port)
