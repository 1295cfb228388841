"""The command `bulkhead provider list`."""

from collections.abc import Sequence
from types import MappingProxyType

import typer
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.connection_table import kind_text
from cli.fitting import fitted
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Timeout
from cli.panels import LEND
from cli.rendering import document
from cli.session import Connection, Session, run

# The first is wrapped first.
_WRAPPED = MappingProxyType({"title": 12, "connections by": 26, "parameters": 11})
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
    your own. --json also says default scopes, where each is documented and where
    its API begins.
    """

    async def command(session: Session) -> None:
        answer = await session.credentials.ListProviders(pb.ListProvidersRequest())
        session.show(document(answer), _listed(answer.providers))

    run(Connection(api, key_file, timeout, as_json), command)


def _listed(providers: Sequence[pb.Provider]) -> str:
    if not providers:
        return "no providers"
    columns = {
        "provider": [one.name for one in providers],
        "title": [one.title for one in providers],
        "connections by": [", ".join(map(kind_text, one.kinds)) for one in providers],
        "parameters": [", ".join(one.parameters) for one in providers],
        "operator's client": ["yes" if one.operator_client else "" for one in providers],
    }
    return fitted(columns, _WRAPPED, ("title",))
