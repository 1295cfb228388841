"""Who is at the other end: mTLS certificates and the SPIFFE id in them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from services.shared.settings import ServiceSettings, read_file


@dataclass(frozen=True, slots=True)
class Identity:
    """A service's certificate chain, its key and the authority it trusts, as PEM."""

    certificate: bytes
    key: bytes
    authority: bytes

    @classmethod
    def read(cls, certificate: Path, key: Path, authority: Path) -> "Identity":
        """Returns the identity in three files."""
        return cls(read_file(certificate), read_file(key), read_file(authority))


def identity_files(settings: ServiceSettings) -> tuple[Path, Path, Path]:
    """Returns where the settings say that the certificate, its key and the authority are."""
    return settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Returns credentials that admit only callers with a certificate of the same authority."""
    return grpc.ssl_server_credentials(
        [(identity.key, identity.certificate)],
        root_certificates=identity.authority,
        require_client_auth=True,
    )


def renewed_server_credentials(current: Callable[[], Identity]) -> grpc.ServerCredentials:
    """Returns the same for an identity that changes: each handshake is with that of its moment."""
    begun = current()
    changes: Any = _Changes(current, begun)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(begun), changes, require_client_authentication=True
    )


class _Changes:
    """Asked before each handshake, by threads of gRPC's own: what has changed since the last."""

    def __init__(self, current: Callable[[], Identity], used: Identity) -> None:
        self._current = current
        self._used = used

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what is to be used from now on; None: what was used before."""
        current = self._current()
        if current is self._used:
            return None
        self._used = current
        return _configuration(current)


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificate)], root_certificates=identity.authority
    )


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Returns credentials that present the service's own certificate."""
    return grpc.ssl_channel_credentials(
        identity.authority, private_key=identity.key, certificate_chain=identity.certificate
    )


def peer_options(service: str) -> list[tuple[str, Any]]:
    """Returns the options of a channel whose other end must be `service`, and whose own it is."""
    return [
        # Names the expected service whatever address it is reached by.
        ("grpc.ssl_target_name_override", service),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def spiffe_id(trust_domain: str, service: str) -> str:
    """Returns the URI by which a service's certificate names it."""
    return f"spiffe://{trust_domain}/bulkhead/{service}"


def peer_service(context: grpc.aio.ServicerContext, trust_domain: str) -> str | None:  # type: ignore[type-arg]
    """Returns the calling service by its certificate; None when it has no name on this mesh."""
    prefix = spiffe_id(trust_domain, "")
    names = context.auth_context().get("x509_subject_alternative_name", ())
    for name in names:
        text = bytes(name).decode("ascii", "replace")
        if text.startswith(prefix) and "/" not in text[len(prefix) :]:
            return text[len(prefix) :]
    return None
