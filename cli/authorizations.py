"""The command `bulkhead connection authorize`: a person allows it, and the terminal waits."""

import uuid
from typing import Annotated

import typer
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.connection_options import (
    AS_OPTIONS,
    ClientId,
    ClientSecretFile,
    Exclusive,
    Parameters,
    RequestId,
    Scopes,
    named_values,
)
from cli.connection_refusals import in_own_words
from cli.connection_table import connection_text
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Timeout
from cli.rendering import document, fields, time_text
from cli.secret_input import secret
from cli.session import Connection, Session, run
from cli.waiting import Patience, allowed

_EXAMPLE = """Examples:

bulkhead connection authorize github --name team

bulkhead connection authorize slack --name chat --client-id 123.456 --client-secret-file -

bulkhead connection authorize --connection con_… — anew, for one whose grant is broken

bulkhead connection authorize notion --name wiki --no-wait --json | jq -r .authorization_url"""
# How long a person has, where the operator did not change it.
_PATIENCE_SECONDS = 900.0


def register(connections: typer.Typer) -> None:
    """Adds `authorize` to `bulkhead connection`."""
    connections.command("authorize", epilog=_EXAMPLE)(authorize)


def authorize(
    provider: Annotated[
        str,
        typer.Argument(
            metavar="PROVIDER", help="`github`, as `provider list` shows it.", show_default=False
        ),
    ] = "",
    name: Annotated[
        str,
        typer.Option("--name", help="What you call it, 1 to 63 characters.", show_default=False),
    ] = "",
    connection_id: Annotated[
        str,
        typer.Option(
            "--connection",
            metavar="ID",
            help="Authorize this one anew, instead of making another.",
            show_default=False,
        ),
    ] = "",
    scope: Scopes = None,
    client_id: ClientId = "",
    client_secret_file: ClientSecretFile = "",
    parameter: Parameters = None,
    exclusive: Exclusive = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the address and return at once.")
    ] = False,
    wait_seconds: Annotated[
        float,
        typer.Option("--wait-seconds", min=0.1, metavar="SECONDS", help="How long to wait."),
    ] = _PATIENCE_SECONDS,
    request_id: RequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Ask a person to allow it (OAuth): prints an address for their browser, and waits for them.

    The address is a secret that works once: give it only to whom you mean.
    Without --client-id the operator's OAuth client is used, where there is one;
    `provider list` shows where. There is nothing to wait for with a connection
    that works: it works on until the person has allowed it.
    """
    _check(provider, name, connection_id, client_id, client_secret_file)
    request = pb.StartAuthorizationRequest(
        request_id=request_id or str(uuid.uuid4()),
        connection_id=connection_id,
        provider=provider,
        name=name,
        exclusive=exclusive,
        parameters=named_values(parameter or []),
        scopes=scope or [],
        client_id=client_id,
        client_secret=_client_secret(client_secret_file),
    )

    async def command(session: Session) -> None:
        async with in_own_words(session, provider):
            started = await session.credentials.StartAuthorization(request)
        before = started.connection
        if no_wait or before.state == pb.CONNECTION_STATE_ACTIVE:
            session.show(document(started), _started(started))
            if not no_wait:
                session.tell(f"It works on until then: bulkhead connection get {connection_id}")
            return
        session.tell(_invitation(started))
        connection = await allowed(session, started, Patience(wait_seconds))
        session.show(document(connection), connection_text(connection))
        if not connection_id:
            session.tell(f"Next: bulkhead binding create dep_… {connection.connection_id}")

    options = {**AS_OPTIONS, "connection_id": "--connection"}
    run(Connection(api, key_file, timeout, as_json), command, options)


def _check(
    provider: str, name: str, connection_id: str, client_id: str, client_secret_file: str
) -> None:
    if connection_id and (provider or name):
        raise typer.BadParameter("--connection keeps its provider and name: leave them out")
    if not connection_id and not (provider and name):
        raise typer.BadParameter("give PROVIDER and --name, or --connection for one that is there")
    if client_secret_file and not client_id:
        raise typer.BadParameter("--client-secret-file needs --client-id")


def _client_secret(file: str) -> str:
    return secret(file, "Client secret", "--client-secret-file") if file else ""


def _started(started: pb.StartAuthorizationResponse) -> str:
    return fields(
        {
            "connection": started.connection.connection_id,
            "open this": started.authorization_url,
            "until": time_text(started.expire_time),
        }
    )


def _invitation(started: pb.StartAuthorizationResponse) -> str:
    until = time_text(started.expire_time)
    return "\n".join(
        [
            "Open this in the browser of the person who is to allow it:",
            started.authorization_url,
            f"… waiting for them; it works until {until}. Ctrl-C ends the waiting, nothing else",
        ]
    )
