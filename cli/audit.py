"""The commands `bulkhead audit …`."""

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.options import CALL_SECONDS, Api, Json, KeyFile, Limit, Timeout
from cli.paging import listed
from cli.rendering import document, table, time_text
from cli.session import Connection, Session, run

_LIST_EXAMPLE = """Example: bulkhead audit list --limit 20"""


def register(app: typer.Typer) -> None:
    """Adds `audit` to the command line."""
    audit = typer.Typer(no_args_is_help=True, help="Read the tenant's audit log.")
    audit.command("list", epilog=_LIST_EXAMPLE)(list_all)
    app.add_typer(audit, name="audit")


def list_all(
    limit: Limit = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """List who did what to the tenant, newest first."""

    async def command(session: Session) -> None:
        async def page(size: int, token: str) -> tuple[list[pb.AuditEvent], str]:
            request = pb.ListAuditEventsRequest(page_size=size, page_token=token)
            answer = await session.auth.ListAuditEvents(request)
            return list(answer.events), answer.next_page_token

        found = await listed(page, limit)
        session.show({"events": [document(one) for one in found]}, _listed(found))

    run(Connection(api, key_file, timeout, as_json), command)


def _listed(events: list[pb.AuditEvent]) -> str:
    if not events:
        return "no events"
    header = ("time", "method", "key id", "from", "about", "trace")
    return table(header, [_row(event) for event in events])


def _row(event: pb.AuditEvent) -> tuple[str, ...]:
    about = ", ".join(event.resources[kind] for kind in sorted(event.resources))
    return (
        time_text(event.time),
        event.method.removeprefix("bulkhead."),
        event.key_id,
        event.peer,
        about or "-",
        event.trace_id or "-",
    )
