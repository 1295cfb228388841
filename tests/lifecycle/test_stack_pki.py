"""The local certificate authority."""

import shutil
import ssl
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from deploy.local.pki import CERTIFICATE_LIFE, Paths, certificates
from services.shared.clock import Clock, utc_now


def later(by: timedelta) -> Clock:
    return lambda: utc_now() + by


def certificate(paths: Paths) -> x509.Certificate:
    return x509.load_pem_x509_certificate(paths.certificate.read_bytes())


def handshake(server: Paths, client: Paths) -> None:
    """Speaks TLS between the two, in memory; raises ssl.SSLError when one refuses the other."""
    contexts = []
    for purpose, paths in ((ssl.Purpose.CLIENT_AUTH, server), (ssl.Purpose.SERVER_AUTH, client)):
        context = ssl.create_default_context(purpose, cafile=paths.authority)
        context.load_cert_chain(paths.certificate, paths.key)
        context.verify_mode = ssl.CERT_REQUIRED
        contexts.append(context)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        contexts[0].wrap_bio(up, down, server_side=True),
        contexts[1].wrap_bio(down, up, server_hostname="localhost"),
    ]
    for _ in range(3):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


def test_a_certificate_names_its_service(tmp_path: Path) -> None:
    found = certificate(certificates(tmp_path, ["auth"])["auth"])
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == ["spiffe://bulkhead.local/bulkhead/auth"]
    assert names.get_values_for_type(x509.DNSName) == ["auth", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_a_certificate_signs_no_other(tmp_path: Path) -> None:
    found = certificate(certificates(tmp_path, ["auth"])["auth"])
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not found.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_keys_are_closed_to_others(tmp_path: Path) -> None:
    certificates(tmp_path / "pki", ["auth", "edge"])
    keys = sorted((tmp_path / "pki").glob("*.key"))
    assert [key.name for key in keys] == ["auth.key", "ca.key", "edge.key"]
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in keys)
    assert (tmp_path / "pki").stat().st_mode & 0o777 == 0o700


def test_services_of_one_authority_believe_each_other(tmp_path: Path) -> None:
    paths = certificates(tmp_path, ["auth", "edge"])
    handshake(paths["auth"], paths["edge"])


def test_asking_again_changes_nothing(tmp_path: Path) -> None:
    first = certificate(certificates(tmp_path, ["auth"])["auth"])
    assert certificate(certificates(tmp_path, ["auth", "edge"])["auth"]) == first


def test_a_certificate_is_renewed_when_less_than_a_third_of_its_life_is_left(
    tmp_path: Path,
) -> None:
    first = certificate(certificates(tmp_path, ["auth"])["auth"])
    before, after = CERTIFICATE_LIFE * 0.6, CERTIFICATE_LIFE * 0.7
    assert certificate(certificates(tmp_path, ["auth"], clock=later(before))["auth"]) == first
    renewed = certificate(certificates(tmp_path, ["auth"], clock=later(after))["auth"])
    assert renewed.not_valid_after_utc > first.not_valid_after_utc


def test_a_new_authority_issues_every_certificate_anew(tmp_path: Path) -> None:
    first = certificates(tmp_path, ["auth", "edge"])
    old = certificate(first["auth"])
    (tmp_path / "ca.key").unlink()
    again = certificates(tmp_path, ["auth", "edge"])
    assert certificate(again["auth"]) != old
    handshake(again["auth"], again["edge"])


def test_another_trust_domain_is_another_name(tmp_path: Path) -> None:
    certificates(tmp_path, ["auth"])
    found = certificate(certificates(tmp_path, ["auth"], trust_domain="example.org")["auth"])
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == ["spiffe://example.org/bulkhead/auth"]


def test_a_key_that_does_not_fit_is_replaced(tmp_path: Path) -> None:
    paths = certificates(tmp_path, ["auth", "edge"])
    shutil.copy(paths["edge"].key, paths["auth"].key)
    again = certificates(tmp_path, ["auth", "edge"])
    handshake(again["auth"], again["edge"])
