"""The command `bulkhead vend`."""

import sys
from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated

import typer
from bulkhead.common.v1.error_reason_pb2 import ErrorReason
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.options import Api, Json, KeyFile, Timeout
from cli.panels import LEND
from cli.refusal import Refusal
from cli.rendering import document, table, time_text
from cli.session import REFUSED, Connection, Session, run

_EXAMPLE = """Examples, with a deployment's key in BULKHEAD_KEY:

bulkhead vend github slack — what was bound under these aliases

bulkhead vend github --header | curl -H @- https://api.github.com/user

bulkhead vend --provider github --purpose "nightly build" --json | jq -r '.results[0].token.token'

With a connection's key no alias is needed: bulkhead vend"""
# A provider may have to be asked for a fresh token first.
_VEND_SECONDS = 30.0
# The end of a token tells which it is; of a short one it would tell too much.
_LEAST_LENGTH, _TAIL = 20, 4
_AS_OPTIONS = MappingProxyType(
    {
        "items": "ALIAS",
        "items.alias": "ALIAS",
        "items.provider": "--provider",
        "items.purpose": "--purpose",
    }
)
_Asked = tuple[pb.VendItem, pb.VendResult]


def register(app: typer.Typer) -> None:
    """Adds `vend` to the command line."""
    app.command("vend", epilog=_EXAMPLE, rich_help_panel=LEND)(vend)


def vend(
    aliases: Annotated[
        list[str] | None,
        typer.Argument(metavar="ALIAS", help="What the bindings are called.", show_default=False),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            "--provider",
            metavar="NAME",
            help="The one binding to this provider, whatever its alias; repeat for more.",
            show_default=False,
        ),
    ] = None,
    purpose: Annotated[
        str,
        typer.Option(
            "--purpose",
            metavar="TEXT",
            help="What for; the tenant reads it in its audit log.",
            show_default=False,
        ),
    ] = "",
    show_token: Annotated[
        bool, typer.Option("--show-token", help="Print tokens whole instead of masked.")
    ] = False,
    header: Annotated[
        bool,
        typer.Option(
            "--header", help="Print the headers to send, a `Name: value` line each, for curl -H @-."
        ),
    ] = False,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = _VEND_SECONDS,
) -> None:
    """Get access tokens, with the key of a deployment or of a connection.

    Each is written to the tenant's audit log before it is handed out. Tokens are
    masked, unless --show-token, --header or --json asks for them. What is refused
    is told on stderr, and the exit code is 1.
    """
    items = _items(aliases or [], provider or [], purpose)
    if header and (as_json or len(items) > 1):
        raise typer.BadParameter("--header is for one alias, and not together with --json")

    async def command(session: Session) -> None:
        answer = await session.credentials.Vend(pb.VendRequest(items=items))
        asked = list(zip(items, answer.results, strict=True))
        refused = [(item, result) for item, result in asked if result.HasField("refusal")]
        tokens = [result.token for _, result in asked if result.HasField("token")]
        if header:
            _print_headers(tokens)
        elif as_json or tokens:
            session.show(document(answer), _token_table(tokens, whole=show_token))
        if refused:
            print(_refusal_table(refused), file=sys.stderr)
            raise typer.Exit(REFUSED)

    run(Connection(api, key_file, timeout, as_json), command, _AS_OPTIONS)


def _items(aliases: Sequence[str], providers: Sequence[str], purpose: str) -> list[pb.VendItem]:
    named = [pb.VendItem(alias=alias, purpose=purpose) for alias in aliases]
    named += [pb.VendItem(provider=provider, purpose=purpose) for provider in providers]
    # What a connection's key is for needs no name.
    return named or [pb.VendItem(purpose=purpose)]


def _print_headers(tokens: Sequence[pb.VendedToken]) -> None:
    for token in tokens:
        if not token.headers:
            raise Refusal(
                "FAILED_PRECONDITION",
                "NO_HEADER",
                f"{token.provider} takes the credential in the query: see --json",
            )
        for name in sorted(token.headers):
            print(f"{name}: {token.headers[name]}")


def _token_table(tokens: Sequence[pb.VendedToken], *, whole: bool) -> str:
    header = ("alias", "provider", "type", "scopes", "expires", "token")
    rows = [
        (
            token.alias or token.connection_id,
            token.provider,
            token.token_type,
            ",".join(token.scopes) or "-",
            time_text(token.expire_time) if token.HasField("expire_time") else "-",
            token.token if whole else _masked(token.token),
        )
        for token in tokens
    ]
    return table(header, rows)


def _masked(token: str) -> str:
    return f"…{token[-_TAIL:]}" if len(token) >= _LEAST_LENGTH else "…"


def _refusal_table(refused: Sequence[_Asked]) -> str:
    header = ("refused", "reason", "try again in", "message")
    rows = [
        (
            item.alias or item.provider or "-",
            ErrorReason.Name(result.refusal.reason).removeprefix("ERROR_REASON_"),
            _again(result.refusal),
            result.refusal.message,
        )
        for item, result in refused
    ]
    return table(header, rows)


def _again(refusal: pb.VendRefusal) -> str:
    if not refusal.HasField("retry_after"):
        return "-"
    return f"{refusal.retry_after.ToTimedelta().total_seconds():.3g} s"
