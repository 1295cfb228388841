"""Sends one and the same HTTP/1.1 request over and over, and says how often it was answered.

`python bench/load.py` reads jobs from standard input (a key does not belong on a command line), a
line of JSON each, and prints the result of each when it is done, as JSON too. It is a process of
its own, on the same cores as what it measures: its own share of the work is in every figure.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import cast

import uvloop

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"
_PATIENCE_SECONDS = 10.0
# A result has a latency for each answer.
_MOST_RESULT_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Job:
    """What to send, where to, how often at once and for how long."""

    port: int
    host: str
    path: str
    key: str
    # The only status that is right; any other ends the run.
    status: int
    connections: int
    seconds: float

    @property
    def request(self) -> bytes:
        """The request as it travels."""
        lines = (
            f"GET {self.path} HTTP/1.1",
            f"host: {self.host}",
            f"authorization: Bearer {self.key}",
            "user-agent: bench",
            "accept: application/json",
        )
        return "\r\n".join((*lines, "", "")).encode()


@dataclass(frozen=True, slots=True)
class Result:
    """How many answers came in how many seconds, and how long each took, in milliseconds."""

    answers: int
    seconds: float
    latencies_ms: list[float]

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


Send = Callable[[Job], Awaitable[Result]]


class WrongAnswerError(Exception):
    """An answer had another status than the expected one."""


class Sender(asyncio.Protocol):
    """One connection: one request at a time, the next as soon as the answer is whole."""

    def __init__(self, job: Job, until: float, done: "asyncio.Future[list[float]]") -> None:
        self._request = job.request
        self._expected = f"HTTP/1.1 {job.status} ".encode()
        self._until = until
        self._done = done
        self._latencies: list[float] = []
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the first request."""
        # Not asked by isinstance: uvloop's own transports do not say so.
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Sends the next request when an answer is whole, until the time is over."""
        self._buffer += data
        head, found, body = self._buffer.partition(_END_OF_HEAD)
        if not found or len(body) < _body_length(head):
            return
        now = perf_counter()
        if not head.startswith(self._expected):
            self._end(WrongAnswerError(self._buffer[:400].decode(errors="replace")))
            return
        self._latencies.append((now - self._sent) * 1_000)
        self._buffer = b""
        if now < self._until:
            self._send()
        else:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the run when the other side closed the connection."""
        self._end(exc or ConnectionError("the connection was closed"))

    def _send(self) -> None:
        self._sent = perf_counter()
        self._transport.write(self._request)

    def _end(self, error: Exception | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(self._latencies)
        else:
            self._done.set_exception(error)
        self._transport.close()


async def run(job: Job) -> Result:
    """Returns what was measured.

    Raises:
        WrongAnswerError: an answer had another status.
        ConnectionError: a connection was refused or closed.
        TimeoutError: an answer did not come within 10 s of the end.
    """
    loop = asyncio.get_running_loop()
    started = perf_counter()
    until = started + job.seconds
    ends: list[asyncio.Future[list[float]]] = [loop.create_future() for _ in range(job.connections)]
    for end in ends:
        await loop.create_connection(lambda end=end: Sender(job, until, end), "127.0.0.1", job.port)  # type: ignore[misc]
    async with asyncio.timeout(job.seconds + _PATIENCE_SECONDS):
        latencies = [each for end in await asyncio.gather(*ends) for each in end]
    return Result(len(latencies), perf_counter() - started, latencies)


def _body_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(_LENGTH):
            return int(line[len(_LENGTH) :])
    raise WrongAnswerError(f"an answer without content-length: {head[:400]!r}")


@asynccontextmanager
async def load_generator() -> AsyncIterator[Send]:
    """Yields what has jobs done, one after the other, by one process that lives for the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_MOST_RESULT_BYTES,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    jobs, results = process.stdin, process.stdout

    async def send(job: Job) -> Result:
        jobs.write(json.dumps(asdict(job)).encode() + b"\n")
        result = await results.readline()
        if not result:
            raise SystemExit("the load generator ended early; its reason stands above")
        return Result(**json.loads(result))

    try:
        yield send
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def main() -> None:
    """Runs the jobs on standard input."""
    if sys.argv[1:]:
        sys.exit(__doc__)
    for line in sys.stdin:
        result = uvloop.run(run(Job(**json.loads(line))))
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
