"""Certificates of deletion over the wire: what they say, and that none can be forged."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub
from joserfc import jws
from joserfc.jwk import OctKey, OKPKey

from cli.certificate_check import check
from services.provisioner.certificates import CertificateKeys, read_certificate_keys
from services.shared.settings import UnusableFileError
from tests.certificates import certified, decoded, encoded, published_keys, verified
from tests.mesh import Mesh, bearer
from tests.refusals import expect_refused


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued, and what goes with it."""

    deployment_id: str
    token: str
    certificate: str
    keys: str
    # Its parts.
    header: dict[str, Any]
    document: dict[str, Any]
    # Signs as the platform does.
    signer: CertificateKeys


@pytest.fixture(scope="session")
def provisioner(mesh: Mesh) -> ProvisionerServiceStub:
    return mesh.stub(ProvisionerServiceStub, "provisioner")


@pytest.fixture(scope="session")
async def issued(mesh: Mesh, provisioner: ProvisionerServiceStub) -> Issued:
    customer = await mesh.customer()
    deployment = await mesh.deployment(customer, database=False, mcp=False)
    request = pb2.DeleteDeploymentRequest(deployment_id=deployment.deployment_id)
    deleted = await provisioner.DeleteDeployment(request, metadata=bearer(customer.key))
    certificate = await certified(provisioner, deleted.certificate_token)
    header, document, _ = certificate.split(".")
    settings: Any = mesh.settings["provisioner"]
    return Issued(
        deployment.deployment_id,
        deleted.certificate_token,
        certificate,
        await published_keys(provisioner),
        decoded(header),
        decoded(document),
        read_certificate_keys(settings.certificate_key_file, None),
    )


@pytest.mark.promise("P-39")
async def test_a_certificate_tells_of_each_resource_when_it_went(
    provisioner: ProvisionerServiceStub, issued: Issued
) -> None:
    document = await verified(provisioner, issued.certificate)
    assert document == issued.document
    assert (document["kind"], document["sub"]) == ("deployment", issued.deployment_id)
    assert {one["kind"] for one in document["resources"]} == {"keys", "route", "loans", "counters"}
    assert document["retained"]


async def test_the_published_keys_are_public_and_named_by_what_they_are(
    provisioner: ProvisionerServiceStub, issued: Issued
) -> None:
    answer = await provisioner.ListCertificateKeys(pb2.ListCertificateKeysRequest())
    (key,) = json.loads(answer.keys)["keys"]
    assert set(key) == {"kty", "crv", "x", "kid", "alg", "use"}
    assert key["kid"] == OKPKey.import_key(key).thumbprint() == issued.header["kid"]


async def test_a_token_opens_its_own_deletion_alone(
    provisioner: ProvisionerServiceStub, issued: Issued
) -> None:
    for unknown in (issued.token[:-1] + "~", "x" * 43, "y" * 256):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await provisioner.GetDeletionCertificate(
                pb2.GetDeletionCertificateRequest(certificate_token=unknown)
            )


@pytest.mark.parametrize("token", ["", "x" * 31, "x" * 257, "x" * 40 + " ", "x" * 40 + "é"])
async def test_a_token_that_is_none_is_refused_by_name(
    mesh: Mesh, provisioner: ProvisionerServiceStub, token: str
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="certificate_token"):
        await provisioner.GetDeletionCertificate(
            pb2.GetDeletionCertificateRequest(certificate_token=token)
        )
    if token:
        customer = await mesh.customer()
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="certificate_token"):
            await provisioner.DeleteTenant(
                pb2.DeleteTenantRequest(certificate_token=token), metadata=bearer(customer.key)
            )


def _changed(issued: Issued, change: Callable[[dict[str, Any]], object]) -> str:
    document = copy.deepcopy(issued.document)
    change(document)
    header, _, signature = issued.certificate.split(".")
    return f"{header}.{encoded(document)}.{signature}"


def _header(issued: Issued, **changes: Any) -> str:
    _, document, signature = issued.certificate.split(".")
    return f"{encoded(issued.header | changes)}.{document}.{signature}"


def _signed_by(issued: Issued, key: Any, **changes: Any) -> str:
    header = issued.header | changes
    payload = encoded(issued.document).encode()
    return jws.serialize_compact(header, payload, key, algorithms=[header["alg"]])


def _public(issued: Issued) -> str:
    return str(decoded(encoded(issued.keys.encode()))["keys"][0]["x"])


def _another() -> OKPKey:
    return OKPKey.generate_key("Ed25519")


FORGERIES: dict[str, Callable[[Issued], str]] = {
    "another-subject": lambda it: _changed(it, lambda d: d.update(sub="dep_" + "0" * 26)),
    "another-time": lambda it: _changed(
        it, lambda d: d["resources"][0].update(destroyed_at=d["issued_at"])
    ),
    "another-key": lambda it: _signed_by(it, _another()),
    "another-key-embedded": lambda it: _signed_by(
        it, key := _another(), jwk=key.as_dict(private=False), kid=key.thumbprint()
    ),
    "stale-key-id": lambda it: _header(it, kid=_another().thumbprint()),
    "no-key-id": lambda it: _header(it, kid=""),
    "no-algorithm": lambda it: (
        f"{encoded(it.header | {'alg': 'none'})}.{it.certificate.split('.')[1]}."
    ),
    "public-key-as-secret": lambda it: _signed_by(it, OctKey.import_key(_public(it)), alg="HS256"),
    "another-type": lambda it: _header(it, typ="JWT"),
    "no-signature": lambda it: it.certificate.rpartition(".")[0] + ".",
    "half-a-signature": lambda it: it.certificate[:-40],
    "cut-short": lambda it: it.certificate[: len(it.certificate) // 2],
    "nothing": lambda it: it.certificate[:0],
    "padding": lambda it: it.certificate + "==",
}


@pytest.mark.promise("P-39")
@pytest.mark.parametrize("forgery", FORGERIES, ids=str)
def test_a_forged_certificate_does_not_verify(issued: Issued, forgery: str) -> None:
    assert check(issued.certificate, issued.keys).verified
    verdict = check(FORGERIES[forgery](issued), issued.keys)
    assert not verdict.verified
    assert not verdict.document


INCOMPLETE: dict[str, Callable[[dict[str, Any]], object]] = {
    "never-looked-after": lambda d: d["resources"][0].pop("verified_gone_at"),
    "never-destroyed": lambda d: d["resources"][1].pop("destroyed_at"),
    "destroyed-before-access-ended": lambda d: d["resources"][0].update(
        access_revoked_at=d["issued_at"]
    ),
    "gone-after-it-was-issued": lambda d: d["resources"][0].update(
        verified_gone_at="2999-01-01T00:00:00Z"
    ),
    "shut-before-it-was-cut-off": lambda d: d.update(access_revoked_at=d["requested_at"]),
    "never-cut-off": lambda d: d.pop("cut_off_at"),
    "a-time-without-a-zone": lambda d: d["resources"][0].update(destroyed_at="2026-01-01T00:00:00"),
    "a-resource-left-out": lambda d: d["resources"].pop(),
    "a-resource-twice": lambda d: d["resources"].append(d["resources"][0]),
    "another-deployments": lambda d: d.update(sub="dep_" + "0" * 26),
    "no-resources": lambda d: d.pop("resources"),
    "another-version": lambda d: d.update(version=2),
    "of-nothing": lambda d: d.update(kind="wish"),
    "of-a-tenant-without-receipts": lambda d: d.update(kind="tenant"),
}


@pytest.mark.promise("P-39")
@pytest.mark.parametrize("lack", INCOMPLETE, ids=str)
def test_a_certificate_that_leaves_something_open_does_not_verify(
    issued: Issued, lack: str
) -> None:
    document = copy.deepcopy(issued.document)
    INCOMPLETE[lack](document)
    verdict = check(issued.signer.sign(document), issued.keys)
    assert not verdict.verified
    assert verdict.document


def test_a_certificate_of_before_verifies_after_the_key_was_replaced(
    issued: Issued, tmp_path: Path
) -> None:
    former = tmp_path / "former.json"
    former.write_text(issued.keys)
    rotated = read_certificate_keys(tmp_path / "key.pem", former)
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert check(issued.certificate, rotated.key_set()).verified
    assert check(rotated.sign(issued.document), rotated.key_set()).verified
    assert not check(rotated.sign(issued.document), issued.keys).verified
    again = read_certificate_keys(tmp_path / "key.pem", None)
    assert check(again.sign(issued.document), rotated.key_set()).verified


def test_no_key_is_used_that_others_can_read_or_that_is_none(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    read_certificate_keys(key, None)
    former = tmp_path / "former.json"
    former.write_text(json.dumps({"keys": [_another().as_dict(private=True)]}))
    with pytest.raises(UnusableFileError, match="public"):
        read_certificate_keys(key, former)
    key.chmod(0o644)
    with pytest.raises(UnusableFileError, match="others can read"):
        read_certificate_keys(key, None)
    other = tmp_path / "other.pem"
    other.write_text("no key")
    other.chmod(0o600)
    with pytest.raises(UnusableFileError, match="Ed25519"):
        read_certificate_keys(other, None)
