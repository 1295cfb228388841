"""The key-encryption keys over the wire."""

from typing import Any

from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import KeyringServiceServicer

from services.credentials.keyring import Keyring, KeyringStatus
from services.shared.crypto import KekId
from services.shared.fields import text

_MOST_ID = 128


class KeyringRpc(KeyringServiceServicer):
    """Every method of `KeyringService`; all of them are the operator's."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def GetKeyring(
        self, _request: pb2.GetKeyringRequest, _context: Any
    ) -> pb2.GetKeyringResponse:
        return _message(await self._keyring.status())

    async def RotateKeyring(
        self, _request: pb2.RotateKeyringRequest, _context: Any
    ) -> pb2.RotateKeyringResponse:
        current, to_wrap = await self._keyring.rotate()
        return pb2.RotateKeyringResponse(
            current_key_encryption_key_id=current, data_keys_to_wrap=to_wrap
        )

    async def DestroyKeyEncryptionKey(
        self, request: pb2.DestroyKeyEncryptionKeyRequest, _context: Any
    ) -> pb2.DestroyKeyEncryptionKeyResponse:
        named = text("key_encryption_key_id", request.key_encryption_key_id, most=_MOST_ID)
        await self._keyring.destroy(KekId(named))
        return pb2.DestroyKeyEncryptionKeyResponse()


def _message(status: KeyringStatus) -> pb2.GetKeyringResponse:
    return pb2.GetKeyringResponse(
        holder=status.holder,
        key_encryption_keys=[
            pb2.KeyEncryptionKey(
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
