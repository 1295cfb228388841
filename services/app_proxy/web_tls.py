"""TLS of the HTTP side: each handshake is with the certificate and authorities of its moment."""

import asyncio
import ssl

from services.shared.identity import WatchedIdentity
from services.shared.settings import ServiceSettings, UnusableFileError
from services.shared.tls import Identity, identity_files

_AGAIN_SECONDS = 0.1


class RenewedTls:
    """A listener's context, which hands each connection over to the newest one; `follow` beside."""

    def __init__(self, settings: ServiceSettings, identity: WatchedIdentity) -> None:
        """Loads the files.

        Raises:
            UnusableFileError: they have changed since, and are of no use now.
        """
        self._settings = settings
        self._identity = identity
        self._used = identity.current
        try:
            self.context = self._newest = _context(settings)
        except (OSError, ssl.SSLError) as error:
            raise UnusableFileError(f"{settings.tls_cert_file}: {error.strerror}") from error
        self.context.sni_callback = self._hand_over

    def _hand_over(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        connection.context = self._newest

    async def follow(self) -> None:
        """Loads for ever what is in use anew."""
        while True:
            self._used = await self._identity.after(self._used)
            await self._load()

    async def _load(self) -> None:
        """Loads the identity in use; it is gone when there is a newer one.

        The library reads files alone, so what it has read is compared with what was checked.
        """
        while self._identity.current is self._used:
            if (context := self._loaded()) is not None:
                self._newest = context
                return
            await asyncio.sleep(_AGAIN_SECONDS)

    def _loaded(self) -> ssl.SSLContext | None:
        try:
            context = _context(self._settings)
            same = Identity.read(*identity_files(self._settings)) == self._used
        except (OSError, ssl.SSLError, UnusableFileError):
            # In the middle of the next change.
            return None
        return context if same else None


def _context(settings: ServiceSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A session that is taken up again would not be asked for a certificate of today's authorities.
    context.num_tickets = 0
    context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    context.load_verify_locations(settings.tls_ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context
