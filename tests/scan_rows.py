"""What is left in rows of Postgres and in keys of Valkey; see `scan`."""

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeAlias

import asyncpg

from deploy.local.valkey import ValkeyServer
from tests.readable_valkey import reader

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Says that a tenant was; the tenant's id, and nothing else that is sought.
_OF_TENANTS: Final = frozenset(
    {
        ("auth", "tombstones"),
        ("ratelimit", "tombstones"),
        ("app_proxy", "tombstones"),
        ("provisioner", "tombstones"),
        ("credentials", "erasures"),
    }
)
# Ids of keys, for ever; without them a key would come alive again where revocations are followed.
_REVOCATIONS: Final = ("auth", "revocations")
# Kept until no replica can remember counts of the deployment; the id of it, and of its tenant.
_RELEASES: Final = ("ratelimit", "releases")
# For at most a minute, over what slow readers may still write.
_NOBODY: Final = b"-"
_NOBODY_SECONDS: Final = 60
_VALUE: Final = {
    b"string": "GET {0}",
    b"hash": "HGETALL {0}",
    b"list": "LRANGE {0} 0 -1",
    b"set": "SMEMBERS {0}",
    b"zset": "ZRANGE {0} 0 -1 WITHSCORES",
    b"stream": "XRANGE {0} - +",
}


@dataclass(frozen=True, slots=True)
class Names:
    """What nothing may be left of."""

    tenant: str
    deployments: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    # Names of buckets, ids of connections, and whatever was written as content.
    words: frozenset[str] = frozenset()
    ports: frozenset[int] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        """Every one of them but the ports."""
        every = {self.tenant} | self.deployments | self.hosts | self.keys | self.words
        assert all(len(name) > 5 for name in every), every
        return frozenset(every)


async def rows_left(connection: Connection, service: str, names: Names) -> list[str]:
    """Returns a sentence for each row of any table of the database that names any of them."""
    tables = await connection.fetch(
        "SELECT table_schema, table_name FROM information_schema.tables"
        " WHERE table_type = 'BASE TABLE'"
        " AND table_schema NOT IN ('pg_catalog', 'information_schema')"
    )
    found = []
    for schema, table in tables:
        rows = await connection.fetch(
            f'SELECT one::text AS text FROM "{schema}"."{table}" AS one'
            " WHERE one::text LIKE ANY($1)",
            # A bytea is written as the hexadecimal digits of its bytes.
            [f"%{form}%" for name in names.all for form in (name, name.encode().hex())],
        )
        found += [
            f"{service}: a row of {table} names {', '.join(sorted(named))}"
            for row in rows
            if not _may_stay((service, table), named := _named(row["text"], names.all), names)
        ]
    return found


def _named(text: str, names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if name in text or name.encode().hex() in text)


def _may_stay(table: tuple[str, str], named: frozenset[str], names: Names) -> bool:
    if table in _OF_TENANTS:
        return named == {names.tenant}
    if table == _REVOCATIONS:
        return named <= names.keys
    return table == _RELEASES and named <= names.deployments | {names.tenant}


async def keys_left(server: ValkeyServer, names: Names) -> list[str]:
    """Returns a sentence for each key of Valkey that names any of them, or whose value does."""
    found = []
    async with aclosing(reader(server)) as client:
        async for key in client.scan_iter(count=1_000):
            kind = await client.type(key)
            if kind not in _VALUE:
                # It has ended since.
                assert kind == b"none", kind
                continue
            command = [key if part == "{0}" else part for part in _VALUE[kind].split()]
            value = await client.execute_command(*command)  # type: ignore[no-untyped-call]
            named = _named_in(key, names.all) | _named_in(_flat(value), names.all)
            if named and not _is_forgotten(key, value, await client.ttl(key), named, names):
                found.append(f"valkey: {key.decode()} names {', '.join(sorted(named))}")
    return found


def _named_in(text: bytes, names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if name.encode() in text)


def _flat(value: object) -> bytes:
    """Returns all bytes of a value, however deep they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return _flat([*value.items()])
    if isinstance(value, Sequence | set):
        return b"\n".join(_flat(part) for part in value)
    return str(value).encode()


def _is_forgotten(
    key: bytes, value: object, seconds: int, named: frozenset[str], names: Names
) -> bool:
    """Whether it says that a host is nobody's, and only for a moment."""
    return (
        value == _NOBODY
        and 0 <= seconds <= _NOBODY_SECONDS
        and named <= names.hosts
        and key in {f"deploy:route:{host}".encode() for host in names.hosts}
    )
