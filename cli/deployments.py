"""The commands `bulkhead deployment …`."""

import uuid
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli import deployment_copies, deployment_environment, deployment_life
from cli.confirmation import ask_at_terminal
from cli.deletions import certified
from cli.deployment_copies import show_made
from cli.deployment_table import deployment_table, deployment_text, with_operation
from cli.operations import finished
from cli.options import (
    CALL_SECONDS,
    WAIT_SECONDS,
    Api,
    Json,
    KeyFile,
    Limit,
    NoWait,
    Timeout,
    WaitSeconds,
    WorkRequestId,
)
from cli.paging import show_list
from cli.panels import TENANT
from cli.patience import IdleTimeout, idle_timeout
from cli.private_files import write_private
from cli.rendering import document
from cli.session import Connection, Session, run
from cli.sizes import Storage, size

DeploymentId = Annotated[
    str, typer.Argument(metavar="ID", help="`dep_…`, as `deployment list` shows it.")
]
OwnDeploymentId = Annotated[
    str,
    typer.Argument(
        metavar="[ID]",
        help="`dep_…`; not needed with the deployment's own key.",
        show_default=False,
    ),
]


# What refusals call what these commands take by its place.
_BY_PLACE = MappingProxyType({"deployment_id": "ID"})


class Role(StrEnum):
    """A role in the deployment's database."""

    READER = "reader"
    WRITER = "writer"


def register(app: typer.Typer) -> None:
    """Adds `deployment` to the command line."""
    deployments = typer.Typer(
        no_args_is_help=True,
        help="Make, look after and delete deployments; with --database, each on its own Postgres "
        "server.",
    )
    deployments.command("create", epilog=_CREATE_EXAMPLE)(create)
    deployments.command("list", epilog=_LIST_EXAMPLE)(list_all)
    deployments.command("get", epilog=_GET_EXAMPLE)(get)
    deployments.command("connection", epilog=_CONNECTION_EXAMPLE)(connection)
    for commands in (deployment_environment, deployment_life, deployment_copies):
        commands.add(deployments)
    deployments.command("delete", epilog=_DELETE_EXAMPLE)(delete)
    app.add_typer(deployments, name="deployment", rich_help_panel=TENANT)


_CREATE_EXAMPLE = """Examples:

bulkhead deployment create notes --mcp --database

bulkhead deployment create shop --database --storage 2GiB --bucket --bootstrap-admin

bulkhead deployment create notes --mcp --database --no-wait --json | jq -r .deployment_id"""
_LIST_EXAMPLE = """Example: bulkhead deployment list --limit 20"""
_GET_EXAMPLE = """Example: bulkhead deployment get dep_…"""
_CONNECTION_EXAMPLE = """Example: psql "$(bulkhead deployment connection dep_… --role writer)\""""
_DELETE_EXAMPLE = """Example: bulkhead deployment delete dep_…"""


def create(
    name: Annotated[str, typer.Argument(help="1 to 63 characters; the host name begins with it.")],
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Serve MCP at /mcp of its host. Needs --database.")
    ] = False,
    database: Annotated[
        bool, typer.Option("--database", help="Give it a Postgres server of its own.")
    ] = False,
    bucket: Annotated[
        bool, typer.Option("--bucket", help="Give it a bucket of its own, over S3.")
    ] = False,
    bootstrap_admin: Annotated[
        bool,
        typer.Option(
            "--bootstrap-admin",
            help="Make a first administrator for its program: `deployment admin-password` shows "
            "the password once.",
        ),
    ] = False,
    storage: Storage = "",
    idle: IdleTimeout = "",
    no_wait: NoWait = False,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    request_id: WorkRequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Create a deployment and wait until it is ready; each step is told on stderr."""
    request = pb.CreateDeploymentRequest(
        request_id=request_id or str(uuid.uuid4()),
        name=name,
        mcp=mcp,
        database=database,
        bucket=bucket,
        bootstrap_admin=bootstrap_admin,
        storage_bytes=size(storage, "--storage") if storage else 0,
        idle_timeout=idle_timeout(idle),
    )

    async def command(session: Session) -> None:
        created = await session.provisioner.CreateDeployment(request)
        await show_made(session, created, None if no_wait else wait_seconds)

    run(Connection(api, key_file, timeout, as_json), command)


def list_all(
    limit: Limit = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """List the tenant's deployments, newest first."""

    async def command(session: Session) -> None:
        async def ask(size: int, token: str) -> pb.ListDeploymentsResponse:
            request = pb.ListDeploymentsRequest(page_size=size, page_token=token)
            return await session.provisioner.ListDeployments(request)

        await show_list(session, "deployments", ask, limit, deployment_table)

    run(Connection(api, key_file, timeout, as_json), command)


def get(
    deployment_id: OwnDeploymentId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Show one deployment: what it is made of, how each part is, and what was done last."""

    async def command(session: Session) -> None:
        request = pb.GetDeploymentRequest(deployment_id=deployment_id)
        deployment = (await session.provisioner.GetDeployment(request)).deployment
        session.show(document(deployment), deployment_text(deployment))

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def connection(
    deployment_id: OwnDeploymentId = "",
    role: Annotated[
        Role,
        typer.Option("--role", help="reader: SELECT; writer: owns the tables, needs db:write."),
    ] = Role.READER,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Print how to reach the deployment's database: a postgresql:// URI with its password.

    Asking is written to the tenant's audit log.
    """
    request = pb.GetDatabaseConnectionRequest(
        deployment_id=deployment_id, role=pb.DatabaseRole.Value(f"DATABASE_ROLE_{role.name}")
    )

    async def command(session: Session) -> None:
        answer = await session.provisioner.GetDatabaseConnection(request)
        session.show(document(answer), answer.uri)

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def delete(
    deployment_id: DeploymentId,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", help="Write the proof of it here."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; it is asked at a terminal alone.")
    ] = False,
    no_wait: NoWait = False,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Delete a deployment with its data and its backups, and wait until nothing is left of it.

    Its keys and its host are dead at once, whether you wait or not. Repeated
    with --certificate, it writes the proof of a deletion that was begun before.
    """
    if no_wait and certificate is not None:
        raise typer.BadParameter("--certificate needs the end of it: leave --no-wait out")
    if not yes:
        ask_at_terminal(
            f"{deployment_id}: its database, bucket, secrets and backups will be gone for good."
            " Delete them?"
        )
    request = pb.DeleteDeploymentRequest(deployment_id=deployment_id)

    async def command(session: Session) -> None:
        deleted = await session.provisioner.DeleteDeployment(request)
        operation = deleted.operation
        if not no_wait:
            operation = await finished(session, operation, wait_seconds)
            if certificate is not None:
                see = f"bulkhead deployment delete {deployment_id} --certificate {certificate}"
                answer = await certified(session, deleted.certificate_token, wait_seconds, see)
                write_private(certificate, answer.certificate)
        done = "is going" if no_wait else "is deleted"
        shown = with_operation(
            {
                "deployment_id": operation.deployment_id,
                "certificate_token": deleted.certificate_token,
            },
            operation,
        )
        session.show(shown, f"{operation.deployment_id} {done}")

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)
