"""What a deployment's own program needs: `bulkhead deployment environment`, `admin-password`."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated

import grpc
import typer
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli.connection_refusals import checked_id
from cli.fitting import cut
from cli.masks import masked_secret, masked_url
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Timeout
from cli.refusal import Refusal, refusal_of
from cli.rendering import document, fields, table
from cli.session import Connection, Session, run

_ENVIRONMENT_EXAMPLE = """Examples, with the deployment's own key in BULKHEAD_KEY, which was issued
with --scope environment:read (and db:write, for the database's URLs):

bulkhead deployment environment — names, and values masked

eval "$(bulkhead deployment environment --export)" — sets them in this shell

bulkhead deployment environment --json | jq -r '.variables[].name'"""
_ADMIN_EXAMPLE = """Example: bulkhead deployment admin-password dep_…"""
_BY_PLACE = MappingProxyType({"deployment_id": "ID"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# Of these the value tells nothing that its reader must not know.
_OPEN = frozenset(
    f"BULKHEAD_{name}"
    for name in (
        "ADMIN_USER",
        "BUCKET_ACCESS_KEY",
        "BUCKET_ENDPOINT",
        "BUCKET_NAME",
        "BUCKET_REGION",
        "DEPLOYMENT_ID",
        "HOST",
    )
)
_URLS = frozenset({"BULKHEAD_DATABASE_URL", "BULKHEAD_DATABASE_READER_URL"})
_VALUE_WIDTH = 46
# With which a key that is good elsewhere is refused.
_OTHER_KEY = frozenset({"KEY_KIND_REFUSED", "SCOPE_MISSING"})
_ISSUE = (
    "the tenant issues one that can: bulkhead key issue --deployment dep_…"
    " --scope environment:read --scope db:write"
)


def add(deployments: typer.Typer) -> None:
    """Adds them to `deployment`."""
    deployments.command("environment", epilog=_ENVIRONMENT_EXAMPLE)(environment)
    deployments.command("admin-password", epilog=_ADMIN_EXAMPLE)(admin_password)


def environment(
    export: Annotated[
        bool,
        typer.Option("--export", help="Print `export NAME=…` lines with whole values, for eval."),
    ] = False,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Show the environment of a deployment's own program: its secrets, database and bucket.

    The deployment's own key alone opens it, and only with the scope
    environment:read. Values are masked, unless --export or --json asks for them.
    """
    if export and as_json:
        raise typer.BadParameter("--export and --json are two ways to print: choose one")

    async def command(session: Session) -> None:
        answer = await _environment(session)
        text = _exports(answer.variables) if export else _masked(answer.variables)
        session.show(document(answer), text)

    run(Connection(api, key_file, timeout, as_json), command)


def admin_password(
    deployment_id: Annotated[
        str, typer.Argument(metavar="ID", help="`dep_…`, made with --bootstrap-admin.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Show it without asking.")] = False,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Show the first administrator's password: this once, and to nobody ever again.

    The deployment's own program has its hash in its environment.
    """
    request = pb.RevealBootstrapAdminRequest(deployment_id=checked_id(deployment_id, "dep"))
    if not yes:
        typer.confirm(
            "The password is shown this once, and nobody can show it again. Show it now?",
            abort=True,
            err=True,
        )

    async def command(session: Session) -> None:
        shown = await session.provisioner.RevealBootstrapAdmin(request)
        session.show(document(shown), fields({"user": shown.user, "password": shown.password}))
        session.tell("Keep it now: it is not shown again.")

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


async def _environment(session: Session) -> pb.GetEnvironmentResponse:
    try:
        return await session.provisioner.GetEnvironment(pb.GetEnvironmentRequest())
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error, "")
        if refusal.reason in _OTHER_KEY:
            raise replace(refusal, message=f"{refusal.message}; {_ISSUE}") from error
        raise


def _exports(variables: Sequence[pb.EnvironmentVariable]) -> str:
    """Returns lines for a shell to run, which sets what they name and runs nothing else.

    Raises:
        Refusal: a name is none that a shell could set.
    """
    for each in variables:
        if _NAME.fullmatch(each.name) is None:
            raise Refusal(
                "FAILED_PRECONDITION", "BAD_NAME", f"{each.name!r} is no name of a variable"
            )
    return "\n".join(f"export {each.name}={shlex.quote(each.value)}" for each in variables)


def _masked(variables: Sequence[pb.EnvironmentVariable]) -> str:
    rows = [(each.name, cut(_shown(each), _VALUE_WIDTH)) for each in variables]
    return table(("name", "value"), rows)


def _shown(variable: pb.EnvironmentVariable) -> str:
    if variable.name in _OPEN:
        return variable.value
    if variable.name in _URLS:
        return masked_url(variable.value)
    return masked_secret(variable.value)
