"""TLS to the stores: their certificate must be of the named authority, and of their own name."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.shared.settings import (
    PostgresSettings,
    UnusableFileError,
    ValkeySettings,
    read_file,
)


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """Whom to believe (None: the authorities of the system), and what to present, if anything."""

    authority: Path | None
    certificate: Path | None
    key: Path | None

    @property
    def named(self) -> Sequence[Path]:
        """Those that there are."""
        return [file for file in (self.authority, self.certificate, self.key) if file is not None]


class StoreTls:
    """Makes a context anew when a file has changed, so that new connections need no restart."""

    def __init__(self, store: str, files: StoreFiles) -> None:
        self._store = store
        self._files = files
        self._read: tuple[bytes, ...] | None = None
        self._context: ssl.SSLContext | None = None
        self._told: str | None = None

    def get(self) -> ssl.SSLContext:
        """Returns the context for a connection that is about to be made.

        Raises:
            UnusableFileError: a file is missing, not ours to read, or of no use.
        """
        read = tuple(map(read_file, self._files.named))
        if self._context is None or read != self._read:
            self._context, self._read = self._made(), read
        return self._context

    def refused(self, error: ssl.SSLError) -> None:
        """Logs why the store was not connected to, once until that changes."""
        problem = getattr(error, "verify_message", None) or error.reason or str(error)
        if problem != self._told:
            self._told = problem
            structlog.get_logger().warning(
                "store's certificate refused", store=self._store, problem=problem
            )

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        files = self._files
        try:
            if files.authority is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(files.authority)
            if files.certificate is not None:
                context.load_cert_chain(files.certificate, files.key)
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(map(str, files.named))
            raise UnusableFileError(f"{names}: no use for TLS: {error}") from error
        return context


def postgres_tls(settings: PostgresSettings) -> StoreTls | None:
    """Returns how Postgres is connected to by TLS; None: in plaintext.

    Raises:
        UnusableFileError: a file is missing, not ours to read, or of no use.
    """
    if settings.postgres_tls == "disable":
        return None
    files = settings.postgres_ca_file, settings.postgres_cert_file, settings.postgres_key_file
    return _looked_at(StoreTls("postgres", StoreFiles(*files)))


def valkey_tls(settings: ValkeySettings) -> StoreTls | None:
    """Returns how Valkey is connected to by TLS; None: in plaintext.

    Raises:
        UnusableFileError: a file is missing, not ours to read, or of no use.
    """
    if not settings.valkey_tls:
        return None
    files = settings.valkey_ca_file, settings.valkey_cert_file, settings.valkey_key_file
    return _looked_at(StoreTls("valkey", StoreFiles(*files)))


def _looked_at(tls: StoreTls) -> StoreTls:
    # Whoever names files that are of no use is told at the start.
    tls.get()
    return tls
