"""Certificates of deletion on the command line: waited for, kept, checked offline."""

import json
from pathlib import Path
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from services.provisioner.certificates import CertificateKeys, read_certificate_keys
from services.shared.errors import Reason, UnavailableError
from tests.scripted_api import ScriptedApi, bulkhead

NOBODY = {"BULKHEAD_API": "", "BULKHEAD_KEY": ""}
DEPLOYMENT = "dep_" + "1" * 26
TENANT = "ten_" + "2" * 26
TIMES = {
    "access_revoked_at": "2026-11-22T12:00:01Z",
    "destroyed_at": "2026-11-22T12:00:02Z",
    "verified_gone_at": "2026-11-22T12:00:03Z",
}
DOCUMENT: dict[str, Any] = {
    "version": 1,
    "iss": "localhost",
    "jti": "op_" + "3" * 26,
    "iat": 1795348804,
    "issued_at": "2026-11-22T12:00:04Z",
    "tenant_id": TENANT,
    "sub": DEPLOYMENT,
    "kind": "deployment",
    "requested_at": "2026-11-22T12:00:00Z",
    "cut_off_at": "2026-11-22T12:00:01Z",
    "access_revoked_at": "2026-11-22T12:00:01Z",
    "resources": [
        {
            "deployment_id": DEPLOYMENT,
            "kind": kind,
            "details": {"checked": "files looked for"},
            **TIMES,
        }
        for kind in ("keys", "route", "loans", "counters")
    ],
    "retained": [{"what": "ids", "why": "so that none is given again"}],
}


def signer(folder: Path) -> CertificateKeys:
    return read_certificate_keys(folder / "key.pem", None)


async def test_a_certificate_is_checked_without_asking_anybody(tmp_path: Path) -> None:
    proof, keys = tmp_path / "proof", tmp_path / "keys.json"
    proof.write_text(signer(tmp_path).sign(DOCUMENT) + "\n")
    keys.write_text(signer(tmp_path).key_set())
    arguments = ("certificate", "verify", str(proof), "--keys", str(keys))
    outcome = await bulkhead(1, *arguments, **NOBODY)
    assert outcome.code == 0, outcome.err
    assert f"states that {DEPLOYMENT} is deleted" in outcome.out
    assert "retained   ids" in outcome.out
    assert "files looked for" not in outcome.out
    outcome = await bulkhead(1, *arguments, "--full", **NOBODY)
    (row,) = (line for line in outcome.out.splitlines() if line.startswith("route "))
    assert row.split(maxsplit=4) == ["route", "+1.00", "+2.00", "+3.00", "files looked for"]
    whole = proof.read_text()
    proof.write_text(whole.replace(whole[-60], "A" if whole[-60] != "A" else "B"))
    outcome = await bulkhead(1, *arguments, "--json", **NOBODY)
    assert outcome.code == 1
    assert outcome.json["verified"] is False
    assert outcome.json["certificate"] == {}
    keys.write_text("{}")
    outcome = await bulkhead(1, *arguments, **NOBODY)
    assert outcome.code == 2
    assert "Ed25519" in outcome.err


async def test_get_waits_for_the_certificate_and_tells_what_for_without_a_key(
    api: ScriptedApi, tmp_path: Path
) -> None:
    left = pb.Remainder(deployment_id=DEPLOYMENT, step="verifying", message="database: files")
    answers = iter(
        [
            pb.GetDeletionCertificateResponse(
                state=pb.OPERATION_STATE_RUNNING, remainders=[left, left]
            ),
            UnavailableError("away", Reason.DEPENDENCY_UNAVAILABLE),
            *[UnavailableError("away", Reason.DEPENDENCY_UNAVAILABLE)] * 2,
            pb.GetDeletionCertificateResponse(
                state=pb.OPERATION_STATE_SUCCEEDED, certificate="a.b.c"
            ),
        ]
    )
    api.answers["GetDeletionCertificate"] = lambda _: next(answers)
    token = tmp_path / "token"
    token.write_text("t" * 40 + "\n")
    outcome = await bulkhead(
        api.port, "certificate", "get", "--token-file", str(token), BULKHEAD_KEY=""
    )
    assert (outcome.code, outcome.out) == (0, "a.b.c\n"), outcome.err
    assert outcome.err.count("database: files") == 1
    assert {one.certificate_token for one in api.requests("GetDeletionCertificate")} == {"t" * 40}
    assert all("authorization" not in metadata for _, _, metadata, _ in api.asked)


async def test_no_wait_prints_nothing_that_could_be_taken_for_a_certificate(
    api: ScriptedApi, tmp_path: Path
) -> None:
    left = pb.Remainder(deployment_id=DEPLOYMENT, step="uncounting", message="away")
    api.answers["GetDeletionCertificate"] = pb.GetDeletionCertificateResponse(
        state=pb.OPERATION_STATE_RUNNING, remainders=[left]
    )
    token = tmp_path / "token"
    token.write_text("t" * 40)
    get = ("certificate", "get", "--token-file", str(token), "--no-wait")
    outcome = await bulkhead(api.port, *get)
    assert (outcome.code, outcome.out) == (1, "")
    assert f"… {DEPLOYMENT}: removing its counters (away)" in outcome.err
    outcome = await bulkhead(api.port, *get, "--json")
    assert (outcome.code, outcome.json["certificate"]) == (1, "")
    assert outcome.json["error"]["reason"] == "OPERATION_RUNNING"
    assert outcome.json["remainders"][0]["message"] == "away"


async def test_keys_prints_the_key_set_as_it_is(api: ScriptedApi, tmp_path: Path) -> None:
    published = signer(tmp_path).key_set()
    api.answers["ListCertificateKeys"] = pb.ListCertificateKeysResponse(keys=published)
    outcome = await bulkhead(api.port, "certificate", "keys", BULKHEAD_KEY="")
    assert (outcome.code, json.loads(outcome.out)) == (0, json.loads(published)), outcome.err


async def test_a_tenant_is_deleted_by_a_token_that_was_kept_before(
    api: ScriptedApi, tmp_path: Path
) -> None:
    token, proof = tmp_path / "acme.token", tmp_path / "acme.certificate"
    tenant = auth_pb.Tenant(tenant_id=TENANT)
    api.answers["GetTenant"] = auth_pb.GetTenantResponse(tenant=tenant)
    kept: list[str] = []

    def delete(request: pb.DeleteTenantRequest) -> pb.DeleteTenantResponse:
        kept.append(token.read_text().strip())
        assert token.stat().st_mode & 0o777 == 0o600
        return pb.DeleteTenantResponse(certificate_token=request.certificate_token)

    api.answers["DeleteTenant"] = delete
    api.answers["GetDeletionCertificate"] = pb.GetDeletionCertificateResponse(
        state=pb.OPERATION_STATE_SUCCEEDED, certificate="a.b.c"
    )
    arguments = ("tenant", "delete", "--token-file", str(token), "--certificate", str(proof))
    refused = await bulkhead(api.port, *arguments)
    assert refused.code == 2
    assert "--yes" in refused.err
    assert not api.asked
    outcome = await bulkhead(api.port, *arguments, "--yes", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["certificate"] == "a.b.c"
    assert proof.read_text() == "a.b.c\n"
    assert proof.stat().st_mode & 0o777 == 0o600
    assert [one.certificate_token for one in api.requests("DeleteTenant")] == kept
    assert len(kept[0]) >= 32
    assert kept[0] not in outcome.out + outcome.err


async def test_a_deployments_certificate_is_written_when_it_is_deleted(
    api: ScriptedApi, tmp_path: Path
) -> None:
    operation = pb.Operation(
        operation_id="op_1", deployment_id=DEPLOYMENT, state=pb.OPERATION_STATE_SUCCEEDED
    )
    api.answers["DeleteDeployment"] = pb.DeleteDeploymentResponse(
        operation=operation, certificate_token="t" * 43
    )
    api.answers["WaitOperation"] = [pb.WaitOperationResponse(operation=operation)]
    api.answers["GetDeletionCertificate"] = pb.GetDeletionCertificateResponse(
        state=pb.OPERATION_STATE_SUCCEEDED, certificate="a.b.c"
    )
    proof = tmp_path / "proof"
    outcome = await bulkhead(
        api.port, "deployment", "delete", DEPLOYMENT, "--certificate", str(proof)
    )
    assert outcome.code == 0, outcome.err
    assert proof.read_text() == "a.b.c\n"
