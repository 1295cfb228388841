"""What a remembered key costs, and how soon a revoked one is forgotten everywhere.

`cached_us`: microseconds of one answer from memory, in a process that remembers 100,000 keys, each
asked of a real auth before; the median of the rounds. `revocation_p50_ms` and `_p99_ms`: from
RevokeKey's transaction until the last of 20 watchers has acknowledged it, both by the clock of the
database, while several are revoked at once, each watcher answers from memory, and others ask auth
for keys that nobody has. The stack has 3 watchers more. Everything shares the same cores.
"""

import argparse
import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from bench.stack import (
    CALL_SECONDS,
    Customer,
    bench_stack,
    customer,
    fresh_id,
    median,
    percentile,
    report,
    run,
    tell,
)
from deploy.local import postgres
from deploy.local.layout import Layout
from deploy.local.ports import LOOPBACK
from deploy.local.programs import Options
from deploy.local.stack import Addresses
from services.auth.pepper import Pepper
from services.shared.channel import open_channel
from services.shared.ids import new_key_id
from services.shared.key_resolver import KeyResolver, watching
from services.shared.keyformat import digest, hint, new_key
from services.shared.postgres import Database, open_database
from services.shared.principal import KeyKind
from services.shared.settings import PostgresSettings, ServiceSettings

_MIGRATIONS = Path("services/auth/migrations")
_BATCH = 1_000
_CACHED_CALLS = 20_000
_ASKERS = 2
_INSERT = """
    INSERT INTO keys (key_id, kind, tenant_id, digest, hint, name, scopes, issued_by, request_id)
    SELECT key_id, 'tenant', $1, digest, hint, 'bench', '{usage:read}', 'key_bench', key_id
    FROM unnest($2::text[], $3::bytea[], $4::text[]) AS made (key_id, digest, hint)
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each."""

    keys: int
    rounds: int
    watchers: int
    revocations: int
    at_once: int


async def measure(plan: Plan) -> dict[str, float | int]:
    """Returns the figures of one run."""
    async with (
        bench_stack(Options()) as addresses,
        customer(addresses, auth_pb2.PLAN_SCALE) as tenant,
        AsyncExitStack() as stack,
    ):
        keys = await _stored(addresses, tenant, plan.keys)
        watchers = [
            await stack.enter_async_context(_watcher(addresses)) for _ in range(plan.watchers)
        ]
        cached = await _cached(watchers[0], keys, plan.rounds)
        tell(f"a remembered key: {cached:.2f} µs")
        delays = await _revocations(addresses, tenant, watchers, keys, plan)
        tell(f"forgotten everywhere: {median(delays):.1f} ms")
    return {
        "cached_us": round(cached, 2),
        "revocation_p50_ms": round(percentile(delays, 50), 1),
        "revocation_p99_ms": round(percentile(delays, 99), 1),
        "keys": plan.keys,
        "watchers": plan.watchers,
        "revocations": plan.revocations,
        "at_once": plan.at_once,
    }


async def _stored(addresses: Addresses, tenant: Customer, number: int) -> list[bytes]:
    """Returns the digests of so many new keys, written into auth's own tables."""
    layout = Layout.of(addresses.state)
    pepper = Pepper((layout.secrets / "pepper").read_bytes().strip())
    created = await tenant.auth.GetTenant(auth_pb2.GetTenantRequest(), metadata=tenant.metadata)
    digests = []
    async with open_database(_database(layout), "auth", _MIGRATIONS) as database:
        for begin in range(0, number, _BATCH):
            made = [new_key(KeyKind.TENANT) for _ in range(min(_BATCH, number - begin))]
            digests += [digest(key) for key in made]
            await _insert(database, created.tenant.tenant_id, pepper, made)
    return digests


async def _insert(database: Database, tenant_id: str, pepper: Pepper, keys: Sequence[str]) -> None:
    async with database.service() as connection:
        await connection.execute(
            _INSERT,
            tenant_id,
            [new_key_id() for _ in keys],
            [pepper.apply(digest(key)) for key in keys],
            [hint(key) for key in keys],
        )


def _database(layout: Layout) -> PostgresSettings:
    return PostgresSettings(
        postgres_host=LOOPBACK,
        postgres_port=layout.kept_ports()["postgres"],
        postgres_database="auth",
        postgres_user="auth",
        postgres_password_file=postgres.password_file(layout.state, "auth"),
    )


@asynccontextmanager
async def _watcher(addresses: Addresses) -> AsyncIterator[KeyResolver]:
    """Yields a resolver of its own, as a service has it."""
    layout = Layout.of(addresses.state)
    target = f"{LOOPBACK}:{layout.kept_ports()['auth']}"
    async with (
        open_channel(_peer(layout), "auth", target) as channel,
        watching(KeyResolver(AuthServiceStub(channel))) as resolver,
    ):
        yield resolver


def _peer(layout: Layout) -> ServiceSettings:
    return ServiceSettings(
        tls_cert_file=layout.pki / "ratelimit.pem",
        tls_key_file=layout.pki / "ratelimit.key",
        tls_ca_file=layout.pki / "ca.pem",
    )


async def _cached(resolver: KeyResolver, keys: Sequence[bytes], rounds: int) -> float:
    """Returns the microseconds of one answer from memory; every key is remembered."""
    for begin in range(0, len(keys), _BATCH):
        answers = await resolver.resolve_all(keys[begin : begin + _BATCH])
        assert None not in answers
    asked = [secrets.choice(keys) for _ in range(_CACHED_CALLS)]
    measured = []
    for _ in range(rounds):
        began = time.perf_counter()
        for key_digest in asked:
            await resolver.resolve(key_digest)
        measured.append((time.perf_counter() - began) / len(asked) * 1e6)
        # The loop has other work, too: leases are kept.
        await asyncio.sleep(0.05)
    return median(measured)


async def _revocations(
    addresses: Addresses,
    tenant: Customer,
    watchers: Sequence[KeyResolver],
    keys: Sequence[bytes],
    plan: Plan,
) -> list[float]:
    """Returns how long each revocation took to hold everywhere, in milliseconds."""
    numbers = iter(range(plan.revocations))
    delays: list[float] = []

    async def revoke_one_after_the_other() -> None:
        delays.extend([await _revoked(tenant) for _ in numbers])

    async with _watcher(addresses) as asker:
        load = [asyncio.create_task(_answer(watcher, keys)) for watcher in watchers]
        load += [asyncio.create_task(_ask(asker)) for _ in range(_ASKERS)]
        try:
            await asyncio.gather(*(revoke_one_after_the_other() for _ in range(plan.at_once)))
        finally:
            for task in load:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
    return delays


async def _revoked(tenant: Customer) -> float:
    issued = await tenant.auth.IssueKey(
        auth_pb2.IssueKeyRequest(request_id=fresh_id()),
        metadata=tenant.metadata,
        timeout=CALL_SECONDS,
    )
    revoked = await tenant.auth.RevokeKey(
        auth_pb2.RevokeKeyRequest(key_id=issued.key_id),
        metadata=tenant.metadata,
        timeout=CALL_SECONDS,
    )
    held = revoked.effect.effective_at.ToNanoseconds()
    return (held - revoked.revoke_time.ToNanoseconds()) / 1e6


async def _answer(watcher: KeyResolver, keys: Sequence[bytes]) -> None:
    """Answers for some of the keys for ever."""
    own = random.sample(list(keys), 100)
    while True:
        await watcher.resolve_all(own)
        await asyncio.sleep(0.02)


async def _ask(asker: KeyResolver) -> None:
    """Asks auth for a key that nobody has, for ever."""
    for number in count():
        await asker.resolve(digest(f"{fresh_id()}{number}"))
        await asyncio.sleep(0.005)


def main() -> None:
    """Prints progress on standard error and the result as one JSON line, last."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench/resolve.py")
    parser.add_argument("--keys", type=int, default=100_000, help="keys remembered [100000]")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of 20,000 answers [7]")
    parser.add_argument("--watchers", type=int, default=20, help="watchers [20]")
    parser.add_argument("--revocations", type=int, default=500, help="keys revoked [500]")
    parser.add_argument("--at-once", type=int, default=2, help="revocations at once [2]")
    given = parser.parse_args()
    plan = Plan(given.keys, given.rounds, given.watchers, given.revocations, given.at_once)
    report("resolve", run(measure(plan)))


if __name__ == "__main__":
    main()
