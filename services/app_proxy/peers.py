"""What app_proxy asks of other services."""

from collections.abc import Iterator

import grpc
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as ratelimit_pb2

from services.app_proxy.database.roles import Address, Role
from services.app_proxy.door import Allowance, Decision
from services.app_proxy.oauth import OutcomeUnknownError
from services.app_proxy.oauth_pages import Asked
from services.app_proxy.rate_limit_headers import Quota, burst_quota, month_quota
from services.shared.clock import utc_now
from services.shared.errors import UnavailableError
from services.shared.limits import CoalescedLimits
from services.shared.status import translated

# A state works once: who calls it a second time is told that it was used.
FINISH = "bulkhead.credentials.v1.CredentialsService/FinishAuthorization"
# The provider is asked meanwhile.
_FINISH_SECONDS = 40.0
_DECISIONS = {
    ratelimit_pb2.DECISION_ALLOWED: Decision.ALLOWED,
    ratelimit_pb2.DECISION_BURST_EXCEEDED: Decision.BURST_EXCEEDED,
    ratelimit_pb2.DECISION_QUOTA_EXCEEDED: Decision.QUOTA_EXCEEDED,
    ratelimit_pb2.DECISION_KEY_INVALID: Decision.KEY_INVALID,
    ratelimit_pb2.DECISION_UNAVAILABLE: Decision.UNAVAILABLE,
}
_ROLES = {
    Role.READER: provisioner_pb2.DATABASE_ROLE_READER,
    Role.WRITER: provisioner_pb2.DATABASE_ROLE_WRITER,
}


class RatelimitLimits:
    """ratelimit, asked for each call; what is asked for at once travels as one batch.

    Not out of leases: docs/decisions/0011-shards-and-leases.md says why.
    """

    def __init__(self, limits: CoalescedLimits) -> None:
        self._limits = limits

    async def acquire(self, key_digest: bytes) -> Allowance:
        """Takes one call of the deployment whose key has the digest.

        Raises:
            UnavailableError: ratelimit is away, so nothing is known and nothing is open.
        """
        return _allowance(await self._limits.acquire(key_digest))


class ProvisionedDatabases:
    """provisioner, as the one that knows where a deployment's database is, and wakes it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = ProvisionerServiceStub(channel)

    async def address(self, key: str, role: Role) -> Address:
        """Returns where the database of the key's own deployment is, its server running.

        Raises:
            FailedPreconditionError: the deployment declares no database.
            PermissionDeniedError: the key's scopes do not open the role.
            UnavailableError: provisioner is away, or the server cannot be started now.
        """
        request = provisioner_pb2.GetDatabaseConnectionRequest(role=_ROLES[role])
        with translated():
            answer = await self._stub.GetDatabaseConnection(
                request, metadata=(("authorization", f"Bearer {key}"),)
            )
        return Address(
            host=answer.host,
            port=answer.port,
            database=answer.database,
            user=answer.user,
            password=answer.password,
            authority=answer.server_authority,
        )


class GrantAuthorizations:
    """credentials, as `oauth.Authorizations`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = CredentialsServiceStub(channel)

    async def describe(self, state: str) -> Asked:
        """Returns what is asked for; see `Authorizations`."""
        with translated():
            answer = await self._stub.DescribeAuthorization(
                credentials_pb2.DescribeAuthorizationRequest(state=state)
            )
        return Asked(
            answer.provider_title, answer.connection_name, answer.beneficiary, tuple(answer.scopes)
        )

    async def finish(self, state: str, code: str) -> tuple[str, str]:
        """Returns what is connected; see `Authorizations`."""
        request = credentials_pb2.FinishAuthorizationRequest(state=state, code=code)
        with translated():
            try:
                answer = await self._stub.FinishAuthorization(request, timeout=_FINISH_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise OutcomeUnknownError from error
                raise
        return answer.provider_title, answer.connection_name


def _allowance(result: ratelimit_pb2.AcquireResult) -> Allowance:
    decision = _DECISIONS.get(result.decision)
    if decision is None:
        raise UnavailableError("the limiter's answer is not understood")
    wait = result.retry_after.ToTimedelta() if result.HasField("retry_after") else None
    return Allowance(decision, wait, tuple(_quotas(result)))


def _quotas(result: ratelimit_pb2.AcquireResult) -> Iterator[Quota]:
    if result.burst and result.rate_per_second:
        burst, rate = result.burst, result.rate_per_second
        yield burst_quota(burst, rate, result.burst_remaining, result.burst_reset.ToTimedelta())
    if result.HasField("quota"):
        reset = result.quota_reset.ToTimedelta()
        yield month_quota(result.quota, result.quota_remaining, reset, utc_now())
