"""The key-encryption keys over the wire, as each service that has some serves them."""

from types import ModuleType
from typing import Any

from services.shared.crypto import KekId
from services.shared.fields import text
from services.shared.keyring.keyring import Keyring, KeyringStatus

_MOST_ID = 128


class KeyringRpc:
    """Every method of a service's `KeyringService`; all of them are the operator's.

    The messages are those of the service's own contract, which are named and numbered alike.
    """

    def __init__(self, keyring: Keyring, messages: ModuleType) -> None:
        self._keyring = keyring
        self._messages = messages

    async def GetKeyring(self, _request: Any, _context: Any) -> Any:
        return self._message(await self._keyring.status())

    async def RotateKeyring(self, _request: Any, _context: Any) -> Any:
        current, to_wrap = await self._keyring.rotate()
        return self._messages.RotateKeyringResponse(
            current_key_encryption_key_id=current, data_keys_to_wrap=to_wrap
        )

    async def DestroyKeyEncryptionKey(self, request: Any, _context: Any) -> Any:
        named = text("key_encryption_key_id", request.key_encryption_key_id, most=_MOST_ID)
        await self._keyring.destroy(KekId(named))
        return self._messages.DestroyKeyEncryptionKeyResponse()

    def _message(self, status: KeyringStatus) -> Any:
        return self._messages.GetKeyringResponse(
            holder=status.holder,
            key_encryption_keys=[
                self._messages.KeyEncryptionKey(
                    key_encryption_key_id=key.kek_id,
                    current=key.current,
                    data_keys=key.data_keys,
                    usable=key.usable,
                )
                for key in status.keys
            ],
            data_keys_to_wrap=status.to_wrap,
            data_keys_unreadable=status.unreadable,
        )
