"""Who holds a service's key-encryption keys, as its settings say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_never

from services.shared.crypto import KeyEncryptionKeys
from services.shared.keyring.file import FileSource
from services.shared.keyring.held import HeldKeys, Source
from services.shared.keyring.mounted import MountedSource
from services.shared.keyring.settings import KeyringSettings


@asynccontextmanager
async def open_keyring(settings: KeyringSettings) -> AsyncIterator[KeyEncryptionKeys]:
    """Yields the key-encryption keys.

    Raises:
        UnusableFileError: a file that they need cannot be used.
        UnavailableError: the holder cannot be reached.
    """
    match settings.keyring:
        case "file":
            source = FileSource(settings.keyring_file)
            source.ensure()
            yield await _held(source)
        case "mounted":
            yield await _held(MountedSource(settings.keyring_folder))
        case "transit":
            # Its client takes long to import, and most have their keys in files.
            from services.shared.keyring.transit import open_transit  # noqa: PLC0415

            async with open_transit(settings) as keys:
                yield keys
        case unknown:
            assert_never(unknown)


async def _held(source: Source) -> HeldKeys:
    keys = HeldKeys(source)
    await keys.open()
    return keys
