"""Who holds a service's key-encryption keys, as its settings say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.shared.crypto import KeyEncryptionKeys
from services.shared.keyring.file import FileSource
from services.shared.keyring.held import HeldKeys
from services.shared.keyring.settings import KeyringSettings


@asynccontextmanager
async def open_keyring(settings: KeyringSettings) -> AsyncIterator[KeyEncryptionKeys]:
    """Yields the key-encryption keys.

    Raises:
        UnusableFileError: a file that they need cannot be used.
        UnavailableError: the holder cannot be reached.
    """
    source = FileSource(settings.keyring_file)
    source.ensure()
    keys = HeldKeys(source)
    await keys.open()
    yield keys
