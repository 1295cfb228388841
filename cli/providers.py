"""The command `bulkhead provider list`."""

from collections.abc import Sequence

import typer
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.connection_options import kind_text
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Timeout
from cli.panels import LEND
from cli.rendering import document, table
from cli.session import Connection, Session, run

_LIST_EXAMPLE = """Examples:

bulkhead provider list

bulkhead provider list --json | jq '.providers[] | select(.name == "github")'"""


def register(app: typer.Typer) -> None:
    """Adds `provider` to the command line."""
    providers = typer.Typer(
        no_args_is_help=True, help="See to which providers connections can be made."
    )
    # Kept as a group of one, so that it reads like the other commands.
    providers.callback()(_group)
    providers.command("list", epilog=_LIST_EXAMPLE)(list_all)
    app.add_typer(providers, name="provider", rich_help_panel=LEND)


def _group() -> None:
    """See to which providers connections can be made."""


def list_all(
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """List the providers: how connections are made, and what each must say beside.

    Where the operator has an OAuth client, `connection authorize` needs none of
    your own. --json also says default scopes, where each is documented and where its API begins.
    """

    async def command(session: Session) -> None:
        answer = await session.credentials.ListProviders(pb.ListProvidersRequest())
        session.show(document(answer), _listed(answer.providers))

    run(Connection(api, key_file, timeout, as_json), command)


def _listed(providers: Sequence[pb.Provider]) -> str:
    header = ("provider", "title", "connections by", "parameters", "operator's client")
    return table(header, [_row(one) for one in providers]) if providers else "no providers"


def _row(provider: pb.Provider) -> tuple[str, ...]:
    return (
        provider.name,
        provider.title,
        ", ".join(map(kind_text, provider.kinds)),
        ", ".join(provider.parameters) or "-",
        "yes" if provider.operator_client else "-",
    )
