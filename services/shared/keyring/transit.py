"""Keys that never leave OpenBao (or Vault): each version of a transit key is one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from queue import SimpleQueue
from typing import Final, TypeVar

import structlog

from services.shared.crypto import KekId, KeyBinding, UnknownKekError, UnreadableError
from services.shared.errors import (
    FailedPreconditionError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from services.shared.keyring.settings import KeyringSettings
from services.shared.keyring.transit_api import TransitApi, TransitKey
from services.shared.settings import UnusableFileError

_CONNECTIONS: Final = 8
# How often the latest version may be a new one in between, before we give up for now.
_TRIES: Final = 3

T = TypeVar("T")


class TransitKeys:
    """`KeyEncryptionKeys` by the transit engine; `kek_<key>.v<version>` are their ids."""

    holder = "transit"

    def __init__(self, settings: KeyringSettings, threads: ThreadPoolExecutor) -> None:
        self._name = settings.keyring_transit_key
        self._threads = threads
        self._idle: SimpleQueue[TransitApi] = SimpleQueue()
        for _ in range(_CONNECTIONS):
            self._idle.put(TransitApi(settings))

    async def open(self) -> None:
        """Makes the key when it is missing.

        Raises:
            UnusableFileError: it cannot be used, or the token's file cannot.
            UnavailableError: the engine is away, or refuses our token.
        """
        if await self._run(TransitApi.key) is None:
            await self._run(TransitApi.make_key)
            await self._run(TransitApi.key)

    def close(self) -> None:
        """Closes the connections."""
        while not self._idle.empty():
            self._idle.get().close()

    async def current(self) -> KekId:
        """Returns the key under which new data keys are wrapped; see `KeyEncryptionKeys`."""
        return self._kek((await self._key()).latest)

    async def known(self) -> Sequence[KekId]:
        """Returns the keys that can be used now, the current one first."""
        return [self._kek(version) for version in reversed((await self._key()).versions)]

    async def wrap(self, data_key: bytes, bound: KeyBinding) -> tuple[KekId, bytes]:
        """Returns the data key under the current key; see `KeyEncryptionKeys`."""
        for _ in range(_TRIES):
            version = (await self._key()).latest
            kek = self._kek(version)
            encrypt = partial(
                TransitApi.encrypt, version=version, text=data_key, bound=bound.under(kek)
            )
            wrapped = await self._calls(encrypt)
            if wrapped is not None:
                return kek, wrapped
        raise UnavailableError("the transit engine encrypts nothing under its latest key")

    async def unwrap(self, kek_id: KekId, wrapped: bytes, bound: KeyBinding) -> bytes:
        """Returns the data key; see `KeyEncryptionKeys`."""
        version = self._version(kek_id)
        if version is None:
            raise UnknownKekError("it is under a key that another holder has")
        if not wrapped.startswith(f"vault:v{version}:".encode()):
            raise UnreadableError("it was not wrapped by that key")
        opened = await self._calls(lambda api: api.decrypt(wrapped, bound.under(kek_id)))
        if opened is not None:
            return opened
        if version not in (await self._key()).versions:
            raise UnknownKekError("the key is not there any more")
        raise UnreadableError("it was not wrapped for this by that key")

    async def create(self) -> KekId:
        """Makes a new version, which is current from now on; see `KeyEncryptionKeys`."""
        await self._calls(TransitApi.rotate)
        return await self.current()

    async def destroy(self, kek_id: KekId) -> None:
        """Destroys a version for good, the oldest one only: the engine knows but a lowest one.

        Raises:
            NotFoundError: there is none of that id.
            FailedPreconditionError: it is the current one, or there is an older one.
            UnavailableError: the engine is away.
        """
        key, version = await self._key(), self._version(kek_id)
        if version is None or not key.oldest_kept <= version <= key.latest:
            raise NotFoundError("key-encryption key")
        if version == key.latest:
            raise _in_use("it is the current key-encryption key")
        if version > key.oldest_kept:
            oldest = self._kek(key.oldest_kept)
            raise _in_use(f"the transit engine destroys the oldest first, which is {oldest}")
        await self._calls(lambda api: api.trim(key, version + 1))

    async def _key(self) -> TransitKey:
        key = await self._calls(TransitApi.key)
        if key is None:
            raise UnavailableError(f"the transit engine has no key {self._name}")
        return key

    async def _calls(self, call: Callable[[TransitApi], T]) -> T:
        try:
            return await self._run(call)
        except UnusableFileError as error:
            structlog.get_logger().error("the transit engine cannot be asked", problem=str(error))
            raise UnavailableError("who holds the key-encryption keys cannot be asked") from error

    async def _run(self, call: Callable[[TransitApi], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ran, call)

    def _ran(self, call: Callable[[TransitApi], T]) -> T:
        api = self._idle.get()
        try:
            return call(api)
        finally:
            self._idle.put(api)

    def _kek(self, version: int) -> KekId:
        return KekId(f"kek_{self._name}.v{version}")

    def _version(self, kek: KekId) -> int | None:
        number = kek.removeprefix(f"kek_{self._name}.v")
        version = int(number) if number.isascii() and number.isdecimal() else 0
        return version if self._kek(version) == kek and version > 0 else None


def _in_use(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, Reason.KEY_ENCRYPTION_KEY_IN_USE)


@asynccontextmanager
async def open_transit(settings: KeyringSettings) -> AsyncIterator[TransitKeys]:
    """Yields the keys of the transit engine; see `TransitKeys.open`."""
    # Threads of their own: while the engine is slow, nothing else of the process waits for them.
    threads = ThreadPoolExecutor(_CONNECTIONS, "transit")
    keys = TransitKeys(settings, threads)
    try:
        await keys.open()
        yield keys
    finally:
        await asyncio.to_thread(threads.shutdown)
        keys.close()
