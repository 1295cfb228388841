"""The command `bulkhead usage`."""

from typing import Annotated

import typer
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as pb

from cli.options import CALL_SECONDS, Api, Json, KeyFile, Timeout
from cli.panels import WATCH
from cli.rendering import document, fields, time_text
from cli.session import Connection, Session, run

_EXAMPLE = """Example: bulkhead usage --deployment dep_… --json | jq .remaining"""


def register(app: typer.Typer) -> None:
    """Adds `usage` to the command line."""
    app.command("usage", epilog=_EXAMPLE, rich_help_panel=WATCH)(usage)


def usage(
    deployment: Annotated[
        str,
        typer.Option(
            "--deployment", metavar="ID", help="Not needed with the deployment's own key."
        ),
    ] = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Show the calls of a deployment this month, and its limits. Asking costs no call."""

    async def command(session: Session) -> None:
        answer = await session.ratelimit.GetUsage(pb.GetUsageRequest(deployment_id=deployment))
        session.show(document(answer), _shown(answer))

    run(Connection(api, key_file, timeout, as_json), command)


def _shown(answer: pb.GetUsageResponse) -> str:
    limited = answer.HasField("limit")
    return fields(
        {
            "deployment": answer.deployment_id,
            "month": f"{answer.month} (UTC), ends {time_text(answer.reset_time)}",
            "used": f"{answer.used:,}" + (f" of {answer.limit:,}" if limited else ""),
            "left": f"{answer.remaining:,}" if limited else "no monthly limit",
            "at most": f"{answer.rate_per_second:,} calls/s, {answer.burst:,} at once",
        }
    )
