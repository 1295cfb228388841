"""The local certificate authority: one certificate per service, known by its SPIFFE URI.

Made for the embedded stack. In a cluster an issuer of its own (cert-manager, SPIRE) takes this
place; the names in the certificates are the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.local.files import PRIVATE_FILE, private_folder, write_private
from services.shared.clock import Clock, utc_now

TRUST_DOMAIN = "bulkhead.local"
AUTHORITY_LIFE = timedelta(days=3650)
CERTIFICATE_LIFE = timedelta(days=365)
# Clocks of two machines differ; a certificate is valid a little before it was made.
_BACKDATE = timedelta(minutes=5)
# Renewed when less than this part of the life is left.
_RENEWAL_PART = 3


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a service finds what it proves itself with (PEM files)."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class _Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def spiffe_uri(service: str, trust_domain: str = TRUST_DOMAIN) -> str:
    """Returns the name that the mesh knows `service` by."""
    return f"spiffe://{trust_domain}/bulkhead/{service}"


def certificates(
    home: Path,
    services: Iterable[str],
    *,
    trust_domain: str = TRUST_DOMAIN,
    clock: Clock = utc_now,
) -> dict[str, Paths]:
    """Returns the files of each service in `home`; what is missing or old is issued anew.

    Idempotent: a certificate is kept while it is from this authority, has the right names, fits
    its key and more than a third of its life is left.
    """
    private_folder(home)
    authority = _ensure_authority(home, trust_domain, clock())
    return {
        service: _ensure_certificate(home, authority, service, trust_domain, clock())
        for service in services
    }


def reissue(
    home: Path,
    services: Iterable[str],
    *,
    trust_domain: str = TRUST_DOMAIN,
    clock: Clock = utc_now,
) -> dict[str, Paths]:
    """Returns the files of each service in `home`, every certificate and key issued anew."""
    authority = _ensure_authority(home, trust_domain, clock())
    issued = {service: _paths(home, service) for service in services}
    for service, paths in issued.items():
        names = _names(service, trust_domain)
        new = _new_certificate(authority, service, names, clock())
        _save(new, paths.certificate, paths.key)
    return issued


def succeed(home: Path, *, trust_domain: str = TRUST_DOMAIN, clock: Clock = utc_now) -> None:
    """Makes a new authority in `home`, which issues from now on; those before stay believed."""
    before = (home / "ca.pem").read_bytes()
    made = _new_authority(trust_domain, clock())
    _save(made, home / "ca.pem", home / "ca.key", before)


def forget(home: Path) -> None:
    """Ends the belief in all authorities in `home` but the one that issues."""
    issuing = x509.load_pem_x509_certificate((home / "ca.pem").read_bytes())
    write_private(home / "ca.pem", issuing.public_bytes(serialization.Encoding.PEM))


def _ensure_authority(home: Path, trust_domain: str, now: datetime) -> _Issued:
    certificate_file, key_file = home / "ca.pem", home / "ca.key"
    kept = _load(certificate_file, key_file)
    if kept and _fresh(kept.certificate, now) and kept.certificate.subject == _name(trust_domain):
        return kept
    made = _new_authority(trust_domain, now)
    _save(made, certificate_file, key_file)
    return made


def _ensure_certificate(
    home: Path, authority: _Issued, service: str, trust_domain: str, now: datetime
) -> Paths:
    paths = _paths(home, service)
    names = _names(service, trust_domain)
    kept = _load(paths.certificate, paths.key)
    if not (kept and _fresh(kept.certificate, now) and _serves(kept, authority, names)):
        _save(_new_certificate(authority, service, names, now), paths.certificate, paths.key)
    return paths


def _paths(home: Path, service: str) -> Paths:
    return Paths(home / f"{service}.pem", home / f"{service}.key", home / "ca.pem")


def _serves(kept: _Issued, authority: _Issued, names: x509.SubjectAlternativeName) -> bool:
    present = kept.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    try:
        kept.certificate.verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, ValueError):
        return False
    return present.value == names


def _fresh(certificate: x509.Certificate, now: datetime) -> bool:
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - now > life / _RENEWAL_PART


def _names(service: str, trust_domain: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(spiffe_uri(service, trust_domain)),
            x509.DNSName(service),
            x509.DNSName("localhost"),
            x509.IPAddress(ip_address("127.0.0.1")),
        ]
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _new_authority(trust_domain: str, now: datetime) -> _Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(trust_domain)
    builder = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return _Issued(builder.sign(key, hashes.SHA256()), key)


def _new_certificate(
    authority: _Issued, service: str, names: x509.SubjectAlternativeName, now: datetime
) -> _Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer = authority.certificate
    builder = (
        _builder(_name(service), issuer.subject, key.public_key(), now, CERTIFICATE_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
    )
    return _Issued(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load(certificate_file: Path, key_file: Path) -> _Issued | None:
    """Returns the pair; None when a file is missing, unreadable as PEM, or they do not fit."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    key_file.chmod(PRIVATE_FILE)
    return _Issued(certificate, key) if key.public_key() == certificate.public_key() else None


def _save(issued: _Issued, certificate_file: Path, key_file: Path, behind: bytes = b"") -> None:
    pem = serialization.Encoding.PEM
    write_private(
        key_file,
        issued.key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
    write_private(certificate_file, issued.certificate.public_bytes(pem) + behind)
