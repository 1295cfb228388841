"""Calls out of the mesh: where they go, what they bring along and how much they take."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from services.credentials.providers.outbound import (
    MOST_ANSWER_BYTES,
    AnswerTooLargeError,
    is_public,
    open_outbound,
)
from tests.provider_double import raw_answer

Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Terms:
    allow_private_targets: bool = True
    provider_timeout_seconds: float = 10.0


@asynccontextmanager
async def target(
    answer: bytes = b"", answering: Answering | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Yields a port on which each request is answered so, and what arrived there."""
    arrived: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        arrived.append(b"")
        arrived[-1] = await reader.read(65_536)
        if answering is not None:
            await answering(reader, writer)
            return
        writer.write(answer)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, host, 0)
    try:
        yield listener.sockets[0].getsockname()[1], arrived
    finally:
        listener.close()
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",  # noqa: S104 refused
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::1",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b:1::7f00:1",
        "fec0::1",
        "2001::1",
        "192.0.0.8",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
    ],
)
def test_an_address_that_is_not_the_internets_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "140.82.121.4", "2606:4700:4700::1111", "::ffff:8.8.8.8"],
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.promise("P-33")
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0.0.0.0",  # noqa: S104 refused
        "[::ffff:127.0.0.1]",
    ],
)
async def test_nothing_private_is_ever_connected_to(host: str) -> None:
    async with target(raw_answer(200, "secrets")) as (port, arrived):
        async with open_outbound(Terms(allow_private_targets=False)) as http:
            with pytest.raises(httpx.ConnectError, match="ConnectError"):
                await http.get(f"https://{host}:{port}/")
        assert arrived == []
        # The same is heard when it may be: what kept it away was its address.
        async with open_outbound(Terms()) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(f"https://{host}:{port}/")
        assert len(arrived) == 1


async def test_plaintext_is_called_nowhere_in_public() -> None:
    async with target(raw_answer(200, "")) as (port, arrived):
        async with open_outbound(Terms(allow_private_targets=False)) as http:
            for url in (f"http://127.0.0.1:{port}/", "ftp://example.org/"):
                with pytest.raises(httpx.UnsupportedProtocol):
                    await http.get(url)
        assert arrived == []


async def test_a_certificate_that_nobody_vouches_for_gets_nothing() -> None:
    async with target(b"") as (port, arrived):
        async with open_outbound(Terms()) as http:
            with pytest.raises(httpx.ConnectError):
                await http.post(f"https://localhost:{port}/", content=b"a secret")
        assert not any(b"a secret" in request for request in arrived)


async def test_redirects_are_not_followed_and_cookies_not_kept() -> None:
    answer = raw_answer(302, "", location="http://127.0.0.1:1/", set_cookie="a=b")
    async with target(answer) as (port, arrived), open_outbound(Terms()) as http:
        for _ in range(2):
            assert (await http.get(f"http://127.0.0.1:{port}/")).status_code == httpx.codes.FOUND
        assert b"cookie" not in arrived[1].lower()


async def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        target(raw_answer(200, "proxy")) as (proxy, asked),
        target(raw_answer(200, "it")) as (port, _),
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        async with open_outbound(Terms()) as http:
            assert (await http.get(f"http://127.0.0.1:{port}/")).text == "it"
        assert asked == []


@pytest.mark.parametrize("size", [MOST_ANSWER_BYTES, MOST_ANSWER_BYTES + 1])
async def test_an_answer_has_a_bound(size: int) -> None:
    async with target(raw_answer(200, "x" * size)) as (port, _), open_outbound(Terms()) as http:
        asked = http.get(f"http://127.0.0.1:{port}/")
        if size <= MOST_ANSWER_BYTES:
            assert len((await asked).content) == size
            return
        with pytest.raises(AnswerTooLargeError):
            await asked


async def test_nothing_is_unpacked() -> None:
    packed = gzip.compress(b"x" * 10_000_000)
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n"
    async with target(head.encode() + packed) as (port, arrived), open_outbound(Terms()) as http:
        assert (await http.get(f"http://127.0.0.1:{port}/")).content == packed
        assert b"accept-encoding: identity" in arrived[0].lower()


async def test_an_answer_that_trickles_has_its_time() -> None:
    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)

    hasty = Terms(provider_timeout_seconds=0.5)
    async with target(answering=trickle) as (port, _), open_outbound(hasty) as http:
        with pytest.raises(httpx.ReadTimeout):
            await asyncio.wait_for(http.get(f"http://127.0.0.1:{port}/"), 30)


async def test_a_connection_that_ends_without_an_answer_may_have_been_heeded() -> None:
    async with target(b"") as (port, arrived), open_outbound(Terms()) as http:
        with pytest.raises(httpx.ReadError):
            await http.post(f"http://127.0.0.1:{port}/", content=b"something")
        assert arrived[0].endswith(b"something")


async def test_each_request_has_a_connection_of_its_own() -> None:
    # One that the other side closed meanwhile would take a request and lose it.
    connections = 0

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await reader.read()

    async with target(answering=answering) as (port, _), open_outbound(Terms()) as http:
        for _ in range(3):
            assert (await http.get(f"http://127.0.0.1:{port}/")).text == "ok"
    assert connections == 3


@pytest.mark.promise("P-38")
@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["interim answers", "small chunks"],
)
async def test_an_answer_without_end_is_given_up_and_lets_others_have_their_turn(
    begin: bytes, again: bytes
) -> None:
    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while not writer.is_closing():
            writer.write(again * 1_000)
            await writer.drain()

    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with target(answering=endless) as (port, _), open_outbound(Terms(True, 60.0)) as http:
        beside = asyncio.create_task(other())
        with pytest.raises(httpx.ReadError):
            await asyncio.wait_for(http.get(f"http://127.0.0.1:{port}/"), 30)
        beside.cancel()
    # Of the 32 KiB and more that are read, 4 at once.
    assert turns >= 8


@pytest.mark.promise("P-38")
async def test_calls_that_nobody_answers_hold_up_no_other_call() -> None:
    silent = asyncio.Event()

    async def never(*_: asyncio.StreamReader | asyncio.StreamWriter) -> None:
        await silent.wait()

    async with (
        target(answering=never) as (hanging, arrived),
        target(raw_answer(200, "it")) as (port, _),
        open_outbound(Terms(True, 60.0)) as http,
    ):
        asked = [asyncio.create_task(http.get(f"http://127.0.0.1:{hanging}/")) for _ in range(200)]
        while len(arrived) < len(asked):
            await asyncio.sleep(0.01)
        assert (await http.get(f"http://127.0.0.1:{port}/")).text == "it"
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert (await http.get(f"http://127.0.0.1:{port}/")).text == "it"
        silent.set()
