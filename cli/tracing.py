"""The command `bulkhead connection trace`: to whom a token that leaked was given."""

from collections.abc import Sequence
from typing import Annotated

import typer
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.fitting import fitted, short_id
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Limit, Timeout
from cli.paging import show_list
from cli.rendering import time_text
from cli.secret_input import STANDARD_INPUT, secret
from cli.session import Connection, Session, run

_EXAMPLE = """Examples; the token is no argument, which other programs could read:

bulkhead connection trace — asks for it, and does not show it

bulkhead connection trace --token-file leaked.txt --json | jq -r '.events[].key_id'"""


def register(connections: typer.Typer) -> None:
    """Adds `trace` to `bulkhead connection`."""
    connections.command("trace", epilog=_EXAMPLE)(trace)


def trace(
    token_file: Annotated[
        str,
        typer.Option(
            "--token-file", metavar="FILE", help="Holds the token; - reads standard input."
        ),
    ] = STANDARD_INPUT,
    limit: Limit = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Find the vends that handed out a token, newest first: when, to which key, what for.

    The audit log knows a token by a fingerprint that only Bulkhead can make of
    it.
    """
    asked = pb.FingerprintTokenRequest(token=secret(token_file, "Token", "--token-file"))

    async def command(session: Session) -> None:
        fingerprint = (await session.credentials.FingerprintToken(asked)).token_fingerprint
        request = auth_pb.ListAuditEventsRequest(resource_id=fingerprint)

        async def ask(size: int, token: str) -> auth_pb.ListAuditEventsResponse:
            request.page_size, request.page_token = size, token
            return await session.auth.ListAuditEvents(request)

        def text(events: list[auth_pb.AuditEvent]) -> str:
            return _vends(events) if events else "no vend handed out this token"

        session.tell(f"In the audit log it is {fingerprint}.")
        await show_list(
            session, "events", ask, limit, text, known={"token_fingerprint": fingerprint}
        )

    run(Connection(api, key_file, timeout, as_json), command)


def _vends(events: Sequence[auth_pb.AuditEvent]) -> str:
    """Returns the vends as a table."""
    columns = {
        "no.": [str(event.sequence) for event in events],
        "time": [time_text(event.time) for event in events],
        "key id": [event.key_id for event in events],
        "deployment": [short_id(event.resources.get("deployment", "")) for event in events],
        "connection": [short_id(event.resources.get("connection", "")) for event in events],
        "purpose": [event.reason for event in events],
    }
    return fitted(columns, {"purpose": 14}, ("connection", "no.", "deployment"))
