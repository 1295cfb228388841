"""The commands `bulkhead connection …`, but for `authorize` and `trace`."""

import uuid
from enum import StrEnum
from typing import Annotated

import typer
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli import authorizations, tracing
from cli.connection_options import (
    AS_OPTIONS,
    ApiKeyFile,
    ClientId,
    ClientSecretFile,
    ConnectionId,
    Exclusive,
    Given,
    Parameters,
    RequestId,
    Scopes,
    TokenExpires,
    TokenFile,
    Username,
    named_values,
)
from cli.connection_refusals import in_own_words, of_the_kind_there
from cli.connection_table import connection_table, connection_text
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Limit, Timeout
from cli.paging import show_list
from cli.panels import LEND
from cli.rendering import document, enum_text
from cli.session import Connection, Session, run

_CREATE_EXAMPLE = """Examples; secrets are never arguments, which other programs could read:

bulkhead connection create github --name build --token-file ~/github.token

bulkhead connection create openai --name chat --api-key-file - — asks for it, and does not show it

pass show github | bulkhead connection create github --name build --token-file -

For a grant that a person has to allow: bulkhead connection authorize"""
_LIST_EXAMPLE = """Examples:

bulkhead connection list

bulkhead connection list --state needs-reauthorization --json | jq -r '.connections[].name'"""
_GET_EXAMPLE = """Example: bulkhead connection get con_…"""
_UPDATE_EXAMPLE = """Examples:

bulkhead connection update con_… --token-file - — counts from the next vend on

bulkhead connection update con_… --name build --shared"""
_DELETE_EXAMPLE = """Example: bulkhead connection delete con_…"""
# Revoking at the provider comes first, and it may be slow.
_DELETE_SECONDS = 60.0
# Of what asks the provider before it answers.
_PROVIDER_SECONDS = 30.0


class State(StrEnum):
    """A state of a connection."""

    AUTHORIZING = "authorizing"
    ACTIVE = "active"
    NEEDS_REAUTHORIZATION = "needs-reauthorization"
    DELETING = "deleting"


def register(app: typer.Typer) -> None:
    """Adds `connection` to the command line."""
    connections = typer.Typer(
        no_args_is_help=True,
        help="Keep the tenant's grants at outside providers: tokens, API keys, OAuth.",
    )
    connections.command("create", epilog=_CREATE_EXAMPLE)(create)
    authorizations.register(connections)
    connections.command("list", epilog=_LIST_EXAMPLE)(list_all)
    connections.command("get", epilog=_GET_EXAMPLE)(get)
    connections.command("update", epilog=_UPDATE_EXAMPLE)(update)
    connections.command("delete", epilog=_DELETE_EXAMPLE)(delete)
    tracing.register(connections)
    app.add_typer(connections, name="connection", rich_help_panel=LEND)


def create(
    provider: Annotated[
        str, typer.Argument(metavar="PROVIDER", help="`github`, as `provider list` shows it.")
    ],
    name: Annotated[str, typer.Option("--name", help="What you call it, 1 to 63 characters.")],
    token_file: TokenFile = "",
    token_expires: TokenExpires = "",
    api_key_file: ApiKeyFile = "",
    username: Username = "",
    client_id: ClientId = "",
    client_secret_file: ClientSecretFile = "",
    scope: Scopes = None,
    parameter: Parameters = None,
    exclusive: Exclusive = False,
    request_id: RequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = _PROVIDER_SECONDS,
) -> None:
    """Keep a token, an API key or an OAuth client that you have already.

    It is kept encrypted, and vended to those deployments alone that it is lent
    to.
    """
    given = Given(
        token_file, token_expires, api_key_file, username, client_id, client_secret_file,
        scope or [],
    )  # fmt: skip
    parameters = named_values(parameter or [])
    credential = given.credential()
    if not credential:
        raise typer.BadParameter(
            "give --token-file, --api-key-file, or --client-id with --client-secret-file; for a "
            f"grant that a person has to allow: bulkhead connection authorize {provider}"
        )
    request = pb.CreateConnectionRequest(
        request_id=request_id or str(uuid.uuid4()),
        provider=provider,
        name=name,
        exclusive=exclusive,
        parameters=parameters,
        **credential,
    )

    async def command(session: Session) -> None:
        async with in_own_words(session, provider):
            connection = (await session.credentials.CreateConnection(request)).connection
        session.show(document(connection), connection_text(connection))
        session.tell(f"Next: bulkhead binding create dep_… {connection.connection_id}")

    run(Connection(api, key_file, timeout, as_json), command, AS_OPTIONS)


def list_all(
    state: Annotated[
        State | None, typer.Option("--state", help="Only those.", show_default=False)
    ] = None,
    limit: Limit = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """List the tenant's connections, newest first; never a secret."""
    wanted = state.name if state else "UNSPECIFIED"
    request = pb.ListConnectionsRequest(
        state=pb.ConnectionState.Value(f"CONNECTION_STATE_{wanted}")
    )

    def text(connections: list[pb.Connection]) -> str:
        if connections:
            return connection_table(connections)
        return "no such connections" if state else f"no connections yet; make one: {_FIRST}"

    async def command(session: Session) -> None:
        async def ask(size: int, token: str) -> pb.ListConnectionsResponse:
            request.page_size, request.page_token = size, token
            return await session.credentials.ListConnections(request)

        await show_list(session, "connections", ask, limit, text)

    run(Connection(api, key_file, timeout, as_json), command, AS_OPTIONS)


_FIRST = "bulkhead connection create github --name build --token-file -"


def get(
    connection_id: ConnectionId,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Show one connection, without its secrets."""
    request = pb.GetConnectionRequest(connection_id=connection_id)

    async def command(session: Session) -> None:
        connection = (await session.credentials.GetConnection(request)).connection
        session.show(document(connection), connection_text(connection))

    run(Connection(api, key_file, timeout, as_json), command, AS_OPTIONS)


def update(
    connection_id: ConnectionId,
    name: Annotated[
        str | None, typer.Option("--name", help="Call it so from now on.", show_default=False)
    ] = None,
    exclusive: Annotated[
        bool | None,
        typer.Option(
            "--exclusive/--shared",
            help="Whether it serves one deployment at a time, or several.",
            show_default=False,
        ),
    ] = None,
    token_file: TokenFile = "",
    token_expires: TokenExpires = "",
    api_key_file: ApiKeyFile = "",
    username: Username = "",
    client_id: ClientId = "",
    client_secret_file: ClientSecretFile = "",
    scope: Scopes = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = _PROVIDER_SECONDS,
) -> None:
    """Change what is given; a new secret counts from the next vend on.

    A new credential must be of the kind that the connection has.
    """
    given = Given(
        token_file, token_expires, api_key_file, username, client_id, client_secret_file,
        scope or [],
    )  # fmt: skip
    credential = given.credential()
    if not credential and name is None and exclusive is None:
        raise typer.BadParameter("say what to change; --help lists what can be")
    request = pb.UpdateConnectionRequest(
        connection_id=connection_id, name=name, exclusive=exclusive, **credential
    )

    async def command(session: Session) -> None:
        async with of_the_kind_there(session, connection_id):
            connection = (await session.credentials.UpdateConnection(request)).connection
        session.show(document(connection), connection_text(connection))

    run(Connection(api, key_file, timeout, as_json), command, AS_OPTIONS)


def delete(
    connection_id: ConnectionId,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = _DELETE_SECONDS,
) -> None:
    """Withdraw the grant at the provider, end its bindings and keys, and erase what was kept.

    Where the provider withdraws nothing by request, what a person has to do there
    is printed. Repeating it goes on where it was.
    """
    request = pb.DeleteConnectionRequest(connection_id=connection_id)

    async def command(session: Session) -> None:
        answer = await session.credentials.DeleteConnection(request)
        session.show({"connection_id": connection_id, **document(answer)}, _deleted(answer))

    def _deleted(answer: pb.DeleteConnectionResponse) -> str:
        what = enum_text(pb.Revocation.Name(answer.revocation), "REVOCATION_")
        lines = [
            f"{connection_id} is deleted; bindings ended: {answer.bindings_ended}",
            f"at the provider: {_AT_THE_PROVIDER.get(answer.revocation, what)}",
        ]
        return "\n".join([*lines, *([answer.advice] if answer.advice else [])])

    run(Connection(api, key_file, timeout, as_json), command, AS_OPTIONS)


_AT_THE_PROVIDER = {
    pb.REVOCATION_REVOKED: "the grant is withdrawn",
    pb.REVOCATION_NOTHING: "there was nothing to withdraw",
    pb.REVOCATION_UNSUPPORTED: "not withdrawn, since it withdraws nothing by request",
    pb.REVOCATION_FAILED: "not withdrawn: it refused, or could not be reached",
}
