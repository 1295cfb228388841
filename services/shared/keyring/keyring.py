"""The key-encryption keys: how they stand, a new one in their place, the end of an old one."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.shared.crypto import KekId, KeyEncryptionKeys
from services.shared.errors import (
    BulkheadError,
    FailedPreconditionError,
    NotFoundError,
    Reason,
)
from services.shared.keyring import store
from services.shared.keyring.rewrapping import Rewrapping
from services.shared.keyring.store import Standing
from services.shared.postgres import Connection, Database
from services.shared.settings import UnusableFileError


@dataclass(frozen=True, slots=True)
class KeyEncryptionKey:
    """One of them, without what it is."""

    kek_id: KekId
    current: bool
    # Data keys that are under it.
    data_keys: int
    # The holder has it.
    usable: bool


@dataclass(frozen=True, slots=True)
class KeyringStatus:
    """How the keyring stands."""

    # `file`, `mounted` or `transit`.
    holder: str
    # The current one first.
    keys: Sequence[KeyEncryptionKey]
    # Data keys that are not under the current one.
    to_wrap: int
    # Of these, those that could not be unwrapped.
    unreadable: int


class Keyring:
    """What the operator asks of the key-encryption keys."""

    def __init__(self, database: Database, keks: KeyEncryptionKeys, rewrapping: Rewrapping) -> None:
        self._database = database
        self._keks = keks
        self._rewrapping = rewrapping

    async def status(self) -> KeyringStatus:
        """Returns how the keyring stands.

        Raises:
            UnavailableError: the holder is away.
        """
        known = await self._keks.known()
        async with self._database.service() as connection:
            usage = await store.usage(connection)
        listed = [*known, *(kek for kek in usage if kek not in known)]
        others = [count for kek, count in usage.items() if kek != known[0]]
        return KeyringStatus(
            self._keks.holder,
            [_key(kek, known, usage) for kek in listed],
            sum(count.data_keys for count in others),
            sum(count.unreadable for count in others),
        )

    async def verify(self) -> None:
        """Returns when the holder has keys that data keys are under, or there is no data key.

        Raises:
            UnusableFileError: it has none of them, so that nothing could be read.
            UnavailableError: the holder is away.
        """
        keys = (await self.status()).keys
        missing = [key for key in keys if not key.usable]
        for key in missing:
            log = structlog.get_logger()
            log.error("a key-encryption key is missing", kek_id=key.kek_id, data_keys=key.data_keys)
        if missing and not any(key.data_keys for key in keys if key.usable):
            raise UnusableFileError(
                f"BULKHEAD_KEYRING: the {self._keks.holder} keyring has none of the keys that the"
                f" data keys are under, as {missing[0].kek_id}: bring it back, or name the right"
                " one"
            )

    async def rotate(self) -> tuple[KekId, int]:
        """Returns the current key, and how many data keys are yet to be wrapped under it.

        It is a new one, unless a rotation is under way or the holder makes none.

        Raises:
            UnavailableError: the holder is away.
        """
        async with self._database.service() as connection:
            await store.hold_rotation(connection)
            kek = await self._keks.current()
            if not await _wrapping(connection, kek):
                kek = await self._created(kek)
            await store.choose(connection, kek)
            usage = await store.usage(connection)
        self._rewrapping.wake()
        return kek, sum(count.data_keys for other, count in usage.items() if other != kek)

    async def destroy(self, kek: KekId) -> None:
        """Destroys a key for good. It can be repeated, also when it was interrupted.

        Raises:
            NotFoundError: there is none of that id.
            FailedPreconditionError: it is the current one, data keys are under it, or the holder
                lets us destroy none.
            UnavailableError: the holder is away; the key may be used for no data key any more.
        """
        if kek == await self._keks.current():
            raise _in_use("it is the current key-encryption key: rotate first")
        before = await self._retired(kek)
        try:
            await self._keks.destroy(kek)
        except NotFoundError:
            if before is Standing.NEVER_USED:
                await self._reinstate(kek, before)
                raise
            # It was ours and is gone: what was asked for is done.
        except FailedPreconditionError:
            await self._reinstate(kek, before)
            raise

    async def _created(self, current: KekId) -> KekId:
        try:
            return await self._keks.create()
        except BulkheadError as error:
            if error.reason is Reason.KEYRING_READ_ONLY:
                return current
            raise

    async def _retired(self, kek: KekId) -> Standing:
        """Returns how it stood; from now on no data key can be under it."""
        try:
            async with self._database.service() as connection:
                return await store.retire(connection, kek)
        except store.KekInUseError as error:
            raise _in_use(
                "data keys are under it: rotate first, or wait until it is done"
            ) from error

    async def _reinstate(self, kek: KekId, before: Standing) -> None:
        async with self._database.service() as connection:
            await store.reinstate(connection, kek, before)


async def _wrapping(connection: Connection, current: KekId) -> bool:
    """Returns whether data keys are yet to be wrapped, beside those given up."""
    usage = await store.usage(connection)
    return any(count.data_keys > count.unreadable for kek, count in usage.items() if kek != current)


def _key(kek: KekId, known: Sequence[KekId], usage: dict[KekId, store.Usage]) -> KeyEncryptionKey:
    data_keys = usage[kek].data_keys if kek in usage else 0
    return KeyEncryptionKey(kek, kek == known[0], data_keys, kek in known)


def _in_use(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, Reason.KEY_ENCRYPTION_KEY_IN_USE)
