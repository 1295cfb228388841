"""The audit log on the command line: listed by filter, exported, verified."""

import base64
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.audit_log import line, read_lines, write_lines
from cli.chain import Head
from services.shared.errors import Reason, UnavailableError
from tests.audit_logs import chain
from tests.scripted_api import ScriptedApi, bulkhead

PAGE = 4
NOBODY = {"BULKHEAD_API": "", "BULKHEAD_KEY": ""}


def serve(api: ScriptedApi, events: list[pb.AuditEvent], head: Head | None = None) -> Head:
    """Answers with pages of the events, newest first; returns the head that is told."""
    told = head or Head(events[-1].sequence, events[-1].hash)

    def page(request: pb.ListAuditEventsRequest) -> pb.ListAuditEventsResponse:
        first = int(request.page_token or 0)
        newest = events[::-1]
        last = first + PAGE
        return pb.ListAuditEventsResponse(
            events=newest[first:last],
            next_page_token=str(last) if last < len(newest) else "",
            head_sequence=told.sequence,
            head_hash=told.hash,
        )

    api.answers["ListAuditEvents"] = page
    return told


async def test_list_sends_each_filter(api: ScriptedApi) -> None:
    serve(api, chain(2))
    before = datetime.now(UTC) - timedelta(days=7)
    filters = ("--method", "m", "--by", "key_1", "--about", "dep_1", "--since", "7d")
    outcome = await bulkhead(
        api.port, "audit", "list", *filters, "--until", "2027-01-31T00:00:00Z", "--json"
    )
    assert outcome.code == 0, outcome.err
    assert [event["sequence"] for event in outcome.json["events"]] == [2, 1]
    assert outcome.json["head_sequence"] == 2
    (request,) = api.requests("ListAuditEvents")
    assert (request.method, request.key_id, request.resource_id) == ("m", "key_1", "dep_1")
    assert request.end_time.ToJsonString() == "2027-01-31T00:00:00Z"
    since = request.start_time.ToDatetime(UTC)
    assert before <= since <= datetime.now(UTC) - timedelta(days=7)


async def test_list_shows_the_place_and_the_reason_of_each_event(api: ScriptedApi) -> None:
    events = chain(2)
    events[0].reason = "ticket 4711"
    serve(api, events)
    head, _, first = (await bulkhead(api.port, "audit", "list")).out.splitlines()
    assert head.startswith("NO.  TIME")
    assert first.startswith("1 ")
    assert "ticket 4711" in first


async def test_list_tells_the_head_with_the_field_names_of_the_contract(api: ScriptedApi) -> None:
    head = serve(api, chain(9))
    shown = (await bulkhead(api.port, "audit", "list", "--json")).json
    assert Head(shown["head_sequence"], base64.b64decode(shown["head_hash"])) == head
    assert (len(shown["events"]), "next_page_token" in shown) == (9, False)


@pytest.mark.parametrize(
    "method", ["auth.v1.AuthService/RevokeKey", "bulkhead.auth.v1.AuthService/RevokeKey"]
)
async def test_a_method_is_named_as_it_is_listed_or_by_its_full_name(
    api: ScriptedApi, method: str
) -> None:
    serve(api, chain(1))
    outcome = await bulkhead(api.port, "audit", "list", "--method", method)
    assert outcome.code == 0, outcome.err
    (request,) = api.requests("ListAuditEvents")
    assert request.method == "bulkhead.auth.v1.AuthService/RevokeKey"


async def test_filters_that_match_nothing_are_repeated(api: ScriptedApi) -> None:
    api.answers["ListAuditEvents"] = pb.ListAuditEventsResponse(head_sequence=7)
    outcome = await bulkhead(api.port, "audit", "list", "--method", "RevokeKey", "--since", "7d")
    assert (outcome.code, outcome.out) == (0, "no events match --method RevokeKey --since 7d\n")


async def test_an_export_with_filters_has_no_head(api: ScriptedApi, tmp_path: Path) -> None:
    head, output = serve(api, chain(3)), tmp_path / "audit.jsonl"
    arguments = ("audit", "export", "--by", "key_1", "--output", str(output))
    shown = await bulkhead(api.port, *arguments, "--json")
    assert shown.json == {"output": str(output), "events": 3}
    text = await bulkhead(api.port, *arguments)
    assert str(head) not in text.out
    assert "not the whole log" in text.out


async def test_export_writes_the_whole_log_oldest_first_for_its_owner_alone(
    api: ScriptedApi, tmp_path: Path
) -> None:
    events, output = chain(11), tmp_path / "audit.jsonl"
    head = serve(api, events)
    outcome = await bulkhead(api.port, "audit", "export", "--output", str(output), "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json == {"output": str(output), "events": 11, "head": str(head)}
    assert list(read_lines(output, print)) == events
    assert output.stat().st_mode & 0o777 == 0o600
    assert "… 8 of at most 11 events" in outcome.err
    printed = (await bulkhead(api.port, "audit", "export")).out.splitlines()
    assert [json.loads(line)["sequence"] for line in printed] == list(range(1, 12))


async def test_an_export_that_is_cut_off_leaves_no_file(api: ScriptedApi, tmp_path: Path) -> None:
    serve(api, chain(11))
    answer = api.answers["ListAuditEvents"]

    def once(request: pb.ListAuditEventsRequest) -> Any:
        away = UnavailableError("away", Reason.DEPENDENCY_UNAVAILABLE)
        return away if request.page_token else answer(request)

    api.answers["ListAuditEvents"] = once
    output = tmp_path / "audit.jsonl"
    outcome = await bulkhead(api.port, "audit", "export", "--output", str(output))
    assert outcome.code == 1
    assert os.listdir(tmp_path) == []  # noqa: PTH208 one look at a folder that must be empty


async def test_verify_finds_a_whole_log_whole_and_prints_its_head(api: ScriptedApi) -> None:
    head = serve(api, chain(9))
    outcome = await bulkhead(api.port, "audit", "verify")
    assert outcome.code == 0, outcome.err
    assert f"head {head}" in outcome.out
    shown = (await bulkhead(api.port, "audit", "verify", "--json")).json
    assert shown == {
        "valid": True,
        "events": 9,
        "head": str(head),
        "confirmed_heads": [],
        "problems": [],
    }


async def test_verify_says_what_is_wrong_and_exits_with_1(api: ScriptedApi) -> None:
    events = chain(9)
    head = Head(9, events[8].hash)
    events[2].peer = "nobody"
    serve(api, events[:5] + events[6:8], head)
    outcome = await bulkhead(api.port, "audit", "verify")
    assert outcome.code == 1
    assert [line for line in outcome.out.splitlines() if line.startswith("- ")] == [
        f"- event 3 was changed: its hash is not that of what it says ({events[2].event_id})",
        f"- event 6 is missing ({events[6].event_id})",
        "- event 9 is missing at the end",
    ]
    shown = await bulkhead(api.port, "audit", "verify", "--json")
    assert shown.code == 1
    assert shown.json["valid"] is False
    assert [problem["fault"] for problem in shown.json["problems"]] == [
        "changed",
        "missing",
        "truncated",
    ]


async def test_verify_of_a_file_asks_nobody(tmp_path: Path) -> None:
    events, export = chain(6), tmp_path / "audit.jsonl"
    write_lines(events, export)
    outcome = await bulkhead(0, "audit", "verify", "--file", str(export), **NOBODY)
    assert outcome.code == 0, outcome.err
    assert "6 events" in outcome.out
    head = Head(6, events[5].hash)
    arguments = ("audit", "verify", "--file", str(export), "--expect-head", str(head))
    assert (await bulkhead(0, *arguments, **NOBODY)).code == 0
    write_lines(events[:4], export)
    cut = await bulkhead(0, *arguments, **NOBODY)
    assert (cut.code, "events 5 to 6 are missing at the end" in cut.out) == (1, True)
    assert str(head) not in cut.out


async def test_a_head_that_was_found_is_confirmed(api: ScriptedApi) -> None:
    events = chain(5)
    told = serve(api, events)
    kept = [str(Head(number, events[number - 1].hash)) for number in (2, 4)]
    arguments = ("audit", "verify", "--expect-head", kept[1], "--expect-head", kept[0])
    text = await bulkhead(api.port, *arguments)
    assert text.code == 0, text.err
    assert [line for line in text.out.splitlines() if line.startswith("expected ")] == [
        f"expected {kept[1]}: found, all before it unchanged",
        f"expected {kept[0]}: found, all before it unchanged",
    ]
    events[2].peer = "nobody"
    serve(api, events, told)
    changed = await bulkhead(api.port, *arguments, "--json")
    assert (changed.code, changed.json["confirmed_heads"]) == (1, [kept[0]])


async def test_a_filtered_export_is_not_taken_for_a_crime_alone(tmp_path: Path) -> None:
    events, export = chain(9), tmp_path / "audit.jsonl"
    write_lines([events[1], events[4], events[5]], export)
    outcome = await bulkhead(0, "audit", "verify", "--file", str(export), **NOBODY)
    assert outcome.code == 1
    first, *gaps = outcome.out.splitlines()
    assert "the file was exported with filters, and cannot be verified" in first
    assert len(gaps) == 2
    events[4].peer = "nobody"
    write_lines([events[1], events[4]], export)
    outcome = await bulkhead(0, "audit", "verify", "--file", str(export), **NOBODY)
    assert outcome.out.startswith("the log is not what was recorded")


async def test_a_kept_head_finds_a_chain_that_was_made_anew(
    api: ScriptedApi,
) -> None:
    kept = Head(3, bytes(32))
    serve(api, chain(5))
    outcome = await bulkhead(api.port, "audit", "verify", "--expect-head", str(kept))
    assert outcome.code == 1
    assert "event 3 is not the one that was known by its hash" in outcome.out


async def test_many_problems_are_told_in_part(api: ScriptedApi) -> None:
    events = chain(30)
    for event in events:
        event.peer = "nobody"
    serve(api, events)
    outcome = await bulkhead(api.port, "audit", "verify")
    assert "and 10 more; --json has them all" in outcome.out
    shown = (await bulkhead(api.port, "audit", "verify", "--json")).json
    assert len(shown["problems"]) == 30


async def test_what_a_file_says_does_not_move_the_cursor(tmp_path: Path) -> None:
    forged = chain(1)[0]
    forged.event_id = "\x1b[2J\x1b]0;all is well\x07"
    export = tmp_path / "x"
    export.write_text(line(forged))
    outcome = await bulkhead(0, "audit", "verify", "--file", str(export), **NOBODY)
    assert (outcome.code, "\x1b" in outcome.out, "\x07" in outcome.out) == (1, False, False)


async def test_an_empty_log_is_whole(api: ScriptedApi) -> None:
    api.answers["ListAuditEvents"] = pb.ListAuditEventsResponse()
    shown = (await bulkhead(api.port, "audit", "verify", "--json")).json
    assert (shown["valid"], shown["events"]) == (True, 0)
    assert (await bulkhead(api.port, "audit", "list")).out == "no events\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file holds no event"),
        (b"not json\n", "line 1: not an audit event"),
        (b"{}\n", "line 1: not an audit event"),
        (b"EVENT\n[]\n", "line 2: not an audit event"),
        (b"EVENT\n\nEVENT\n", "line 2: not an audit event"),
        (b'EVENT\n{"event_id":"aud_0', "line 2: not an audit event, or only a part of one"),
        (b"EVENT\n\xff\n", "line 2: not an audit event"),
        (b"[" * 100_000, "line 1: not an audit event"),
        (b'{"colour": "red"}\n', "line 1: not an audit event"),
        (b'{"sequence": 1, "peer": "a", "peer": "b"}\n', "line 1: not an audit event"),
        (b'{"sequence": 1, "peer": "\\ud800"}\n', "line 1: not an audit event"),
    ],
)
async def test_a_file_that_is_no_export_is_found_out(
    tmp_path: Path, content: bytes, said: str
) -> None:
    export = tmp_path / "x"
    export.write_bytes(content.replace(b"EVENT", line(chain(1)[0]).encode()))
    outcome = await bulkhead(0, "audit", "verify", "--file", str(export), **NOBODY)
    assert (outcome.code, outcome.err) == (1, "")
    assert outcome.out.startswith("this file is not a whole export of a log; problems: 1\n- ")
    assert said in outcome.out
    shown = await bulkhead(0, "audit", "verify", "--file", str(export), "--json", **NOBODY)
    assert (shown.code, shown.json["valid"]) == (1, False)
    assert said in shown.json["problems"][0]["message"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("audit", "verify", "--expect-head", "42"), "--expect-head"),
        (("audit", "verify", "--file", "/nowhere/at.all"), "cannot read"),
        (("audit", "list", "--since", "yesterday"), "is not a time"),
        (("audit", "export", "--until", "x"), "is not a time"),
    ],
)
async def test_wrong_use_reaches_nobody(
    api: ScriptedApi, arguments: tuple[str, ...], said: str
) -> None:
    outcome = await bulkhead(api.port, *arguments)
    assert (outcome.code, api.asked) == (2, [])
    assert said in outcome.err
    assert "Traceback" not in outcome.err


async def test_an_export_to_where_nothing_can_be_written_says_so(api: ScriptedApi) -> None:
    serve(api, chain(1))
    outcome = await bulkhead(api.port, "audit", "export", "--output", "/nowhere/at.all")
    assert outcome.code == 2
    assert "cannot write" in outcome.err
    assert "Traceback" not in outcome.err
