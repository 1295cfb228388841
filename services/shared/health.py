"""Health that is checked, not claimed: SERVING only while everything needed answers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

Check = Callable[[], Awaitable[None]]

# Asked by a liveness probe: the process turns its loop, whatever is away around it.
LIVENESS = "liveness"
_INTERVAL_SECONDS = 0.5
_CHECK_SECONDS = 2.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The state of this process, under "" and under the name of each service."""

    def __init__(self, services: Iterable[str], checks: Mapping[str, Check]) -> None:
        self.servicer = health_aio.HealthServicer()
        self._names = ["", *services]
        self._checks = checks
        self._failing: frozenset[str] | None = None

    async def watch(self) -> None:
        """Checks for ever."""
        await self.servicer.set(LIVENESS, _SERVING)
        while True:
            await self.check()
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def check(self) -> None:
        """Runs every check once and says what came of it."""
        results = await asyncio.gather(*(_passes(check) for check in self._checks.values()))
        failing = frozenset(
            name for name, passed in zip(self._checks, results, strict=True) if not passed
        )
        if failing == self._failing:
            return
        self._failing = failing
        structlog.get_logger().info("health", serving=not failing, failing=sorted(failing))
        await self._set(_NOT_SERVING if failing else _SERVING)

    async def drain(self) -> None:
        """Says NOT_SERVING for good."""
        await self.servicer.enter_graceful_shutdown()

    async def _set(self, status: int) -> None:
        for name in self._names:
            await self.servicer.set(name, status)


async def _passes(check: Check) -> bool:
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await check()
    except Exception as error:  # noqa: BLE001 whatever it is, the check did not pass
        structlog.get_logger().debug("check failed", error=type(error).__name__)
        return False
    return True
