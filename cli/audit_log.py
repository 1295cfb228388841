"""A whole audit log: fetched newest first, put aside, read oldest first."""

import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb
from google.protobuf.json_format import ParseDict, ParseError

from cli.chain import Head, NotAnEventError
from cli.paging import MOST_PER_PAGE
from cli.rendering import document
from cli.session import Session


class Log:
    """The events of a log, in a file that nobody else can open and that is gone at the end."""

    def __init__(self, file: IO[bytes], head: Head) -> None:
        self._file = file
        self._pages: list[int] = []
        self._end = 0
        self.head = head
        self.events = 0

    def put(self, page: pb.ListAuditEventsResponse) -> None:
        """Puts aside a page, newest first, that is older than all before."""
        self._pages.append(self._end)
        self._end += self._file.write(page.SerializeToString())
        self.events += len(page.events)

    def __iter__(self) -> Iterator[pb.AuditEvent]:
        end = self._end
        for start in reversed(self._pages):
            self._file.seek(start)
            page = pb.ListAuditEventsResponse.FromString(self._file.read(end - start))
            yield from reversed(page.events)
            end = start


@asynccontextmanager
async def whole_log(session: Session, wanted: pb.ListAuditEventsRequest) -> AsyncIterator[Log]:
    """Yields every event that is asked for, and the head as of the first page."""
    request = pb.ListAuditEventsRequest()
    request.CopyFrom(wanted)
    request.page_size = MOST_PER_PAGE
    with tempfile.TemporaryFile() as file:
        answer = await session.auth.ListAuditEvents(request)
        log = Log(file, Head(answer.head_sequence, answer.head_hash or Head().hash))
        log.put(answer)
        while answer.next_page_token:
            session.tell(f"… {log.events:,} of at most {log.head.sequence:,} events")
            request.page_token = answer.next_page_token
            answer = await session.auth.ListAuditEvents(request)
            log.put(answer)
        yield log


def line(event: pb.AuditEvent) -> str:
    """Returns the event as one line of JSON, with the field names of the contract."""
    return json.dumps(document(event), ensure_ascii=False, separators=(",", ":"))


def write_lines(events: Iterable[pb.AuditEvent], output: Path) -> None:
    """Writes an export that only its owner can read, whole or not at all.

    Raises:
        typer.BadParameter: it cannot be written there.
    """
    try:
        # Made with mode 0600, under a name of its own until it is whole.
        descriptor, part = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
        with _removed_on_failure(Path(part)):
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.writelines(f"{line(event)}\n" for event in events)
            Path(part).replace(output)
    except OSError as error:
        raise typer.BadParameter(f"cannot write {output}: {error.strerror}") from error


@contextmanager
def _removed_on_failure(part: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_lines(export: Path, tell: Callable[[str], None]) -> Iterator[pb.AuditEvent]:
    """Yields the events of an export, in its order.

    Raises:
        typer.BadParameter: it cannot be read.
        NotAnEventError: a line of it is not an event.
    """
    try:
        with export.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                yield _event(raw, number)
                if number % (10 * MOST_PER_PAGE) == 0:
                    tell(f"… {number:,} events")
    except OSError as error:
        raise typer.BadParameter(f"cannot read {export}: {error.strerror}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object; a name that stands in it twice would be read differently elsewhere.

    Raises:
        ValueError: a name stands in it twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _event(raw: bytes, number: int) -> pb.AuditEvent:
    try:
        parsed = json.loads(raw.decode(), object_pairs_hook=_each_once)
        event = ParseDict(parsed, pb.AuditEvent()) if isinstance(parsed, dict) else None
    except (ValueError, ParseError, RecursionError) as error:
        raise NotAnEventError(number) from error
    if event is None or not event.sequence:
        raise NotAnEventError(number)
    return event
