"""The command `bulkhead plan change`."""

from typing import Annotated

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.effect import effect_lines
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Timeout
from cli.panels import TENANT
from cli.rendering import document
from cli.session import Connection, Session, run
from cli.tenants import Plan, plan_text

_CHANGE_EXAMPLE = """Example, with a support key that has the scope plan:write:

bulkhead plan change pro --key-file support.key"""


def register(app: typer.Typer) -> None:
    """Adds `plan` to the command line."""
    plans = typer.Typer(no_args_is_help=True, help="Change what a tenant pays for.")
    # Kept as a group of one, so that it reads like the other commands.
    plans.callback()(_group)
    plans.command("change", epilog=_CHANGE_EXAMPLE)(change)
    app.add_typer(plans, name="plan", rich_help_panel=TENANT)


def _group() -> None:
    """Change what a tenant pays for."""


def change(
    plan: Annotated[Plan, typer.Argument(help="What the tenant pays for from now on.")],
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Move the key's tenant to another plan. When this returns, every replica counts by it.

    Needs a support key with the scope plan:write: a tenant does not choose what
    it pays. Get one with `bulkhead support-key issue --scope plan:write`.
    """
    request = pb.ChangePlanRequest(plan=pb.Plan.Value(f"PLAN_{plan.name}"))

    async def command(session: Session) -> None:
        answer = await session.auth.ChangePlan(request)
        text = f"{answer.tenant.tenant_id} is on the plan {plan_text(answer.tenant.plan)}"
        session.show(document(answer), "\n".join([text, *effect_lines(answer.effect)]))

    run(Connection(api, key_file, timeout, as_json), command)
