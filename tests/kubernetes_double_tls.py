"""What stands before a Postgres without TLS in the double of a cluster, and gives it TLS.

It is named a double: CloudNativePG's Postgres does this itself. Whoever asks for TLS gets it, by
a certificate of the double's own authority; whoever does not comes in as well, as there.
"""

import asyncio
import base64
import ipaddress
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs the certificate of every server of one double."""

    context: ssl.SSLContext
    pem: bytes

    @property
    def encoded(self) -> str:
        """As a Secret has it."""
        return base64.b64encode(self.pem).decode()


def new_authority(folder: Path, host: str) -> Authority:
    """Returns an authority, and with it the certificate of a server at the IP address `host`."""
    signing, serving = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    own = _certificate("ca", signing, signing, "ca", None)
    signed = _certificate("database-rw", serving, signing, "ca", host)
    file = folder / "server.pem"
    file.touch(mode=0o600)
    file.write_bytes(
        serving.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return Authority(context, own)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    issuer: str,
    host: str | None,
) -> bytes:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
    )
    if host is not None:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Front:
    """Listens where a Cluster's Service would lead, as long as its server runs."""

    def __init__(self, context: ssl.SSLContext, host: str, port: int, inner: int) -> None:
        self._context = context
        self._host = host
        self._port = port
        self._inner = inner
        self._server: asyncio.Server | None = None
        self._callers: set[asyncio.Task[None]] = set()
        # How many asked for TLS.
        self.encrypted = 0

    async def open(self) -> None:
        """Begins to listen."""
        if self._server is None:
            self._server = await asyncio.start_server(self._come, self._host, self._port)

    async def close(self) -> None:
        """Listens no more, and cuts off whoever is there."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for caller in list(self._callers):
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._callers.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._relay(reader, writer)
        finally:
            self._callers.discard(task)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(len(_SSL_REQUEST))
        if first == _SSL_REQUEST:
            self.encrypted += 1
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(self._context)
            first = b""
        inner_reader, inner_writer = await asyncio.open_connection(self._host, self._inner)
        inner_writer.write(first)
        try:
            await asyncio.wait(
                [
                    asyncio.ensure_future(_copy(reader, inner_writer, inner_writer.close)),
                    asyncio.ensure_future(_copy(inner_reader, writer, writer.close)),
                ]
            )
        finally:
            inner_writer.close()


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, end: Callable[[], None]
) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    end()
