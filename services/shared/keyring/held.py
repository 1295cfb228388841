"""Keys that this process reads from files and works with itself."""

import asyncio
from collections.abc import Hashable, Sequence
from typing import Protocol

import structlog

from services.shared.crypto import KekId, KeyBinding, UnknownKekError
from services.shared.keyring.key_set import KeySet
from services.shared.settings import UnusableFileError


class Source(Protocol):
    """Where the keys are read from. Its methods block; `HeldKeys` calls them in a thread."""

    # `file` or `mounted`.
    holder: str

    def state(self) -> Hashable:
        """Returns what changes whenever `read` would return something else; raises OSError."""
        ...

    def read(self) -> KeySet:
        """Returns the keys.

        Raises:
            UnusableFileError: they cannot be used as they are.
        """
        ...

    def create(self) -> KekId:
        """Makes a new key and makes it current; see `KeyEncryptionKeys`."""
        ...

    def destroy(self, kek_id: KekId) -> None:
        """Destroys a key for good; see `KeyEncryptionKeys`."""
        ...


class HeldKeys:
    """`KeyEncryptionKeys` out of files, read anew at the first use after they changed.

    Files that were good at the start and are not any more are reported, and what was read last
    goes on to be used.
    """

    def __init__(self, source: Source) -> None:
        self.holder = source.holder
        self._source = source
        # The keys and the state of the files that they were read from: in one, since several
        # threads may read at once.
        self._held: tuple[Hashable, KeySet] | None = None
        self._fault = ""

    async def open(self) -> None:
        """Reads the keys for the first time.

        Raises:
            UnusableFileError: they cannot be used as they are.
        """
        await asyncio.to_thread(self._read)

    async def current(self) -> KekId:
        """Returns the key under which new data keys are wrapped."""
        return (await self._at_hand()).current

    async def known(self) -> Sequence[KekId]:
        """Returns the keys that can be used now, the current one first."""
        return (await self._at_hand()).known()

    async def wrap(self, data_key: bytes, bound: KeyBinding) -> tuple[KekId, bytes]:
        """Returns the data key under the current key; see `KeyEncryptionKeys`."""
        return (await self._at_hand()).wrap(data_key, bound)

    async def unwrap(self, kek_id: KekId, wrapped: bytes, bound: KeyBinding) -> bytes:
        """Returns the data key; see `KeyEncryptionKeys`."""
        keys = await self._at_hand()
        try:
            return keys.unwrap(kek_id, wrapped, bound)
        except UnknownKekError:
            # Another process may have made it in the very moment since.
            keys = await asyncio.to_thread(self._reread)
        return keys.unwrap(kek_id, wrapped, bound)

    async def create(self) -> KekId:
        """Makes a new key, which is current from now on; see `KeyEncryptionKeys`."""
        return await asyncio.to_thread(self._source.create)

    async def destroy(self, kek_id: KekId) -> None:
        """Destroys a key for good; see `KeyEncryptionKeys`."""
        await asyncio.to_thread(self._source.destroy, kek_id)

    async def _at_hand(self) -> KeySet:
        return await asyncio.to_thread(self._latest)

    def _latest(self) -> KeySet:
        try:
            state = self._source.state()
        except OSError as error:
            return self._kept(f"{error.filename}: {error.strerror}")
        held = self._held
        return held[1] if held is not None and held[0] == state else self._reread()

    def _reread(self) -> KeySet:
        try:
            return self._read()
        except UnusableFileError as error:
            return self._kept(str(error))

    def _read(self) -> KeySet:
        try:
            # Before the keys: who changes them in between is noticed the next time.
            state = self._source.state()
        except OSError as error:
            raise UnusableFileError(f"{error.filename}: {error.strerror}") from error
        keys = self._source.read()
        self._held, self._fault = (state, keys), ""
        return keys

    def _kept(self, fault: str) -> KeySet:
        if fault != self._fault:
            self._fault = fault
            structlog.get_logger().error("the keyring cannot be read any more", problem=fault)
        if self._held is None:
            raise UnusableFileError(fault)
        return self._held[1]
