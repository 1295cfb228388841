"""What the commands about connections take."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import typer
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.moments import future
from cli.secret_input import secret

_FILE = "FILE"

ConnectionId = Annotated[
    str, typer.Argument(metavar="ID", help="`con_…`, as `connection list` shows it.")
]
RequestId = Annotated[
    str,
    typer.Option(
        "--request-id",
        metavar="TEXT",
        help="Repeat with the same one and nothing is made twice. \\[default: a new one]",
        show_default=False,
    ),
]
Exclusive = Annotated[bool, typer.Option("--exclusive", help="It serves one deployment at a time.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter",
        metavar="NAME=VALUE",
        help="What the provider's addresses need, as its subdomain; repeat for more. "
        "`provider list` names them.",
        show_default=False,
    ),
]
TokenFile = Annotated[
    str,
    typer.Option(
        "--token-file",
        metavar=_FILE,
        help="Holds a token that stays as it is; - reads standard input, at a terminal unseen.",
        show_default=False,
    ),
]
TokenExpires = Annotated[
    str,
    typer.Option(
        "--token-expires",
        metavar="TIME",
        help="When the provider ends that token: 90d from now, or 2027-01-31T12:00:00Z.",
        show_default=False,
    ),
]
ApiKeyFile = Annotated[
    str,
    typer.Option(
        "--api-key-file", metavar=_FILE, help="Holds an API key, likewise.", show_default=False
    ),
]
Username = Annotated[
    str,
    typer.Option(
        "--username",
        metavar="NAME",
        help="For providers that take a user's name beside the API key.",
        show_default=False,
    ),
]
ClientId = Annotated[
    str,
    typer.Option(
        "--client-id", metavar="ID", help="Of an OAuth client of your own.", show_default=False
    ),
]
ClientSecretFile = Annotated[
    str,
    typer.Option(
        "--client-secret-file",
        metavar=_FILE,
        help="Holds that client's secret; - reads standard input, at a terminal unseen.",
        show_default=False,
    ),
]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        metavar="SCOPE",
        help="What to ask the provider for, by its own names; repeat for more. Without it: "
        "those that `provider list --json` names.",
        show_default=False,
    ),
]

# What refusals call the contract's fields.
AS_OPTIONS = MappingProxyType(
    {
        "connection_id": "ID",
        "provider": "PROVIDER",
        "credential": "the credential",
        "static_token": "--token-file",
        "api_key": "--api-key-file",
        "client_credentials": "--client-id",
        "client_id": "--client-id",
        "client_secret": "--client-secret-file",
        "parameters": "--parameter",
        "name": "--name",
        "static_token.token": "--token-file",
        "static_token.expire_time": "--token-expires",
        "api_key.key": "--api-key-file",
        "api_key.username": "--username",
        "client_credentials.client_id": "--client-id",
        "client_credentials.client_secret": "--client-secret-file",
        "client_credentials.scopes": "--scope",
    }
)


@dataclass(frozen=True, slots=True)
class Given:
    """What the options say of a credential that is there already; files are not read yet."""

    token_file: str
    token_expires: str
    api_key_file: str
    username: str
    client_id: str
    client_secret_file: str
    scopes: Sequence[str]

    def credential(self) -> dict[str, Any]:
        """Returns the field of the contract that holds it; nothing when no option named one.

        Raises:
            typer.BadParameter: the options do not go together, or a file cannot be read.
        """
        self._check()
        if self.token_file:
            return {"static_token": self._static_token()}
        if self.api_key_file:
            key = secret(self.api_key_file, "API key", "--api-key-file")
            return {"api_key": pb.ApiKey(key=key, username=self.username)}
        return {"client_credentials": self._client()} if self.client_id else {}

    def _check(self) -> None:
        kinds = [
            option
            for option, value in (
                ("--token-file", self.token_file),
                ("--api-key-file", self.api_key_file),
                ("--client-secret-file", self.client_secret_file),
            )
            if value
        ]
        if len(kinds) > 1:
            raise typer.BadParameter(f"give one of {' and '.join(kinds)}, not both")
        for option, value, needed, there in (
            ("--token-expires", self.token_expires, "--token-file", self.token_file),
            ("--username", self.username, "--api-key-file", self.api_key_file),
            ("--client-id", self.client_id, "--client-secret-file", self.client_secret_file),
            ("--client-secret-file", self.client_secret_file, "--client-id", self.client_id),
            ("--scope", self.scopes, "--client-id", self.client_id),
        ):
            if value and not there:
                raise typer.BadParameter(f"{option} needs {needed}")

    def _static_token(self) -> pb.StaticToken:
        return pb.StaticToken(
            token=secret(self.token_file, "Token", "--token-file"),
            expire_time=future(self.token_expires, "--token-expires")
            if self.token_expires
            else None,
        )

    def _client(self) -> pb.ClientCredentials:
        return pb.ClientCredentials(
            client_id=self.client_id,
            client_secret=secret(self.client_secret_file, "Client secret", "--client-secret-file"),
            scopes=self.scopes,
        )


def named_values(parameters: Sequence[str]) -> dict[str, str]:
    """Returns `NAME=VALUE` texts as a mapping.

    Raises:
        typer.BadParameter: one is not of that form.
    """
    pairs = [text.partition("=") for text in parameters]
    if any(not name or not value for name, _, value in pairs):
        raise typer.BadParameter("--parameter is written NAME=VALUE")
    return {name: value for name, _, value in pairs}
