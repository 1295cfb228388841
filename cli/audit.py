"""The commands `bulkhead audit …`."""

import shlex
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.audit_log import line, whole_log, write_lines
from cli.audit_verification import verify
from cli.fitting import ENDLESS, fitted, terminal_width
from cli.moments import Since, Until, past
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Limit, Timeout
from cli.paging import show_list
from cli.panels import WATCH
from cli.rendering import time_text
from cli.session import Connection, Session, run

_PACKAGE = "bulkhead."
# What refusals call the filter by key, which other commands call otherwise.
_BY = MappingProxyType({"key_id": "--by"})
_COLUMNS = ("no.", "time", "method", "key id", "from", "about", "reason", "trace")
# Ids stand in lines of their own, never cut.
_WRAPPED = MappingProxyType({"reason": 12, "about": 30})
_MISSED_LEAST_FIRST = ("trace", "from", "reason", "about", "key id")

_LIST_EXAMPLE = """Examples:

bulkhead audit list --limit 20

bulkhead audit list --method auth.v1.AuthService/RevokeKey --since 7d

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
        help="Only calls of this method: auth.v1.AuthService/IssueKey, as `audit list` prints it, "
        "or with bulkhead. before it.",
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
    app.add_typer(audit, name="audit", rich_help_panel=WATCH)


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
    asked = _asked(method, by, about, since, until)

    def text(events: list[pb.AuditEvent]) -> str:
        return _listed(events) if events else f"no events match {asked}" if asked else "no events"

    async def command(session: Session) -> None:
        async def ask(size: int, token: str) -> pb.ListAuditEventsResponse:
            request.page_size, request.page_token = size, token
            return await session.auth.ListAuditEvents(request)

        await show_list(session, "events", ask, limit, text, also=("head_sequence", "head_hash"))

    run(Connection(api, key_file, timeout, as_json), command, _BY)


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

    An export without filters is the whole chain: keep it, and `audit verify
    --file` checks it without asking anybody. One with filters cannot be
    verified, and no head is printed for it.
    """
    request = _request(method, by, about, since, until)
    filtered = bool(_asked(method, by, about, since, until))

    async def command(session: Session) -> None:
        async with whole_log(session, request) as log:
            if output is None:
                for event in log:
                    print(line(event))
                return
            write_lines(log, output)
            shown = {"output": str(output), "events": log.events}
            text = f"{log.events:,} events in {output}"
            if filtered:
                session.show(shown, f"{text}; not the whole log, so that it cannot be verified")
            else:
                session.show({**shown, "head": str(log.head)}, f"{text}; head {log.head}")

    run(Connection(api, key_file, timeout, as_json), command, _BY)


def _request(method: str, by: str, about: str, since: str, until: str) -> pb.ListAuditEventsRequest:
    return pb.ListAuditEventsRequest(
        method=_full(method),
        key_id=by,
        resource_id=about,
        start_time=past(since, "--since") if since else None,
        end_time=past(until, "--until") if until else None,
    )


def _full(method: str) -> str:
    """Returns the method's name with the package that lists leave out."""
    return method if "/" not in method or method.startswith(_PACKAGE) else f"{_PACKAGE}{method}"


def _asked(method: str, by: str, about: str, since: str, until: str) -> str:
    """Returns the filters as they were written; empty when there were none."""
    filters = {
        "--method": method,
        "--by": by,
        "--about": about,
        "--since": since,
        "--until": until,
    }
    return " ".join(f"{name} {shlex.quote(value)}" for name, value in filters.items() if value)


def _listed(events: list[pb.AuditEvent]) -> str:
    rows = [_row(event) for event in events]
    columns = dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    return fitted(columns, _WRAPPED, _MISSED_LEAST_FIRST, terminal_width(ENDLESS))


def _row(event: pb.AuditEvent) -> tuple[str, ...]:
    about = ", ".join(event.resources[kind] for kind in sorted(event.resources))
    return (
        str(event.sequence),
        time_text(event.time),
        event.method.removeprefix(_PACKAGE),
        event.key_id,
        event.peer,
        about,
        event.reason,
        event.trace_id,
    )
