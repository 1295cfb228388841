"""The commands `bulkhead tenant …`."""

import uuid
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb

from cli.deletions import certified, kept_token
from cli.options import (
    CALL_SECONDS,
    WAIT_SECONDS,
    Api,
    Json,
    KeyFile,
    NoWait,
    RequestId,
    Timeout,
    WaitSeconds,
)
from cli.panels import TENANT
from cli.private_files import write_private
from cli.rendering import document, enum_text, fields, time_text
from cli.session import Connection, Session, run

# Every replica of every service has to take note.
DELETE_SECONDS = 30.0


class Plan(StrEnum):
    """What a tenant pays for."""

    FREE = "free"
    PRO = "pro"
    SCALE = "scale"


PlanOption = Annotated[
    Plan,
    typer.Option(
        "--plan", help="free: 1,000 calls a month per deployment; pro and scale: no monthly limit."
    ),
]


def register(app: typer.Typer) -> None:
    """Adds `tenant` to the command line."""
    tenants = typer.Typer(
        no_args_is_help=True, help="Create a tenant; look at your own, or delete it."
    )
    tenants.command("create", epilog=_CREATE_EXAMPLE)(create)
    tenants.command("get", epilog=_GET_EXAMPLE)(get)
    tenants.command("delete", epilog=_DELETE_EXAMPLE)(delete)
    app.add_typer(tenants, name="tenant", rich_help_panel=TENANT)


_CREATE_EXAMPLE = """Example, with the operator's key:

bulkhead tenant create "Acme Corp" --plan pro --key-file .bulkhead/operator.key

bulkhead tenant create acme --json | jq -r .key"""
_GET_EXAMPLE = """Example: bulkhead tenant get --key-file acme.key"""
_DELETE_EXAMPLE = """Example: bulkhead tenant delete --yes --certificate acme.certificate"""


def create(
    name: Annotated[str, typer.Argument(help="What people call it; 1 to 100 characters.")],
    plan: PlanOption = Plan.FREE,
    request_id: RequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Create a tenant and its first key, with every scope. Needs the operator's key.

    The key is shown once: it is what the tenant administers itself with.
    """
    request = pb.CreateTenantRequest(
        request_id=request_id or str(uuid.uuid4()),
        name=name,
        plan=pb.Plan.Value(f"PLAN_{plan.name}"),
    )

    async def command(session: Session) -> None:
        tenant = await session.auth.CreateTenant(request)
        session.show(document(tenant), _created(tenant))
        session.tell("Keep the key now: it is not shown again.")

    run(Connection(api, key_file, timeout, as_json), command)


def get(
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Show the tenant that the key belongs to."""

    async def command(session: Session) -> None:
        tenant = (await session.auth.GetTenant(pb.GetTenantRequest())).tenant
        session.show(document(tenant), _shown(tenant))

    run(Connection(api, key_file, timeout, as_json), command)


def delete(
    yes: Annotated[
        bool, typer.Option("--yes", help="Needed: nothing of the tenant can be had back.")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Where what opens the certificate is kept, readable by you alone; written before "
            "anything is deleted. \\[default: TENANT.token, here]",
            show_default=False,
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", help="Write the certificate here."),
    ] = None,
    no_wait: NoWait = False,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = DELETE_SECONDS,
) -> None:
    """Delete the tenant of the key with all that is its, and wait for the certificate.

    Every key, session and host of it is dead at once, the presented key as
    well: what opens the certificate from then on is the token in the file.
    """
    if not yes:
        raise typer.BadParameter("everything of the tenant will be gone for good: say --yes")

    async def command(session: Session) -> None:
        tenant = (await session.auth.GetTenant(pb.GetTenantRequest())).tenant.tenant_id
        token = kept_token(token_file or Path(f"{tenant}.token"))
        request = provisioner_pb.DeleteTenantRequest(certificate_token=token)
        deleted = await session.provisioner.DeleteTenant(request)
        session.tell(f"every key, session and host of {tenant} is dead")
        shown = {"tenant_id": tenant, "operation": document(deleted.operation)}
        if no_wait:
            session.show(shown, f"{tenant} is going")
            return
        proof = (await certified(session, token, wait_seconds)).certificate
        if certificate is not None:
            write_private(certificate, proof)
        session.show({**shown, "certificate": proof}, f"{tenant} is deleted, and certified")

    run(Connection(api, key_file, timeout, as_json), command)


def _created(tenant: pb.CreateTenantResponse) -> str:
    return fields(
        {
            "tenant": tenant.tenant_id,
            "name": tenant.name,
            "plan": plan_text(tenant.plan),
            "key id": tenant.key_id,
            "key": tenant.key,
        }
    )


def _shown(tenant: pb.Tenant) -> str:
    return fields(
        {
            "tenant": tenant.tenant_id,
            "name": tenant.name,
            "plan": plan_text(tenant.plan),
            "created": time_text(tenant.create_time),
        }
    )


def plan_text(plan: pb.Plan.ValueType) -> str:
    """Returns `free`, `pro` or `scale`."""
    return enum_text(pb.Plan.Name(plan), "PLAN_")
