"""What makes a certificate, its key and its authority of use, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

# A certificate is due for renewal when less than this part of its life is left.
_RENEWAL_PART = 3


class UnusableCertificateError(Exception):
    """Says in one line what is wrong; never what is in a key."""


@dataclass(frozen=True, slots=True)
class Life:
    """How long a certificate is valid, whose it is, and by which number its authority knows it."""

    serial: str
    # The URIs that it names its holder by.
    names: frozenset[str]
    begins: datetime
    ends: datetime

    @property
    def renewal_due(self) -> datetime:
        """From when on less than a third of it is left."""
        return self.ends - (self.ends - self.begins) / _RENEWAL_PART


def checked_life(certificate: bytes, key: bytes, authority: bytes, now: datetime) -> Life:
    """Returns the life of a certificate (PEM, with what links it to its authority behind it).

    Raises:
        UnusableCertificateError: it is no certificate, does not fit the key, is not valid now, or
            none of the authorities has issued it.
    """
    chain = _certificates(certificate, "the certificate")
    authorities = _certificates(authority, "the authority")
    _fits(chain[0], key)
    if now < chain[0].not_valid_before_utc:
        raise UnusableCertificateError(
            f"the certificate is not valid before {_said(chain[0].not_valid_before_utc)}"
        )
    if now >= chain[0].not_valid_after_utc:
        raise UnusableCertificateError(
            f"the certificate has expired on {_said(chain[0].not_valid_after_utc)}"
        )
    if not _anchored(chain, authorities, now):
        raise UnusableCertificateError("the certificate is of none of the authorities")
    return _life(chain[0])


def _certificates(pem: bytes, what: str) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise UnusableCertificateError(f"{what} is not whole, or no PEM") from error


def _fits(certificate: x509.Certificate, key: bytes) -> None:
    try:
        private = load_pem_private_key(key, password=None)
    # A TypeError says that there is a password on it.
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UnusableCertificateError("the key is not whole, or no plain PEM") from error
    if private.public_key() != certificate.public_key():
        raise UnusableCertificateError("the key is not the certificate's")


def _anchored(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], now: datetime
) -> bool:
    """Whether an authority has issued the first, or one of the others that leads to it."""
    link: x509.Certificate | None = chain[0]
    for _ in chain:
        if link is None:
            return False
        if _issuer(link, authorities, now):
            return True
        link = _issuer(link, chain[1:], now)
    return False


def _issuer(
    certificate: x509.Certificate, candidates: Sequence[x509.Certificate], now: datetime
) -> x509.Certificate | None:
    for candidate in candidates:
        valid = candidate.not_valid_before_utc <= now < candidate.not_valid_after_utc
        if valid and _issued(candidate, certificate):
            return candidate
    return None


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def _life(certificate: x509.Certificate) -> Life:
    return Life(
        f"{certificate.serial_number:x}",
        _names(certificate),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def _said(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _names(certificate: x509.Certificate) -> frozenset[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(found.value.get_values_for_type(x509.UniformResourceIdentifier))
