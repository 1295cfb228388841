"""The operator's own OAuth clients at providers, out of a file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr

from services.credentials.domain import OAuthClient
from services.credentials.providers.catalogue import Catalogue
from services.shared.keyring.private_files import open_to_others
from services.shared.settings import UnusableFileError, read_file
from services.shared.yaml_files import parsed_as


class _Client(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    client_id: str = Field(min_length=1, max_length=500, pattern=r"^[\x21-\x7e]+$")
    # Absent: a public client.
    client_secret: SecretStr = SecretStr("")


class _Clients(RootModel[Mapping[str, _Client]]):
    pass


@dataclass(frozen=True, slots=True)
class OperatorClients:
    """The operator's OAuth clients, by provider."""

    clients: Mapping[str, OAuthClient]

    def get(self, provider: str) -> OAuthClient | None:
        """Returns the operator's client at the provider; None when there is none."""
        return self.clients.get(provider)


def load_clients(file: Path | None, catalogue: Catalogue) -> OperatorClients:
    """Returns the clients that the file names; without a file, none.

    Raises:
        UnusableFileError: it cannot be read, others than its owner can read it too, or it names
            what the catalogue does not know.
    """
    if file is None:
        return OperatorClients({})
    text = read_file(file)
    if open_to_others(file.stat(), os.geteuid()):
        raise UnusableFileError(f"{file}: must be its owner's alone (chmod 600)")
    named = parsed_as(_Clients, file, text).root
    for provider in named:
        if (known := catalogue.get(provider)) is None or known.oauth is None:
            raise UnusableFileError(f"{file}: {provider}: is no provider with OAuth")
    return OperatorClients({provider: _client(client) for provider, client in named.items()})


def _client(client: _Client) -> OAuthClient:
    return OAuthClient(client.client_id, client.client_secret.get_secret_value())
