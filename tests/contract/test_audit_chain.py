"""The serialization of docs/audit.md, recomputed; and what a check of a chain finds."""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from google.protobuf.json_format import ParseDict

from cli.audit_log import line, read_lines, write_lines
from cli.chain import ChainCheck, Fault, Head, event_hash
from tests.audit_logs import chain
from tests.contracts import ROOT

DOCUMENT = (ROOT / "docs" / "audit.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def faults(events: list[pb2.AuditEvent], *expected: Head) -> list[tuple[int, Fault]]:
    check = ChainCheck(expected).take_all(events)
    return [(problem.sequence, problem.fault) for problem in check.problems]


def test_the_documented_example_has_the_documented_hash() -> None:
    event = ParseDict(json.loads(block("json")), pb2.AuditEvent())
    fields = bytes.fromhex(block("text"))
    (stated,) = set(re.findall(r"SHA-256 over these bytes is\n`([0-9a-f]{64})`", DOCUMENT))
    assert event_hash(event).hex() == event.hash.hex() == stated
    assert fields.startswith(b"\0\0\0\x11bulkhead.audit.v1\0\0\0\x20" + bytes(32))
    assert Head.parse(f"1:{stated}") == Head(1, event.hash)


async def test_the_documented_program_finds_the_head_of_an_export(tmp_path: Path) -> None:
    program, export = tmp_path / "verify.py", tmp_path / "audit.jsonl"
    program.write_text(block("python"))
    events = chain(5)
    write_lines(events, export)
    assert await output_of(program, export) == str(Head(5, events[-1].hash))
    events[2].peer = "nobody"
    write_lines(events, export)
    assert "event 3 was changed" in await output_of(program, export)


async def output_of(program: Path, export: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), str(export)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return output.decode().strip()


def test_a_whole_chain_is_found_whole() -> None:
    events = chain(7)
    assert faults(events, Head(7, events[6].hash), Head(3, events[2].hash)) == []
    assert faults([]) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_id", "aud_x"),
        ("key_id", "key_x"),
        ("peer", "provisioner"),
        ("method", "m"),
        ("trace_id", "0" * 32),
        ("reason", "another"),
    ],
)
def test_a_changed_field_is_found(field: str, value: str) -> None:
    events = chain(3)
    setattr(events[1], field, value)
    assert faults(events) == [(2, Fault.CHANGED)]


def test_a_changed_time_or_resource_is_found() -> None:
    for change in (
        lambda event: setattr(event.time, "nanos", event.time.nanos + 1),
        lambda event: setattr(event.time, "seconds", event.time.seconds - 1),
        lambda event: event.resources.update({"clé": "other"}),
        lambda event: event.resources.update({"key": ""}),
        lambda event: event.resources.clear(),
    ):
        events = chain(3)
        change(events[0])
        assert faults(events) == [(1, Fault.CHANGED)]


def test_moving_bytes_from_one_field_to_the_next_changes_the_hash() -> None:
    one, other = pb2.AuditEvent(key_id="ab", peer="c"), pb2.AuditEvent(key_id="a", peer="bc")
    assert event_hash(one) != event_hash(other)
    one, other = pb2.AuditEvent(resources={"a": "bc"}), pb2.AuditEvent(resources={"ab": "c"})
    assert event_hash(one) != event_hash(other)


def test_a_changed_event_with_a_fitting_hash_breaks_the_next() -> None:
    events = chain(3)
    events[1].key_id = "key_x"
    events[1].hash = event_hash(events[1])
    assert faults(events) == [(3, Fault.UNLINKED)]


def test_a_dropped_an_added_and_a_swapped_event_are_found() -> None:
    events = chain(5)
    assert faults(events[:1] + events[3:]) == [(4, Fault.MISSING)]
    assert faults(events[1:]) == [(2, Fault.MISSING)]
    assert faults([*events[:2], events[1], *events[2:]]) == [(2, Fault.OUT_OF_ORDER)]
    swapped = [events[0], events[2], events[1], *events[3:]]
    assert (3, Fault.MISSING) in faults(swapped)
    assert (2, Fault.OUT_OF_ORDER) in faults(swapped)


def test_a_cut_end_and_a_new_chain_are_found_by_a_head_alone() -> None:
    events = chain(5)
    head = Head(5, events[4].hash)
    assert faults(events[:3]) == []
    assert faults(events[:3], head) == [(5, Fault.TRUNCATED)]
    rewritten = chain(5)
    previous = bytes(32)
    for event in rewritten:
        event.key_id, event.previous_hash = "key_x", previous
        previous = event.hash = event_hash(event)
    assert faults(rewritten) == []
    assert faults(rewritten, head) == [(5, Fault.OTHER_HEAD)]
    assert faults([], head) == [(5, Fault.TRUNCATED)]


def test_a_head_before_the_first_event_has_one_hash_alone() -> None:
    assert faults(chain(2), Head()) == []
    assert faults(chain(2), Head(0, b"\1" * 32)) == [(0, Fault.OTHER_HEAD)]


def test_only_heads_up_to_which_all_is_well_are_confirmed() -> None:
    events = chain(5)
    heads = tuple(Head(event.sequence, event.hash) for event in events[1:4:2])
    assert ChainCheck(heads).take_all(events).confirmed == set(heads)
    other = Head(3, bytes(32))
    assert ChainCheck((*heads, other)).take_all(events).confirmed == {heads[0]}
    events[2].peer = "nobody"
    assert ChainCheck(heads).take_all(events).confirmed == {heads[0]}


@pytest.mark.parametrize(
    "text", ["", "5", "5:abc", "x:" + "0" * 64, "5:" + "g" * 64, "-1:" + "0" * 64]
)
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SEQUENCE:HASH"):
        Head.parse(text)


def test_an_export_is_read_back_as_it_was_and_only_its_owner_can(tmp_path: Path) -> None:
    events, export = chain(4), tmp_path / "audit.jsonl"
    export.write_text("what was there before")
    export.chmod(0o644)
    write_lines(events, export)
    assert export.stat().st_mode & 0o777 == 0o600
    assert list(read_lines(export, print)) == events
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]
    assert "\n" not in line(events[2])


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    export = tmp_path / "audit.jsonl"
    export.write_text("what was there before")

    def broken() -> Iterator[pb2.AuditEvent]:
        yield from chain(2)
        raise KeyError("away")

    with pytest.raises(KeyError, match="away"):
        write_lines(broken(), export)
    assert export.read_text() == "what was there before"
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]
