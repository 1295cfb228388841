"""The command `bulkhead deployment branch`, and what it shares with the restoring of backups."""

import uuid
from types import MappingProxyType
from typing import Annotated

import typer
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli.connection_refusals import checked_id
from cli.deployment_table import deployment_text, with_operation
from cli.operations import finished
from cli.options import (
    CALL_SECONDS,
    WAIT_SECONDS,
    Api,
    Json,
    KeyFile,
    NoWait,
    Timeout,
    WaitSeconds,
    WorkRequestId,
)
from cli.rendering import document
from cli.session import Connection, Session, run

_BRANCH_EXAMPLE = """Examples:

bulkhead deployment branch dep_… notes-next --mcp

bulkhead deployment branch dep_… try --json | jq -r .deployment_id"""
_BY_PLACE = MappingProxyType({"deployment_id": "SOURCE", "name": "NAME"})

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Of the new one; its host name begins with it.")
]
Mcp = Annotated[bool, typer.Option("--mcp", help="Serve MCP at /mcp of its host.")]
# What the calls answer with that make a deployment.
Made = pb.CreateDeploymentResponse | pb.CreateBranchResponse | pb.RestoreBackupResponse


def add(deployments: typer.Typer) -> None:
    """Adds it to `deployment`."""
    deployments.command("branch", epilog=_BRANCH_EXAMPLE)(branch)


def branch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Whose database is copied, `dep_…`.")
    ],
    name: Name,
    mcp: Mcp = False,
    no_wait: NoWait = False,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    request_id: WorkRequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Make a new deployment whose database is a copy of another's, as it is at one moment.

    The other is in use meanwhile. The copy has the database alone, with a host
    and passwords of its own: no bucket, secrets or administrator, no keys, and
    nothing that was lent to the other.
    """
    request = pb.CreateBranchRequest(
        request_id=request_id or str(uuid.uuid4()),
        deployment_id=checked_id(source, "dep"),
        name=name,
        mcp=mcp,
    )

    async def command(session: Session) -> None:
        made = await session.provisioner.CreateBranch(request)
        await show_made(session, made, None if no_wait else wait_seconds)

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


async def show_made(session: Session, made: Made, seconds: float | None) -> None:
    """Shows a deployment that was asked for, once it is ready; None: as it is now.

    Raises:
        Refusal: it could not be made, or is not ready after so many seconds.
    """
    deployment, operation = made.deployment, made.operation
    if seconds is not None:
        operation = await finished(session, operation, seconds, _absent(deployment))
        request = pb.GetDeploymentRequest(deployment_id=deployment.deployment_id)
        deployment = (await session.provisioner.GetDeployment(request)).deployment
    session.show(with_operation(document(deployment), operation), deployment_text(deployment))
    session.tell(f"Next: bulkhead key issue --deployment {deployment.deployment_id}")


def _absent(deployment: pb.Deployment) -> frozenset[str]:
    """Returns the steps that make what the deployment does not have."""
    parts = {"database": deployment.database, "bucket": deployment.bucket}
    return frozenset(step for step, has in parts.items() if not has)
