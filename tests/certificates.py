"""What tests do with certificates of deletion."""

import asyncio
import base64
import json
from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from cli.certificate_check import check
from tests.mesh import PATIENCE_SECONDS

_PAUSE_SECONDS = 0.1


async def certified(provisioner: ProvisionerServiceStub, token: str) -> str:
    """Returns the certificate that the token opens, once there is one."""
    request = pb2.GetDeletionCertificateRequest(certificate_token=token)
    answer = pb2.GetDeletionCertificateResponse()
    for _ in range(round(PATIENCE_SECONDS / _PAUSE_SECONDS)):
        answer = await provisioner.GetDeletionCertificate(request)
        if answer.certificate:
            assert answer.state == pb2.OPERATION_STATE_SUCCEEDED
            assert not answer.remainders
            return str(answer.certificate)
        await asyncio.sleep(_PAUSE_SECONDS)
    raise AssertionError(f"not certified: {answer}")


async def published_keys(provisioner: ProvisionerServiceStub) -> str:
    """Returns what certificates are checked with."""
    return str((await provisioner.ListCertificateKeys(pb2.ListCertificateKeysRequest())).keys)


async def verified(provisioner: ProvisionerServiceStub, certificate: str) -> dict[str, Any]:
    """Returns what the certificate says, which verifies against the published keys."""
    verdict = check(certificate, await published_keys(provisioner))
    assert verdict.verified, verdict.problems
    return dict(verdict.document)


def encoded(part: bytes | dict[str, Any]) -> str:
    """Returns a part of a JWS: base64url without padding, of JSON if it is an object."""
    content = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decoded(part: str) -> dict[str, Any]:
    """Returns the object that a part of a JWS holds."""
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found
