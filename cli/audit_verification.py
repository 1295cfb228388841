"""The command `bulkhead audit verify`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.audit_log import read_lines, whole_log
from cli.chain import ChainCheck, Fault, Head, Problem
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Timeout
from cli.rendering import as_json as to_json
from cli.session import REFUSED, Connection, Session, run

_MOST_TOLD = 20
# What filters leave out looks like this.
_GAPS = frozenset({Fault.MISSING, Fault.TRUNCATED})
# What may be wrong with a file while nobody touched the log.
_OF_THE_FILE = _GAPS | {Fault.EMPTY, Fault.UNREADABLE}


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

    It proves that no event was changed, removed or added since a head was
    printed, if that head was kept where nobody who can change the log can
    change it too. Without such a head it only finds what was not hidden
    carefully: who can write to the database can make a new, whole chain.
    """
    expected = tuple(map(_head, expect_head or ()))
    if file is not None:
        check = ChainCheck(expected).take_export(read_lines(file, _tell))
        _conclude(check, Verified(expected, of_file=True), json=as_json)
        return

    async def command(session: Session) -> None:
        async with whole_log(session, pb.ListAuditEventsRequest()) as log:
            check = ChainCheck((*expected, log.head)).take_all(log)
        _conclude(check, Verified(expected, of_file=False), json=as_json)

    run(Connection(api, key_file, timeout, as_json), command)


def _head(text: str) -> Head:
    try:
        return Head.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint="--expect-head") from error


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


@dataclass(frozen=True, slots=True)
class Verified:
    """What was asked: whether heads that were kept are in the log, and in which."""

    heads: tuple[Head, ...]
    of_file: bool

    def confirmed(self, check: ChainCheck) -> list[str]:
        """Returns the heads up to which the log is whole, and still the same."""
        return [str(head) for head in self.heads if head in check.confirmed]


def _conclude(check: ChainCheck, asked: Verified, *, json: bool) -> None:
    """Prints the verdict.

    Raises:
        typer.Exit: 1 when something is wrong.
    """
    print(to_json(_document(check, asked)) if json else _text(check, asked))
    if check.problems:
        raise typer.Exit(REFUSED)


def _document(check: ChainCheck, asked: Verified) -> dict[str, Any]:
    return {
        "valid": not check.problems,
        "events": check.events,
        "head": str(check.last),
        "confirmed_heads": asked.confirmed(check),
        "problems": [_problem(problem) for problem in check.problems],
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "sequence": problem.sequence,
        "event_id": problem.event_id,
        "fault": problem.fault.value,
        "message": problem.message,
    }


def _text(check: ChainCheck, asked: Verified) -> str:
    confirmed = [
        f"expected {head}: found, all before it unchanged" for head in asked.confirmed(check)
    ]
    if check.problems:
        return "\n".join([*_wrong(check, asked), *confirmed])
    return "\n".join(
        [
            f"{check.events:,} events, each in its place and unchanged",
            f"head {check.last}",
            *confirmed,
            "Keep the head where nobody can change it; later, --expect-head checks against it.",
        ]
    )


def _wrong(check: ChainCheck, asked: Verified) -> list[str]:
    told = [_told(problem) for problem in check.problems[:_MOST_TOLD]]
    more = len(check.problems) - len(told)
    rest = [f"and {more:,} more; --json has them all"] if more else []
    return [f"{_verdict(check, asked)}; problems: {len(check.problems):,}", *told, *rest]


def _verdict(check: ChainCheck, asked: Verified) -> str:
    faults = {problem.fault for problem in check.problems}
    if not asked.of_file or not faults <= _OF_THE_FILE:
        return "the log is not what was recorded"
    if faults <= _GAPS:
        return (
            "events are missing: the file was exported with filters, and cannot be verified, or"
            " the log is not what was recorded"
        )
    return "this file is not a whole export of a log"


def _told(problem: Problem) -> str:
    # A file may have been made by anyone: nothing in it is to move the reader's cursor.
    named = "".join(each if each.isprintable() else "\ufffd" for each in problem.event_id)
    return f"- {problem.message}" + (f" ({named})" if named else "")
