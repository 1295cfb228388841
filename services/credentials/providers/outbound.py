"""Calls out of the mesh, to providers and webhooks: to public addresses only, bounded in all.

A tenant names a part of some URLs and the whole of others. The address is looked up and judged
here, and it is that very address which is connected to: a name that changes its mind between two
look-ups gains nothing.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Protocol

import httpcore
import httpx

MOST_ANSWER_BYTES = 256 << 10
# Before its body an answer may be so large, with all that comes before it: interim answers (RFC
# 9110, 15.2) can be many, and each is read by itself.
_MOST_HEAD_BYTES = 32 << 10
# What is read at once; others have their turn in between.
_READ_BYTES = 4 << 10
# What an address of version 6 can carry within: RFC 6052's prefix for translation to version 4.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Local by RFC 8215, 3879 and 6890, which not every release of Python knows.
_LOCAL = [ipaddress.ip_network(each) for each in ("64:ff9b:1::/48", "fec0::/10", "192.0.0.0/24")]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class OutboundSettings(Protocol):
    """What is to be known for calls out of the mesh."""

    @property
    def allow_private_targets(self) -> bool:
        """Whether they may go to private addresses, and in plaintext."""
        ...

    @property
    def provider_timeout_seconds(self) -> float:
        """How long one may take, with its answer."""
        ...


class AnswerTooLargeError(httpx.ReadError):
    """The answer is larger than any that makes sense; what was sent has been heeded."""


@asynccontextmanager
async def open_outbound(settings: OutboundSettings) -> AsyncIterator[httpx.AsyncClient]:
    """Yields the client for calls out of the mesh.

    It follows no redirect, keeps no cookie, heeds no proxy of the environment. A request raises
    httpx's ConnectError, ConnectTimeout or UnsupportedProtocol when nothing of it was sent, and any
    other TransportError when something may have been.
    """
    transport = _Transport(
        settings.provider_timeout_seconds, private=settings.allow_private_targets
    )
    async with httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=settings.provider_timeout_seconds,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"accept-encoding": "identity"},
    ) as client:
        yield client


def is_public(address: str) -> bool:
    """Returns whether an IP address belongs to the Internet at large.

    What version 6 carries of version 4 (mapped, 6to4, translated) is judged as that.
    """
    parsed = _carried(ipaddress.ip_address(address.partition("%")[0]))
    return (
        parsed.is_global
        and not (parsed.is_multicast or parsed.is_reserved or parsed.is_unspecified)
        and not any(parsed in network for network in _LOCAL)
    )


def _carried(address: _Address) -> _Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that may be called, and to no others."""

    def __init__(self, meter: "_Meter", *, private: bool) -> None:
        self._meter = meter
        self._private = private
        self._connecting = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 as httpcore has it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Returns a stream to the first address of `host` that may be called and answers."""
        failure: Exception = httpcore.ConnectError("no address that may be called")
        addresses = await self._addresses(host, port)
        share = timeout / len(addresses) if timeout and addresses else timeout
        for address in addresses:
            try:
                stream = await self._connecting.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Bounded(stream, self._meter)
        raise failure

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the name is not known") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        return [each for each in addresses if self._private or is_public(each)]


@dataclass
class _Progress:
    """Whether anything of a request may have left."""

    sent: bool = False

    async def trace(self, event: str, _details: Mapping[str, Any]) -> None:
        """Notes that the headers are on their way; httpcore calls this as it goes."""
        self.sent = self.sent or event == "http11.send_request_headers.started"


class _Bounded(httpcore.AsyncNetworkStream):
    """A stream of which little is read at once, and no more in all than an answer may have."""

    def __init__(self, inner: httpcore.AsyncNetworkStream, meter: "_Meter") -> None:
        self._inner = inner
        self._meter = meter

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Returns what has come, a little of it."""
        # Whoever sends without a pause must not have the event loop for itself (P-38).
        await asyncio.sleep(0)
        content = await self._inner.read(min(max_bytes, _READ_BYTES), timeout)
        self._meter.count(len(content))
        return content

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Sends."""
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        """Ends the connection."""
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Returns the same stream, in TLS, as bounded."""
        secured = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        return _Bounded(secured, self._meter)

    def get_extra_info(self, info: str) -> Any:
        """Returns what httpcore asks of the connection."""
        return self._inner.get_extra_info(info)


class _Meter:
    """Counts what one answer brings."""

    def __init__(self) -> None:
        self._left = _MOST_HEAD_BYTES
        self._in_head = True

    def count(self, size: int) -> None:
        """Counts `size` more bytes.

        Raises:
            httpcore.ReadError: it is too many.
        """
        self._left -= size
        if self._left < 0:
            what = "head" if self._in_head else "body"
            raise httpcore.ReadError(f"the answer's {what} is too large")

    def head_is_read(self) -> None:
        """Lets the body come. Its framing counts too, and may be as large again."""
        self._in_head = False
        self._left = 2 * MOST_ANSWER_BYTES


class _Transport(httpx.AsyncBaseTransport):
    """One request, one connection, one answer read whole, all within one time.

    Without a pool: a connection that the other side has closed meanwhile would take a request and
    give no answer, so that what was sent on it counts as lost. And who hangs holds up nobody else.
    How many there are at once is for those to bound who know on whose behalf they call.
    """

    def __init__(self, seconds: float, *, private: bool) -> None:
        self._seconds = seconds
        self._private = private
        self._tls = httpx.create_ssl_context()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Returns the answer with its whole body."""
        if request.url.scheme != "https" and not (self._private and request.url.scheme == "http"):
            raise httpx.UnsupportedProtocol("only https is called", request=request)
        progress = _Progress()
        with _as_httpx(request, progress):
            async with asyncio.timeout(self._seconds):
                return await self._answered(request, progress)

    async def _answered(self, request: httpx.Request, progress: _Progress) -> httpx.Response:
        asked, meter = _for_httpcore(request, progress), _Meter()
        connection = httpcore.AsyncHTTPConnection(
            asked.url.origin,
            ssl_context=self._tls,
            network_backend=_Backend(meter, private=self._private),
        )
        try:
            answer = await connection.handle_async_request(asked)
            meter.head_is_read()
            body = await _bounded(answer, request)
        finally:
            await connection.aclose()
        # Nothing is unpacked: a small answer could become a very large one.
        headers = [each for each in answer.headers if each[0].lower() != b"content-encoding"]
        return httpx.Response(answer.status, headers=headers, content=body)


def _for_httpcore(request: httpx.Request, progress: _Progress) -> httpcore.Request:
    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        ),
        headers=request.headers.raw,
        content=request.stream,
        extensions={**request.extensions, "trace": progress.trace},
    )


async def _bounded(answer: httpcore.Response, request: httpx.Request) -> bytes:
    body = bytearray()
    async for part in answer.aiter_stream():
        body += part
        if len(body) > MOST_ANSWER_BYTES:
            raise AnswerTooLargeError(f"more than {MOST_ANSWER_BYTES} bytes", request=request)
    return bytes(body)


@contextmanager
def _as_httpx(request: httpx.Request, progress: _Progress) -> Iterator[None]:
    try:
        yield
    except (TimeoutError, httpcore.TimeoutException) as error:
        kind: type[httpx.TransportError] = (
            httpx.ReadTimeout if progress.sent else httpx.ConnectTimeout
        )
        raise kind(type(error).__name__, request=request) from error
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
        kind = httpx.ReadError if progress.sent else httpx.ConnectError
        raise kind(type(error).__name__, request=request) from error
