"""The command `bulkhead vend`."""

import sys
import textwrap
from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Any

import grpc
import typer
from bulkhead.common.v1.error_reason_pb2 import ErrorReason
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.fitting import WIDTH, fitted, scopes_text
from cli.masks import masked_secret
from cli.options import Api, KeyFile, Timeout
from cli.panels import LEND
from cli.refusal import Refusal, refusal_of
from cli.rendering import document, table, time_text
from cli.session import REFUSED, Connection, Session, run

_EXAMPLE = """Examples, with a deployment's key in BULKHEAD_KEY:

bulkhead vend github slack — what was bound under these aliases

bulkhead vend github --header | curl -H @- https://api.github.com/user

bulkhead vend --provider github --purpose "nightly build" --json | jq -r '.results[0].token.token'

With a connection's key no alias is needed: bulkhead vend"""
# A provider may have to be asked for a fresh token first.
_VEND_SECONDS = 30.0
_AS_OPTIONS = MappingProxyType(
    {
        "items": "ALIAS",
        "items.alias": "ALIAS",
        "items.provider": "--provider",
        "items.purpose": "--purpose",
    }
)
_INDENT = "  "
_COMMAND = ": bulkhead "
_WRAPPED = MappingProxyType({"alias": 20, "expires": 10})
_MISSED_LEAST_FIRST = ("type", "provider", "scopes")
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
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help='Print {"results": [{"alias", "provider", and "token" or "refusal"}, …]}, in the '
            'order asked; what is refused as a whole prints {"error": …}.',
        ),
    ] = False,
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
        answer = await _vended(session, items)
        asked = list(zip(items, answer.results, strict=True))
        refused = [(item, result) for item, result in asked if result.HasField("refusal")]
        tokens = [result.token for _, result in asked if result.HasField("token")]
        if header:
            _print_headers(tokens)
        elif as_json or tokens:
            shown = {"results": [_result(*one) for one in asked]}
            session.show(shown, _token_table(tokens, whole=show_token))
        if refused:
            print(_refusals(refused), file=sys.stderr)
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
    names = [token.alias or token.connection_id for token in tokens]
    columns = {
        "alias": names,
        "provider": [token.provider for token in tokens],
        "type": [token.token_type for token in tokens],
        "scopes": [scopes_text(token.scopes) for token in tokens],
        "expires": [_expires(token) for token in tokens],
        "token": [masked_secret(token.token) for token in tokens],
    }
    if not whole:
        return fitted(columns, _WRAPPED, _MISSED_LEAST_FIRST)
    del columns["token"]
    tokens_whole = [(name, token.token) for name, token in zip(names, tokens, strict=True)]
    described = fitted(columns, _WRAPPED, _MISSED_LEAST_FIRST)
    return f"{described}\n\n{table(('alias', 'token'), tokens_whole)}"


def _expires(token: pb.VendedToken) -> str:
    return time_text(token.expire_time) if token.HasField("expire_time") else ""


async def _vended(session: Session, items: Sequence[pb.VendItem]) -> pb.VendResponse:
    try:
        answer: pb.VendResponse = await session.credentials.Vend(pb.VendRequest(items=items))
    except grpc.aio.AioRpcError as error:
        nameless = not any(item.alias or item.provider for item in items)
        if nameless and refusal_of(error, "").field_name.endswith(".alias"):
            raise typer.BadParameter(
                "say what: an ALIAS, or --provider; a connection's key alone needs neither"
            ) from error
        raise
    return answer


def _result(item: pb.VendItem, result: pb.VendResult) -> dict[str, Any]:
    """Returns the outcome for scripts, with what was asked for."""
    shown = {"alias": item.alias, "provider": item.provider, **document(result)}
    if result.HasField("refusal"):
        shown["refusal"]["reason"] = _reason(result.refusal)
    return shown


def _refusals(refused: Sequence[_Asked]) -> str:
    """Returns the refusals, each with its message below it."""
    return "\n".join(line for item, result in refused for line in _refusal(item, result.refusal))


def _refusal(item: pb.VendItem, refusal: pb.VendRefusal) -> list[str]:
    head = f"refused: {item.alias or item.provider or '-'}: {_reason(refusal)}{_again(refusal)}"
    # A command is to be copied: it stays in one line.
    what, _, command = refusal.message.partition(_COMMAND)
    lines = [*_wrapped(head, ""), *_wrapped(f"{what}:" if command else what, _INDENT)]
    return [*lines, f"{_INDENT}bulkhead {command}"] if command else lines


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _reason(refusal: pb.VendRefusal) -> str:
    return ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_")


def _again(refusal: pb.VendRefusal) -> str:
    if not refusal.HasField("retry_after"):
        return ""
    return f"; try again in {refusal.retry_after.ToTimedelta().total_seconds():.3g} s"
