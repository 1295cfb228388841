"""The command `bulkhead audit verify`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.audit_log import read_lines, whole_log
from cli.chain import ChainCheck, Head, Problem
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Timeout
from cli.rendering import as_json as to_json
from cli.session import REFUSED, Connection, Session, run

_MOST_TOLD = 20


def verify(
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="EXPORT",
            help="Check this file of `audit export`, made without filters; asks nobody.",
        ),
    ] = None,
    expect_head: Annotated[
        list[str] | None,
        typer.Option(
            "--expect-head",
            metavar="SEQ:HASH",
            help="A head that was printed before; the log must still have it. Repeat for more.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Recompute the hash of every event, and look for gaps; exits with 1 when something is wrong.

    It proves that no event was changed, removed or added since a head was printed, if that head
    was kept where nobody who can change the log can change it too. Without such a head it only
    finds what was not hidden carefully: who can write to the database can make a new, whole chain.
    """
    expected = tuple(map(_head, expect_head or ()))
    if file is not None:
        check = ChainCheck(expected).take_all(read_lines(file, _tell))
        _conclude(check, json=as_json)
        return

    async def command(session: Session) -> None:
        async with whole_log(session, pb.ListAuditEventsRequest()) as log:
            check = ChainCheck((*expected, log.head)).take_all(log)
        _conclude(check, json=as_json)

    run(Connection(api, key_file, timeout, as_json), command)


def _head(text: str) -> Head:
    try:
        return Head.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint="--expect-head") from error


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _conclude(check: ChainCheck, *, json: bool) -> None:
    """Prints the verdict.

    Raises:
        typer.Exit: 1 when something is wrong.
    """
    print(to_json(_document(check)) if json else _text(check))
    if check.problems:
        raise typer.Exit(REFUSED)


def _document(check: ChainCheck) -> dict[str, Any]:
    return {
        "valid": not check.problems,
        "events": check.events,
        "head": str(check.last),
        "problems": [_problem(problem) for problem in check.problems],
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "sequence": problem.sequence,
        "event_id": problem.event_id,
        "fault": problem.fault.value,
        "message": problem.message,
    }


def _text(check: ChainCheck) -> str:
    if not check.problems:
        return (
            f"{check.events:,} events, each in its place and unchanged\nhead {check.last}\n"
            "Keep the head where nobody can change it; later, --expect-head checks against it."
        )
    told = [_told(problem) for problem in check.problems[:_MOST_TOLD]]
    more = len(check.problems) - len(told)
    rest = [f"and {more:,} more; --json has them all"] if more else []
    return "\n".join(
        [f"the log is not what was recorded; problems: {len(check.problems):,}", *told, *rest]
    )


def _told(problem: Problem) -> str:
    return f"- {problem.message}" + (f" ({problem.event_id})" if problem.event_id else "")
