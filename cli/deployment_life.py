"""The commands `bulkhead deployment …` that change a deployment while it lives."""

import uuid
from datetime import timedelta
from types import MappingProxyType
from typing import Annotated

import typer
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli.connection_refusals import checked_id
from cli.deployment_table import deployment_text, with_operation
from cli.moments import duration
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
from cli.patience import IdleTimeout, idle_timeout, span_text
from cli.rendering import document
from cli.session import Connection, Session, run
from cli.sizes import Storage, size

_UPDATE_EXAMPLE = """Examples:

bulkhead deployment update dep_… --storage 2GiB

bulkhead deployment update dep_… --idle-timeout never"""
_SUSPEND_EXAMPLE = """Example: bulkhead deployment suspend dep_…"""
_RESUME_EXAMPLE = """Example: bulkhead deployment resume dep_…"""
_WAKE_EXAMPLE = """Example: bulkhead deployment wake dep_…"""
_ROTATE_EXAMPLE = """Examples:

bulkhead deployment rotate dep_… --overlap 1m

bulkhead deployment rotate dep_… --overlap 0 — the passwords before end at once

bulkhead deployment rotate dep_… --no-wait — `deployment get` says when it is overlapping"""
# What refusals call what these commands take by its place.
_BY_PLACE = MappingProxyType(
    {
        "deployment_id": "ID",
        "storage_bytes": "--storage",
        "idle_timeout": "--idle-timeout",
        "overlap": "--overlap",
    }
)
_OVERLAP = "10m"
# Every replica of every service has to take note.
_SUSPEND_SECONDS = 30.0
# A start after a crash has to replay what was written.
_WAKE_SECONDS = 60.0

DeploymentId = Annotated[
    str, typer.Argument(metavar="ID", help="`dep_…`, as `deployment list` shows it.")
]


def add(deployments: typer.Typer) -> None:
    """Adds them to `deployment`."""
    deployments.command("update", epilog=_UPDATE_EXAMPLE)(update)
    deployments.command("suspend", epilog=_SUSPEND_EXAMPLE)(suspend)
    deployments.command("resume", epilog=_RESUME_EXAMPLE)(resume)
    deployments.command("wake", epilog=_WAKE_EXAMPLE)(wake)
    deployments.command("rotate", epilog=_ROTATE_EXAMPLE)(rotate)


def update(
    deployment_id: DeploymentId,
    storage: Storage = "",
    idle: IdleTimeout = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Change how much its database may hold, or after how long it sleeps.

    It holds when the command returns, and what is not named stays.
    """
    if not storage and not idle:
        raise typer.BadParameter("say what is to change: --storage or --idle-timeout")
    request = pb.UpdateDeploymentRequest(
        deployment_id=checked_id(deployment_id, "dep"),
        storage_bytes=size(storage, "--storage") if storage else None,
        idle_timeout=idle_timeout(idle),
    )

    async def command(session: Session) -> None:
        changed = (await session.provisioner.UpdateDeployment(request)).deployment
        session.show(document(changed), deployment_text(changed))

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def suspend(
    deployment_id: DeploymentId,
    no_wait: NoWait = False,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = _SUSPEND_SECONDS,
) -> None:
    """Suspend a deployment: its host answers 402, and nothing is lent to it.

    That holds at once, whether you wait or not; its database goes to sleep
    meanwhile. Nothing is lost, and `deployment resume` ends it.
    """
    request = pb.SuspendDeploymentRequest(deployment_id=checked_id(deployment_id, "dep"))

    async def command(session: Session) -> None:
        operation = (await session.provisioner.SuspendDeployment(request)).operation
        if not no_wait:
            operation = await finished(session, operation, wait_seconds)
        shown = with_operation({"deployment_id": deployment_id}, operation)
        session.show(shown, f"{deployment_id} is suspended")
        session.tell(f"To end it: bulkhead deployment resume {deployment_id}")

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def resume(
    deployment_id: DeploymentId,
    no_wait: NoWait = False,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """End a suspension; its database wakes when it is used."""
    request = pb.ResumeDeploymentRequest(deployment_id=checked_id(deployment_id, "dep"))

    async def command(session: Session) -> None:
        operation = (await session.provisioner.ResumeDeployment(request)).operation
        if not no_wait:
            operation = await finished(session, operation, wait_seconds)
        done = "comes back" if no_wait else "is back"
        shown = with_operation({"deployment_id": deployment_id}, operation)
        session.show(shown, f"{deployment_id} {done}")

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def wake(
    deployment_id: Annotated[
        str,
        typer.Argument(
            metavar="[ID]",
            help="`dep_…`; not needed with the deployment's own key.",
            show_default=False,
        ),
    ] = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = _WAKE_SECONDS,
) -> None:
    """Wake the database of a deployment, ahead of its first use.

    Whoever connects, by the door or by the connection string, wakes it as well.
    """
    request = pb.WakeDatabaseRequest(deployment_id=deployment_id)

    async def command(session: Session) -> None:
        await session.provisioner.WakeDatabase(request)
        session.show({"deployment_id": deployment_id}, "the database is awake")

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def rotate(
    deployment_id: DeploymentId,
    overlap: Annotated[
        str,
        typer.Option(
            "--overlap",
            metavar="DURATION",
            help="How long the passwords before work beside the new ones: 90s, 10m, up to 24h; 0 "
            "for not at all.",
        ),
    ] = _OVERLAP,
    no_wait: NoWait = False,
    wait_seconds: Annotated[
        float | None,
        typer.Option(
            "--wait-seconds",
            min=0.1,
            metavar="SECONDS",
            help=f"How long to wait at most. \\[default: {WAIT_SECONDS:g} beyond the overlap]",
            show_default=False,
        ),
    ] = None,
    request_id: WorkRequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Give the database new passwords, and wait until those before open nothing.

    The front door changes over by itself, and no query fails for it. Whoever
    holds a connection string fetches the new one within the overlap.
    """
    length = duration(overlap)
    span = length.ToTimedelta()
    request = pb.RotateDatabaseCredentialsRequest(
        request_id=request_id or str(uuid.uuid4()),
        deployment_id=checked_id(deployment_id, "dep"),
        overlap=length,
    )

    async def command(session: Session) -> None:
        operation = (await session.provisioner.RotateDatabaseCredentials(request)).operation
        if not no_wait:
            _tell_overlap(session, span, deployment_id)
            seconds = wait_seconds or span.total_seconds() + WAIT_SECONDS
            operation = await finished(session, operation, seconds)
        done = "gets new passwords" if no_wait else "has new passwords; those before open nothing"
        shown = with_operation({"deployment_id": deployment_id}, operation)
        session.show(shown, f"{deployment_id} {done}")

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def _tell_overlap(session: Session, overlap: timedelta, deployment_id: str) -> None:
    if overlap:
        session.tell(
            f"once it is overlapping, new ones are given out: bulkhead deployment connection"
            f" {deployment_id}\nthose before work for another {span_text(overlap)} then; Ctrl-C"
            " stops the waiting alone"
        )
