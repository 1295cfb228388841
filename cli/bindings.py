"""The commands `bulkhead binding …`."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated

import typer
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.connection_refusals import alias_named, checked_id
from cli.connection_table import how_to_ask_anew
from cli.fitting import fitted, scopes_text, short_id
from cli.moments import future
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Limit, Timeout
from cli.paging import show_list
from cli.panels import LEND
from cli.rendering import document, enum_text, fields, minute_text, time_text
from cli.session import Connection, Session, run

_CREATE_EXAMPLE = """Examples:

bulkhead binding create dep_… con_… — under the provider's name

bulkhead binding create dep_… con_… --alias deploys --scope repo --expires 30d

bulkhead binding create dep_… con_… --alias deploys --replace — swaps what the alias means"""
_LIST_EXAMPLE = """Examples:

bulkhead binding list --deployment dep_…

bulkhead binding list --connection con_… --json | jq -r '.bindings[].deployment_id'"""
_DELETE_EXAMPLE = """Example: bulkhead binding delete bnd_…"""
# What refusals call what is taken by its place, and the ceiling.
_BY_PLACE = MappingProxyType(
    {
        "deployment_id": "DEPLOYMENT",
        "connection_id": "CONNECTION",
        "binding_id": "ID",
        "alias": "--alias",
        "scope_ceiling": "--scope",
    }
)
_WRAPPED = MappingProxyType({"alias": 16, "expires": 11, "state": 15})
_MISSED_LEAST_FIRST = ("provider", "expires", "ceiling")
_FILTERS = MappingProxyType({"deployment_id": "--deployment", "connection_id": "--connection"})


def register(app: typer.Typer) -> None:
    """Adds `binding` to the command line."""
    bindings = typer.Typer(
        no_args_is_help=True, help="Lend connections to deployments, under an alias each."
    )
    bindings.command("create", epilog=_CREATE_EXAMPLE)(create)
    bindings.command("list", epilog=_LIST_EXAMPLE)(list_all)
    bindings.command("delete", epilog=_DELETE_EXAMPLE)(delete)
    app.add_typer(bindings, name="binding", rich_help_panel=LEND)


def create(
    deployment_id: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="To whom, `dep_…`.")],
    connection_id: Annotated[str, typer.Argument(metavar="CONNECTION", help="What, `con_…`.")],
    alias: Annotated[
        str,
        typer.Option(
            "--alias",
            metavar="NAME",
            help="By which the deployment asks for it: a letter, then a-z, 0-9, - and _. "
            "\\[default: the provider's name]",
            show_default=False,
        ),
    ] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="No token that can do more is vended along it; repeat for more. Without it: "
            "whatever the connection has.",
            show_default=False,
        ),
    ] = None,
    expires: Annotated[
        str,
        typer.Option(
            "--expires",
            metavar="TIME",
            help="When it ends by itself: 12h or 30d from now, or 2027-01-31T12:00:00Z.",
            show_default=False,
        ),
    ] = "",
    replace: Annotated[
        bool,
        typer.Option("--replace", help="If the alias is taken, it means this from now on."),
    ] = False,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Lend a connection to a deployment. The same once more changes nothing."""
    request = pb.BindConnectionRequest(
        deployment_id=checked_id(deployment_id, "dep"),
        connection_id=checked_id(connection_id, "con"),
        alias=alias,
        scope_ceiling=scope or [],
        expire_time=future(expires, "--expires") if expires else None,
        replace=replace,
    )

    async def command(session: Session) -> None:
        async with alias_named(alias):
            binding = (await session.credentials.BindConnection(request)).binding
        session.show(document(binding), _shown(binding))
        session.tell(_next(binding))

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def list_all(
    deployment: Annotated[
        str,
        typer.Option(
            "--deployment", metavar="ID", help="Only those of this deployment.", show_default=False
        ),
    ] = "",
    connection: Annotated[
        str,
        typer.Option(
            "--connection", metavar="ID", help="Only those of this connection.", show_default=False
        ),
    ] = "",
    limit: Limit = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """List bindings, newest first: the tenant's, or with a deployment's key its own."""
    request = pb.ListBindingsRequest(deployment_id=deployment, connection_id=connection)

    async def command(session: Session) -> None:
        async def ask(size: int, token: str) -> pb.ListBindingsResponse:
            request.page_size, request.page_token = size, token
            return await session.credentials.ListBindings(request)

        await show_list(session, "bindings", ask, limit, _listed)

    run(Connection(api, key_file, timeout, as_json), command, _FILTERS)


def delete(
    binding_id: Annotated[
        str, typer.Argument(metavar="ID", help="`bnd_…`, as `binding list` shows it.")
    ],
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """End a binding: the next vend heeds it. A token that was vended works on until it expires."""
    request = pb.UnbindConnectionRequest(binding_id=checked_id(binding_id, "bnd"))

    async def command(session: Session) -> None:
        await session.credentials.UnbindConnection(request)
        session.show({"binding_id": binding_id}, f"{binding_id} is ended")

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def _shown(binding: pb.Binding) -> str:
    return fields(
        {
            "binding": binding.binding_id,
            "deployment": binding.deployment_id,
            "connection": binding.connection_id,
            "alias": binding.alias,
            "provider": binding.provider,
            "ceiling": ", ".join(binding.scope_ceiling),
            "expires": time_text(binding.expire_time) if binding.HasField("expire_time") else "",
            "connection is": _state(binding),
        }
    )


def _next(binding: pb.Binding) -> str:
    vend = f"with a key of the deployment: bulkhead vend {binding.alias}"
    if binding.state == pb.CONNECTION_STATE_ACTIVE:
        return f"Next, {vend}"
    first = f"bulkhead connection get {binding.connection_id}"
    if binding.state == pb.CONNECTION_STATE_AUTHORIZING:
        first = how_to_ask_anew(binding.connection_id)
    return f"Next, for it is {_state(binding)}: {first}\nThen, {vend}"


def _listed(bindings: Sequence[pb.Binding]) -> str:
    if not bindings:
        return "no bindings; make one: bulkhead binding create dep_… con_…"
    columns = {
        "binding": [one.binding_id for one in bindings],
        "deployment": [short_id(one.deployment_id) for one in bindings],
        "alias": [one.alias for one in bindings],
        "provider": [one.provider for one in bindings],
        "ceiling": [scopes_text(one.scope_ceiling) for one in bindings],
        "expires": [_expires(one) for one in bindings],
        "state": [_state(one) for one in bindings],
    }
    return fitted(columns, _WRAPPED, _MISSED_LEAST_FIRST)


def _expires(binding: pb.Binding) -> str:
    return minute_text(binding.expire_time) if binding.HasField("expire_time") else ""


def _state(binding: pb.Binding) -> str:
    return enum_text(pb.ConnectionState.Name(binding.state), "CONNECTION_STATE_")
