"""The commands `bulkhead audit …`."""

from pathlib import Path
from typing import Annotated

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.audit_log import line, whole_log, write_lines
from cli.audit_verification import verify
from cli.moments import Since, Until, past
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Limit, Timeout
from cli.paging import show_list
from cli.rendering import table, time_text
from cli.session import Connection, Session, run

_LIST_EXAMPLE = """Examples:

bulkhead audit list --limit 20

bulkhead audit list --method bulkhead.auth.v1.AuthService/RevokeKey --since 7d

bulkhead audit list --about key_… --json | jq '.events[].key_id'"""
_EXPORT_EXAMPLE = """Examples:

bulkhead audit export --output audit.jsonl

bulkhead audit export --since 30d | jq -r .method | sort | uniq -c"""
_VERIFY_EXAMPLE = """Examples:

bulkhead audit verify

bulkhead audit verify --file audit.jsonl --expect-head 42:9f3c…"""

Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help="Only calls of this method: bulkhead.auth.v1.AuthService/IssueKey.",
    ),
]
ByKey = Annotated[
    str, typer.Option("--by", metavar="KEY_ID", help="Only calls with this key: key_….")
]
About = Annotated[
    str,
    typer.Option("--about", metavar="ID", help="Only calls that name this id: dep_…, key_…."),
]


def register(app: typer.Typer) -> None:
    """Adds `audit` to the command line."""
    audit = typer.Typer(
        no_args_is_help=True, help="Read, export and verify the tenant's audit log."
    )
    audit.command("list", epilog=_LIST_EXAMPLE)(list_all)
    audit.command("export", epilog=_EXPORT_EXAMPLE)(export)
    audit.command("verify", epilog=_VERIFY_EXAMPLE)(verify)
    app.add_typer(audit, name="audit")


def list_all(
    method: Method = "",
    by: ByKey = "",
    about: About = "",
    since: Since = "",
    until: Until = "",
    limit: Limit = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """List who did what to the tenant, newest first."""
    request = _request(method, by, about, since, until)

    async def command(session: Session) -> None:
        async def ask(size: int, token: str) -> pb.ListAuditEventsResponse:
            request.page_size, request.page_token = size, token
            return await session.auth.ListAuditEvents(request)

        await show_list(session, "events", ask, limit, _listed)

    run(Connection(api, key_file, timeout, as_json), command)


def export(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write here, readable by you alone; without it, to standard output.",
        ),
    ] = None,
    method: Method = "",
    by: ByKey = "",
    about: About = "",
    since: Since = "",
    until: Until = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Write the log as JSON lines, one event a line, oldest first.

    An export without filters is the whole chain: keep it, and `audit verify --file` checks it
    without asking anybody.
    """
    request = _request(method, by, about, since, until)

    async def command(session: Session) -> None:
        async with whole_log(session, request) as log:
            if output is None:
                for event in log:
                    print(line(event))
                return
            write_lines(log, output)
            shown = {"output": str(output), "events": log.events, "head": str(log.head)}
            session.show(shown, f"{log.events:,} events in {output}; head {log.head}")

    run(Connection(api, key_file, timeout, as_json), command)


def _request(method: str, by: str, about: str, since: str, until: str) -> pb.ListAuditEventsRequest:
    return pb.ListAuditEventsRequest(
        method=method,
        key_id=by,
        resource_id=about,
        start_time=past(since) if since else None,
        end_time=past(until) if until else None,
    )


def _listed(events: list[pb.AuditEvent]) -> str:
    if not events:
        return "no events"
    header = ("no.", "time", "method", "key id", "from", "about", "reason", "trace")
    return table(header, [_row(event) for event in events])


def _row(event: pb.AuditEvent) -> tuple[str, ...]:
    about = ", ".join(event.resources[kind] for kind in sorted(event.resources))
    return (
        str(event.sequence),
        time_text(event.time),
        event.method.removeprefix("bulkhead."),
        event.key_id,
        event.peer,
        about or "-",
        event.reason or "-",
        event.trace_id or "-",
    )
