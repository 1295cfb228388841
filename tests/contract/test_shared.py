"""The small shared parts, by themselves."""

import asyncio
import base64
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import attach, create_key, detach, get_value, set_value

from services.shared.coalesce import Coalescer
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.ids import new_key_id
from services.shared.keyformat import hint, new_key, well_formed, without_keys
from services.shared.paging import next_page_token, page_position
from services.shared.principal import KeyKind, permits

_SECOND = (datetime(2026, 1, 1, tzinfo=UTC), "")


@pytest.mark.parametrize("kind", KeyKind)
def test_a_new_key_is_well_formed_and_unlike_any_other(kind: KeyKind) -> None:
    first, second = new_key(kind), new_key(kind)
    assert first != second
    assert well_formed(first)
    assert len(first) == len("smcp_1t_") + 43 + 6


@given(position=st.integers(0, 56), character=st.sampled_from("0Az_-\n é"))
def test_a_key_with_one_character_changed_is_refused_without_asking(
    position: int, character: str
) -> None:
    key = new_key(KeyKind.TENANT)
    changed = key[:position] + character + key[position + 1 :]
    assert well_formed(changed) == (changed == key)


@given(st.text(max_size=80))
def test_no_text_is_taken_for_a_key(anything: str) -> None:
    assert not well_formed(anything)


def test_a_hint_shows_no_more_than_the_last_four() -> None:
    key = new_key(KeyKind.TENANT)
    assert hint(key) == f"smcp_1t_…{key[-4:]}"


def test_writing_includes_reading_and_not_the_other_way() -> None:
    assert permits({"db:write"}, "db:read")
    assert not permits({"db:read"}, "db:write")
    assert not permits({"db:write"}, "keys:read")


@given(at=st.datetimes(timezones=st.just(UTC)))
def test_a_page_token_gives_back_its_position_to_its_owner_only(at: datetime) -> None:
    key_id = new_key_id()
    token = next_page_token("keys", "ten_1", [(at, key_id), (at, "")], 1)
    assert page_position("keys", "ten_1", token) == (at, key_id)
    for list_name, owner in (("keys", "ten_2"), ("audit", "ten_1")):
        with pytest.raises(InvalidFieldError):
            page_position(list_name, owner, token)


@given(tail=st.binary(max_size=60))
def test_a_page_token_with_another_end_is_refused_or_a_position(tail: bytes) -> None:
    token = next_page_token("keys", "ten_1", [(datetime.now(UTC), new_key_id()), _SECOND], 1)
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[:12] + tail
    forged = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    with pytest.raises(InvalidFieldError, match="page_token"):
        page_position("keys", "ten_1", forged)


@pytest.mark.parametrize("value", ["", "   ", "x" * 11, "a\x00b", "a\u202eb"])
def test_text_that_cannot_be_shown_is_refused(value: str) -> None:
    with pytest.raises(InvalidFieldError, match="name"):
        text("name", value, most=10)


@pytest.mark.parametrize(
    "invisible",
    [
        *("\u034f", "\u115f", "\u1160", "\u17b4", "\u180b", "\u2800"),
        *("\u3164", "\ufe0f", "\uffa0", "\U000e0100"),
    ],
)
def test_text_of_which_nothing_can_be_seen_is_empty(invisible: str) -> None:
    assert invisible.isprintable()
    for value in (invisible, f" {invisible} {invisible}\u3164 "):
        with pytest.raises(InvalidFieldError, match="must not be empty"):
            text("name", value, most=10)
        assert text("note", value, least=0, most=10) == value.strip()
    # Beside what can be seen it belongs to it, as in an emoji.
    for value in (f"a{invisible}", f"{invisible}\u2764"):
        assert text("name", value, most=10) == value


async def test_concurrent_calls_travel_together_and_each_gets_its_own_answer() -> None:
    batches: list[int] = []

    async def double(items: Sequence[int]) -> list[int]:
        batches.append(len(items))
        await asyncio.sleep(0)
        return [2 * item for item in items]

    ask: Coalescer[int, int] = Coalescer(double, most=64)
    answers = await asyncio.gather(*(ask(number) for number in range(200)))
    assert answers == [2 * number for number in range(200)]
    assert max(batches) <= 64
    assert len(batches) <= 5


async def test_a_batch_weighs_no_more_than_it_may_unless_one_item_does() -> None:
    batches: list[list[int]] = []

    async def note(weights: Sequence[int]) -> Sequence[int]:
        batches.append(list(weights))
        return weights

    ask: Coalescer[int, int] = Coalescer(note, most=10, weigh=lambda weight: weight)
    weights = [4, 6, 1, 12, 3, 3, 3, 3]
    assert await asyncio.gather(*(ask(weight) for weight in weights)) == weights
    assert batches == [[4, 6], [1], [12], [3, 3, 3], [3]]


async def test_a_failing_batch_fails_its_own_callers_and_no_others() -> None:
    async def refuse_odd(items: Sequence[int]) -> list[int]:
        if any(item % 2 for item in items):
            raise ValueError("odd")
        return list(items)

    ask: Coalescer[int, int] = Coalescer(refuse_odd, most=1)
    answers = await asyncio.gather(ask(2), ask(3), ask(4), return_exceptions=True)
    assert answers[0] == 2
    assert isinstance(answers[1], ValueError)
    assert answers[2] == 4


async def test_a_caller_that_leaves_takes_nothing_from_the_others() -> None:
    release = asyncio.Event()

    async def slow(items: Sequence[int]) -> list[int]:
        await release.wait()
        return list(items)

    ask: Coalescer[int, int] = Coalescer(slow)
    calls = [asyncio.ensure_future(ask(number)) for number in range(3)]
    await asyncio.sleep(0)
    calls[1].cancel()
    release.set()
    assert await calls[0] == 0
    assert await calls[2] == 2


def test_of_a_key_that_was_pasted_somewhere_only_the_prefix_is_kept() -> None:
    key = new_key(KeyKind.DEPLOYMENT)
    for given_text, kept in (
        (key, "smcp_1d_…"),
        (f"see {key}, and {key[:40]}", "see smcp_1d_…, and smcp_1d_…"),
        ("key_0123456789abcdefghjkmnpqrs", "key_0123456789abcdefghjkmnpqrs"),
        ("", ""),
    ):
        assert without_keys(given_text) == kept


async def test_a_batch_carries_the_trace_of_one_who_is_in_it_or_none() -> None:
    name = create_key("test")
    seen: list[tuple[list[int], object]] = []

    async def note(items: Sequence[int]) -> list[int]:
        seen.append((list(items), get_value(name)))
        return list(items)

    ask: Coalescer[int, int] = Coalescer(note, most=2, flights=1)
    token = attach(set_value(name, "first"))
    try:
        await asyncio.gather(*(ask(number) for number in range(3)))
    finally:
        detach(token)
    assert seen == [([0, 1], "first"), ([2], None)]
