"""Who is at the other end: mTLS certificates and the SPIFFE id in them."""

from dataclasses import dataclass
from pathlib import Path

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


def identity_of(settings: ServiceSettings) -> Identity:
    """Returns the identity that the settings name."""
    return Identity.read(settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file)


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Returns credentials that admit only callers with a certificate of the same authority."""
    return grpc.ssl_server_credentials(
        [(identity.key, identity.certificate)],
        root_certificates=identity.authority,
        require_client_auth=True,
    )


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Returns credentials that present the service's own certificate."""
    return grpc.ssl_channel_credentials(
        identity.authority, private_key=identity.key, certificate_chain=identity.certificate
    )


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
