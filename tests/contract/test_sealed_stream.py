"""Sealed streams: what was written is read again, and nothing else is believed."""

import io

import pytest

from services.provisioner.drivers.sealed_stream import SealedReader, SealedWriter, UnsealError

CHUNK_BYTES = 1 << 18
HEAD_BYTES = len(b"bulkhead backup 1\n") + 32
SEALED_CHUNK_BYTES = CHUNK_BYTES + 16


def key_of(salt: bytes) -> bytes:
    return salt


def other_key_of(salt: bytes) -> bytes:
    return bytes(reversed(salt))


def sealed(content: bytes) -> bytes:
    target = io.BytesIO()
    writer = SealedWriter(target, key_of)
    for start in range(0, len(content), 100_000):
        writer.write(content[start : start + 100_000])
    writer.finish()
    return target.getvalue()


def opened(stream: bytes) -> bytes:
    return SealedReader(io.BytesIO(stream), key_of).read()


def content(length: int) -> bytes:
    return bytes(number % 251 for number in range(length))


@pytest.mark.parametrize(
    "length", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 700_000]
)
def test_what_was_sealed_is_read_again_and_shows_nothing_before(length: int) -> None:
    stream = sealed(content(length))
    assert opened(stream) == content(length)
    assert sealed(content(length)) != stream
    assert length < 100 or content(length)[:100] not in stream


@pytest.mark.parametrize(
    "end",
    [
        *(0, 5, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 15),
        *(HEAD_BYTES + SEALED_CHUNK_BYTES, HEAD_BYTES + 2 * SEALED_CHUNK_BYTES, -1),
    ],
)
def test_a_stream_that_is_cut_short_is_refused(end: int) -> None:
    stream = sealed(content(700_000))
    with pytest.raises(UnsealError):
        opened(stream[:end])


def test_a_stream_that_was_changed_anywhere_is_refused() -> None:
    stream = sealed(content(700_000))
    for place in (0, 20, HEAD_BYTES, HEAD_BYTES + SEALED_CHUNK_BYTES, len(stream) - 1):
        changed = bytearray(stream)
        changed[place] ^= 1
        with pytest.raises(UnsealError):
            opened(bytes(changed))
    with pytest.raises(UnsealError):
        opened(stream + b"\0")


def test_chunks_that_changed_places_and_another_key_are_refused() -> None:
    stream = sealed(content(3 * CHUNK_BYTES))
    head, chunks = stream[:HEAD_BYTES], stream[HEAD_BYTES:]
    one, two, rest = (
        chunks[:SEALED_CHUNK_BYTES],
        chunks[SEALED_CHUNK_BYTES : 2 * SEALED_CHUNK_BYTES],
        chunks[2 * SEALED_CHUNK_BYTES :],
    )
    for shuffled in (two + one + rest, one + rest, one + one + rest):
        with pytest.raises(UnsealError):
            opened(head + shuffled)
    with pytest.raises(UnsealError):
        SealedReader(io.BytesIO(stream), other_key_of).read()
