"""The counters in Valkey: one atomic script call for a whole batch, one per shard on a cluster."""

import asyncio
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, NamedTuple

from redis.exceptions import NoScriptError

from services.ratelimit.domain import Decision, Limits, MonthFloors, Reading, Take, undecided
from services.ratelimit.leases import Grant, LeaseId, Return, Returned, Want, lease_id, named
from services.ratelimit.months import Month, month_at
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId
from services.shared.redis import Valkey, is_cluster, valkey_errors

# Hash tags that deployments share. A cluster keeps a tag in one slot and a script sees one slot, so
# a batch is as many calls as there are tags in it: at most this many, however many its items. More
# would spread better over nodes, fewer would make larger calls. It can never change: a counter
# would be lost under its new name.
SHARDS: Final = 64
# Script calls under way at once; fewer than the client's connections, which do not queue.
_LANES: Final = 32
_DECISIONS: Final = (Decision.ALLOWED, Decision.BURST_EXCEEDED, Decision.QUOTA_EXCEEDED)
_MONTH_UNKNOWN: Final = 3
_PER_ITEM: Final = 6
# Before any month: the server's clock is learnt from its first answer.
_NO_MONTH: Final = Month("", 0, 0)


def script_text(name: str) -> str:
    """Returns the script `name` with what it shares with the other."""
    folder = resources.files(__package__ or __name__)
    return f"{(folder / 'bucket.lua').read_text()}\n{(folder / name).read_text()}"


def shard_of(deployment_id: DeploymentId) -> str:
    """Returns the hash tag of the deployment's counters: `00` to `63`."""
    return f"{zlib.crc32(deployment_id.encode()) % SHARDS:02}"


def bucket_key(deployment_id: DeploymentId) -> str:
    """Returns where the bucket is."""
    return f"limit:{{{shard_of(deployment_id)}}}:{deployment_id}:gcra"


def month_key(deployment_id: DeploymentId, month: str) -> str:
    """Returns where the count of the month (as `2026-11`) is."""
    return f"limit:{{{shard_of(deployment_id)}}}:{deployment_id}:{month}"


class _Item(NamedTuple):
    deployment_id: DeploymentId
    limits: Limits
    calls: int
    # Empty for a take.
    token: str


class _Answer(NamedTuple):
    granted: int
    reading: Reading


Floors = dict[tuple[DeploymentId, str], int]


@dataclass(frozen=True, slots=True)
class Script:
    """A script, and the digest by which a server knows it once it has seen it."""

    text: str
    digest: str

    @classmethod
    def read(cls, name: str) -> "Script":
        """Returns the script `name` of this folder."""
        text = script_text(name)
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class CounterStore:
    """Takes calls from the counters of deployments, and leases them."""

    def __init__(self, valkey: Valkey, floors: MonthFloors, patience_seconds: float) -> None:
        self._valkey = valkey
        self._floors = floors
        self._patience = patience_seconds
        self._cluster = is_cluster(valkey)
        self._acquire = Script.read("acquire.lua")
        self._give_back = Script.read("give_back.lua")
        self._lanes = asyncio.Semaphore(_LANES)
        self._month = _NO_MONTH

    async def take(self, takes: Sequence[Take], now_us: int | None = None) -> list[Reading]:
        """Returns one reading per take, in order; takes of one deployment are decided in order.

        The time is the server's unless `now_us` (microseconds since the epoch) says otherwise. In
        one batch a deployment has one set of limits: those of its last take.

        Raises:
            UnavailableError: Valkey is away, or slower than the patience. Some of the calls may
                have been counted, never too few.
        """
        items = [_Item(take.deployment_id, take.limits, take.cost, "") for take in takes]
        return [answer.reading for answer in await self._decided(items, now_us)]

    async def lease(self, wants: Sequence[Want], now_us: int | None = None) -> list[Grant]:
        """Returns one grant per want, in order; what is granted counts as taken until it is back.

        Raises:
            UnavailableError: as `take`.
        """
        items = [_Item(want.deployment_id, want.limits, want.calls, want.token) for want in wants]
        answers = await self._decided(items, now_us)
        return [_grant(want, answer) for want, answer in zip(wants, answers, strict=True)]

    async def give_back(
        self, returns: Sequence[Return], now_us: int | None = None
    ) -> list[Returned | None]:
        """Returns what came back per lease, in order; None for what is no id of a lease.

        Raises:
            UnavailableError: Valkey is away, or slower than the patience.
        """
        results: list[Returned | None] = [None] * len(returns)
        known = [at for at, item in enumerate(returns) if named(item.lease_id)]
        groups = self._grouped(known, [item.lease_id for item in returns])
        done = await asyncio.gather(
            *(self._returned([returns[at] for at in group], now_us) for group in groups)
        )
        for group, answers in zip(groups, done, strict=True):
            for at, answer in zip(group, answers, strict=True):
                results[at] = answer
        return results

    async def check(self) -> None:
        """Returns when Valkey answers.

        Raises:
            UnavailableError: it is away.
        """
        with valkey_errors():
            async with asyncio.timeout(self._patience), self._lanes:
                await self._valkey.ping()

    async def _decided(self, items: list[_Item], now_us: int | None) -> list[_Answer]:
        results: list[_Answer | None] = [None] * len(items)
        pending = list(range(len(items)))
        floors: Floors = {}
        while pending:
            unknown = await self._attempt(items, pending, results, floors, now_us)
            pending = []
            for month, (at_us, missing) in unknown.items():
                if await self._ask({items[at].deployment_id for at in missing}, month.name, floors):
                    pending += missing
                    continue
                # Theirs alone: the others of the batch are decided.
                for at in missing:
                    results[at] = _Answer(0, undecided(at_us, month))
            # In a batch, takes of one deployment are decided in order.
            pending.sort()
        return [answer for answer in results if answer is not None]

    async def _attempt(
        self,
        items: Sequence[_Item],
        positions: Sequence[int],
        results: "list[_Answer | None]",
        floors: Floors,
        now_us: int | None,
    ) -> dict[Month, tuple[int, list[int]]]:
        """Puts what was decided in its place; returns when and where a month is unknown."""
        groups = self._grouped(positions, [item.deployment_id for item in items])
        done = await asyncio.gather(
            *(self._run([items[at] for at in group], floors, now_us) for group in groups)
        )
        unknown: dict[Month, tuple[int, list[int]]] = {}
        for group, (month, answer) in zip(groups, done, strict=True):
            if missing := _fill(results, group, month, answer):
                unknown.setdefault(month, (answer[0], []))[1].extend(missing)
        return unknown

    async def _ask(self, wanted: set[DeploymentId], month: str, floors: Floors) -> bool:
        """Returns whether it is known by now what their months count from."""
        ordered = sorted(wanted)
        try:
            counts = await self._floors.floors(ordered, month) if ordered else ()
        except UnavailableError:
            return False
        for deployment_id, count in zip(ordered, counts, strict=True):
            floors[deployment_id, month] = count
        return True

    def _grouped(self, positions: Iterable[int], names: Sequence[str]) -> list[list[int]]:
        """Returns the positions by shard on a cluster; together otherwise."""
        if not self._cluster:
            return [list(positions)]
        groups: dict[str, list[int]] = {}
        for at in positions:
            deployment_id = DeploymentId(names[at].partition(".")[0])
            groups.setdefault(shard_of(deployment_id), []).append(at)
        return list(groups.values())

    async def _run(
        self, items: Sequence[_Item], floors: Floors, now_us: int | None
    ) -> tuple[Month, list[int]]:
        while True:
            month = self._month if now_us is None else month_at(now_us)
            answer = await self._call(self._acquire, *_arguments(items, month, floors, now_us))
            if len(answer) > 1:
                return month, answer
            # A month ended, by the clock of the server, which alone counts.
            self._month = month_at(answer[0])

    async def _returned(self, returns: Sequence[Return], now_us: int | None) -> list[Returned]:
        ids = [found for item in returns if (found := named(item.lease_id))]
        if not ids:
            return []
        keys: list[str] = []
        arguments: list[str | int] = ["" if now_us is None else now_us]
        for lease, item in zip(ids, returns, strict=True):
            keys += (bucket_key(lease.deployment_id), month_key(lease.deployment_id, lease.month))
            arguments += (f"{lease.month}.{lease.token}", item.unused)
        answer = await self._call(self._give_back, keys, arguments)
        return [
            Returned(back, lease.deployment_id, lease.month, used if used >= 0 else None)
            for lease, back, used in zip(ids, answer[::2], answer[1::2], strict=True)
        ]

    async def _call(
        self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]
    ) -> list[int]:
        with valkey_errors():
            async with asyncio.timeout(self._patience), self._lanes:
                rest: tuple[Any, ...] = (len(keys), *keys, *arguments)
                try:
                    answer = await self._valkey.execute_command("EVALSHA", script.digest, *rest)
                except NoScriptError:
                    # The server has restarted and forgot the script: its text teaches it again.
                    answer = await self._valkey.execute_command("EVAL", script.text, *rest)
        return list(answer)


def _arguments(
    items: Sequence[_Item], month: Month, floors: Floors, now_us: int | None
) -> tuple[list[str], list[str | int]]:
    """Returns KEYS and ARGV of `acquire.lua`."""
    limits_of = {item.deployment_id: item.limits for item in items}
    numbers = {deployment_id: at for at, deployment_id in enumerate(limits_of, 1)}
    keys: list[str] = []
    rows: list[str] = []
    for deployment_id, limits in limits_of.items():
        prefix = f"limit:{{{shard_of(deployment_id)}}}:{deployment_id}:"
        keys += (f"{prefix}gcra", f"{prefix}{month.name}")
        monthly = -1 if limits.monthly is None else limits.monthly
        floor = floors.get((deployment_id, month.name), -1) if floors else -1
        rows.append(f"{limits.ceiling.interval_us} {limits.ceiling.burst} {monthly} {floor}")
    calls = [
        f"{numbers[deployment_id]} {wanted} {f'{month.name}.{token}' if token else '-'}"
        for deployment_id, _, wanted, token in items
    ]
    now: str | int = "" if now_us is None else now_us
    return keys, [now, month.begins_us, month.ends_us, " ".join(rows), " ".join(calls)]


def _fill(
    results: "list[_Answer | None]", group: Sequence[int], month: Month, answer: Sequence[int]
) -> list[int]:
    """Puts the answers of `group` in their places; returns those places whose month is unknown."""
    now_us, unknown, start = answer[0], [], 1
    for at in group:
        decision, granted, wait, used, left, reset = answer[start : start + _PER_ITEM]
        start += _PER_ITEM
        if decision == _MONTH_UNKNOWN:
            unknown.append(at)
            continue
        # 0: admitted; -1: no wait will help.
        wait_us = wait if wait > 0 else None
        reading = Reading(_DECISIONS[decision], wait_us, used, left, reset, now_us, month)
        results[at] = _Answer(granted, reading)
    return unknown


def _grant(want: Want, answer: _Answer) -> Grant:
    if answer.reading.decision is not Decision.ALLOWED:
        return Grant(LeaseId(""), 0, answer.reading)
    name = lease_id(want.deployment_id, answer.reading.month.name, want.token)
    return Grant(name, answer.granted, answer.reading)
