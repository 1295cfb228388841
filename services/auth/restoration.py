"""What is to be done to auth's database after it was restored to an earlier moment.

Keys that were revoked since would be valid again. Which ones they are, the database cannot know:
auth says so in its log, in lines of the event `keys ended`, before a call that ends keys returns.
Without these lines every key is ended.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.auth import restoration_store, store
from services.auth.audit import new_event, record_with
from services.auth.domain import TENANT_SCOPES, IssuedKey, NewKey
from services.auth.ending_store import KEYS_ENDED
from services.auth.minting import Mint
from services.shared.ids import KeyId, TenantId, random_text
from services.shared.postgres import Connection, Database
from services.shared.principal import KeyKind

_BY = KeyId("key_restoration")
_METHOD = "services.auth.restored"


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done."""

    ended: int
    # By tenant: the key of each one that had none left.
    keys: Mapping[TenantId, IssuedKey]


class Restoration:
    """Makes a restored database safe to serve from; done twice it does no harm."""

    def __init__(self, database: Database, mint: Mint) -> None:
        self._database = database
        self._mint = mint

    async def end(self, ends: Mapping[KeyId, datetime] | None) -> int:
        """Ends the keys, each at its time; None: every key but the operator's.

        Returns how many were alive. No replica trusts what it remembers of keys from before.

        Raises:
            UnavailableError: the database is away; nothing is done.
        """
        async with self._database.service() as connection:
            await restoration_store.begin_anew(connection)
            if ends is None:
                ended = await restoration_store.end_every_key(connection)
            else:
                ended = await restoration_store.end_keys(connection, ends)
            await _record(connection, [None], f"restored: {ended} keys ended")
        return ended

    async def without_key(self) -> Sequence[TenantId]:
        """Returns the open tenants that no valid key of their own is left to."""
        async with self._database.service() as connection:
            return await restoration_store.tenants_without_key(connection)

    def minted(self, tenant_ids: Iterable[TenantId]) -> dict[TenantId, tuple[IssuedKey, NewKey]]:
        """Returns a key for each, which is not valid before `admit`: so none is lost on the way."""
        return {
            tenant_id: self._mint.key(
                KeyKind.TENANT, None, TENANT_SCOPES, _BY, f"restored/{random_text()}", "restored"
            )
            for tenant_id in tenant_ids
        }

    async def admit(self, keys: Mapping[TenantId, NewKey]) -> None:
        """Makes the keys valid, all or none, and says so in the tenants' logs and the operator's.

        Raises:
            UnavailableError: the database is away, or cannot record it; none is valid.
        """
        async with self._database.service() as connection:
            for tenant_id, key in sorted(keys.items()):
                await store.hold_tenant(connection, tenant_id)
                await store.insert_key(connection, tenant_id, key)
            await _record(connection, [None, *keys], "restored: a key for a tenant without one")


class UnreadableLineError(Exception):
    """A line speaks of keys that ended, and does not say which: it was cut, or written anew."""


def ended_keys(lines: Iterable[str]) -> dict[KeyId, datetime]:
    """Returns which keys end when, by the lines of auth's log; other lines are passed over.

    Of several ends of one key the earliest counts.

    Raises:
        UnreadableLineError: a line cannot be understood; its number, counted from 1, is told.
    """
    ends: dict[KeyId, datetime] = {}
    for number, line in enumerate(lines, 1):
        try:
            for key_id, at in _told(line):
                ends[key_id] = min(at, ends.get(key_id, at))
        except (KeyError, TypeError, ValueError, UnreadableLineError) as error:
            raise UnreadableLineError(str(number)) from error
    return ends


def _told(line: str) -> list[tuple[KeyId, datetime]]:
    if KEYS_ENDED not in line:
        return []
    events = [event for event in _objects(line) if "event" in event]
    if not events:
        # Passing over it could let a key live again.
        raise UnreadableLineError
    return [
        (KeyId(key_id), datetime.fromisoformat(event["at"]))
        for event in events
        if event["event"] == KEYS_ENDED
        for key_id in event["key_ids"]
    ]


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yields each JSON object in the text: collectors of logs put things around a line of ours."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            found, end = decoder.raw_decode(text, place)
        except ValueError:
            end = place + 1
        else:
            yield found
            for value in found.values():
                if isinstance(value, str):
                    yield from _objects(value)
        place = text.find("{", end)


async def _record(
    connection: Connection, tenant_ids: Sequence[TenantId | None], reason: str
) -> None:
    await record_with(connection, tenant_ids, new_event(_BY, "auth", _METHOD, {}, "", reason))
