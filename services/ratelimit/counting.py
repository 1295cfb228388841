"""Puts together what counts: Valkey, the durable months, and life without Valkey."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog

from services.ratelimit.checkpoints import Checkpoints
from services.ratelimit.circuit import Circuit
from services.ratelimit.memory import Memory
from services.ratelimit.replay import Replay
from services.ratelimit.replay_store import ReplayStore
from services.ratelimit.replica_store import ReplicaStore
from services.ratelimit.replicas import BEAT_SECONDS, REMEMBERED_SECONDS, Replicas
from services.ratelimit.settings import Settings
from services.ratelimit.store import CounterStore
from services.ratelimit.usage_store import UsageStore
from services.shared.background import background
from services.shared.errors import UnavailableError
from services.shared.postgres import Database
from services.shared.redis import Valkey

_FORGET_SECONDS: Final = 60.0


@asynccontextmanager
async def counting(
    settings: Settings, valkey: Valkey, database: Database, memory: Memory | None = None
) -> AsyncIterator[Circuit]:
    """Yields who decides; at the end everything is written down: a clean restart loses nothing."""
    memory = memory or Memory.new()
    replica_id, ledger, own = memory.replica_id, memory.ledger, memory.own
    patience = settings.valkey_patience_seconds
    usage, who = UsageStore(database), ReplicaStore(database)
    checkpoints = Checkpoints(usage, ledger, own, settings.month_patience_seconds)
    replay = Replay(ReplayStore(valkey, patience), usage, own, checkpoints, replica_id)
    replicas = Replicas(
        who, replica_id, max(REMEMBERED_SECONDS, 2 * settings.valkey_outage_seconds)
    )
    counters = CounterStore(valkey, checkpoints, patience)
    circuit = Circuit(
        counters, ledger, own, checkpoints, replay, replicas, settings.valkey_outage_seconds
    )

    async def forget() -> None:
        await checkpoints.forget(time.time_ns() // 1_000)

    async def beat() -> None:
        await replicas.beat(time.monotonic())

    async with AsyncExitStack() as stack:
        stack.push_async_callback(_tried, "replicas", lambda: who.leave(replica_id))
        stack.push_async_callback(_tried, "checkpoints", checkpoints.save)
        for name, step, seconds in (
            ("replicas", beat, BEAT_SECONDS),
            ("valkey", circuit.look, settings.valkey_probe_seconds),
            ("checkpoints", checkpoints.save, settings.checkpoint_seconds),
            ("replay", circuit.replay_others, settings.checkpoint_seconds),
            ("forgetting", forget, _FORGET_SECONDS),
        ):
            await stack.enter_async_context(background(_repeat(name, step, seconds)))
        yield circuit


async def _repeat(name: str, step: Callable[[], Awaitable[object]], seconds: float) -> None:
    while True:
        await _tried(name, step)
        await asyncio.sleep(seconds)


async def _tried(name: str, step: Callable[[], Awaitable[object]]) -> None:
    try:
        await step()
    except UnavailableError as error:
        structlog.get_logger().debug("tried again later", step=name, error=error.message)
    except Exception:  # noqa: BLE001 whatever it is, the next time may go well, and calls are decided
        structlog.get_logger().exception("a step failed", step=name)
