"""Secrets, environment and first administrator over the wire: success, each refusal, bad input."""

import base64
import re
import secrets
from dataclasses import dataclass
from typing import Any

import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.provisioner.secret_rules import checked_name
from services.provisioner.settings import Settings
from services.shared.postgres import connect
from tests.canaries import canary
from tests.mesh import Customer, Mesh, bearer
from tests.refusals import expect_refused

FULL = ("environment:read", "db:write")


@dataclass(frozen=True)
class Owner:
    """A tenant with a deployment, and the ways to what is kept for it."""

    mesh: Mesh
    customer: Customer
    deployment: pb2.Deployment

    @property
    def stub(self) -> ProvisionerServiceStub:
        return self.mesh.stub(ProvisionerServiceStub, "provisioner")

    async def put(self, name: str, **content: Any) -> pb2.Secret:
        request = pb2.PutSecretRequest(
            deployment_id=self.deployment.deployment_id, name=name, **content
        )
        return (await self.stub.PutSecret(request, metadata=bearer(self.customer.key))).secret

    async def names(self) -> list[str]:
        listed = await self.stub.ListSecrets(
            pb2.ListSecretsRequest(deployment_id=self.deployment.deployment_id),
            metadata=bearer(self.customer.key),
        )
        return [secret.name for secret in listed.secrets]

    async def delete(self, name: str) -> None:
        request = pb2.DeleteSecretRequest(deployment_id=self.deployment.deployment_id, name=name)
        await self.stub.DeleteSecret(request, metadata=bearer(self.customer.key))

    async def environment(self, *scopes: str) -> dict[str, str]:
        key = await self.mesh.key(
            self.customer, self.deployment.deployment_id, scopes or ("environment:read",)
        )
        found = await self.stub.GetEnvironment(
            pb2.GetEnvironmentRequest(), metadata=bearer(key.key)
        )
        names = [variable.name for variable in found.variables]
        assert names == sorted(set(names))
        return {variable.name: variable.value for variable in found.variables}

    async def reveal(self) -> pb2.RevealBootstrapAdminResponse:
        request = pb2.RevealBootstrapAdminRequest(deployment_id=self.deployment.deployment_id)
        return await self.stub.RevealBootstrapAdmin(request, metadata=bearer(self.customer.key))


@pytest.fixture(scope="module")
async def owner(mesh: Mesh) -> Owner:
    """One whose deployment has everything but a bucket; its tests put secrets of their own."""
    customer = await mesh.customer()
    return Owner(mesh, customer, await mesh.deployment(customer, bootstrap_admin=True))


@pytest.fixture
async def bare(mesh: Mesh) -> Owner:
    """One whose deployment has nothing, and is the test's own."""
    customer = await mesh.customer()
    return Owner(mesh, customer, await mesh.deployment(customer, database=False, mcp=False))


async def test_a_secret_is_kept_named_replaced_and_deleted(bare: Owner) -> None:
    first, second = canary("first"), canary("second")
    kept = await bare.put("API_TOKEN", value=first)
    assert (kept.name, kept.generated) == ("API_TOKEN", False)
    assert kept.update_time.seconds > 0
    got = await bare.stub.GetDeployment(
        pb2.GetDeploymentRequest(deployment_id=bare.deployment.deployment_id),
        metadata=bearer(bare.customer.key),
    )
    states = {each.kind: each.state for each in got.deployment.resources}
    assert states[pb2.RESOURCE_KIND_SECRETS] == pb2.RESOURCE_STATE_READY
    await bare.put("_b2", value="line\nand = 'quotes' \u00e9")
    assert await bare.names() == ["API_TOKEN", "_b2"]
    environment = await bare.environment()
    assert environment["API_TOKEN"] == first
    assert environment["_b2"] == "line\nand = 'quotes' \u00e9"
    await bare.put("API_TOKEN", value=second)
    assert (await bare.environment())["API_TOKEN"] == second
    for _ in range(2):
        await bare.delete("API_TOKEN")
    assert await bare.names() == ["_b2"]
    assert "API_TOKEN" not in await bare.environment()


@pytest.mark.parametrize(("asked", "given"), [(0, 43), (16, 16), (256, 256)])
async def test_a_secret_can_be_made_here(owner: Owner, asked: int, given: int) -> None:
    name = f"MADE_{asked}"
    kept = await owner.put(name, generate_length=asked)
    assert kept.generated
    value = (await owner.environment())[name]
    assert re.fullmatch(rf"[A-Za-z0-9_-]{{{given}}}", value)
    await owner.put(name, generate_length=asked)
    assert (await owner.environment())[name] != value


async def test_a_secret_may_be_as_long_as_is_said(owner: Owner) -> None:
    longest = secrets.token_hex(16_384)
    await owner.put("N" * 128, value=longest)
    assert (await owner.environment())["N" * 128] == longest
    await owner.delete("N" * 128)


@pytest.mark.parametrize(
    "name",
    [
        *("", "1A", "A-B", "A B", "A.B", "\u00c4", "A\n", "A=B", "N" * 129),
        *("BULKHEAD_", "BULKHEAD_DATABASE_URL", "bulkhead_host"),
        *("PATH", "path", "IFS", "LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES"),
        *("PYTHONPATH", "NODE_OPTIONS", "BASH_ENV", "JAVA_TOOL_OPTIONS", "PERL5OPT"),
        *("DOTNET_STARTUP_HOOKS", "CORECLR_PROFILER_PATH", "COR_PROFILER", "git_ssh_command"),
        *("GIT_CONFIG_KEY_0", "SSH_ASKPASS", "PAGER", "NPM_CONFIG_NODE_OPTIONS", "R_PROFILE_USER"),
        *("SHELL", "ERL_FLAGS", "GEM_HOME"),
    ],
)
async def test_a_name_that_no_secret_may_have_is_refused(owner: Owner, name: str) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="name"):
        await owner.put(name, value="x")
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="name"):
        await owner.delete(name)


@pytest.mark.parametrize("name", ["GIT_TOKEN", "GIT_SSH_KEY", "NPM_TOKEN", "SHELL_KEY", "R_KEY"])
def test_a_name_that_only_begins_like_a_dangerous_one_is_taken(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("value", {}),
        ("value", {"value": ""}),
        ("value", {"value": "a\0b"}),
        ("value", {"value": "v" * 32_769}),
        ("value", {"value": "\u00e9" * 16_385}),
        ("generate_length", {"generate_length": 15}),
        ("generate_length", {"generate_length": 257}),
        ("generate_length", {"generate_length": -1}),
    ],
    ids=["none", "empty", "nul", "long", "long in bytes", "15", "257", "-1"],
)
async def test_content_that_no_secret_may_have_is_refused(
    owner: Owner, field: str, content: dict[str, Any]
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await owner.put("BAD", **content)
    assert "BAD" not in await owner.names()


async def test_a_deployment_has_no_more_secrets_than_its_limit(mesh: Mesh, bare: Owner) -> None:
    settings = mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    connection = await connect(settings)
    await bare.put("S", value="the first, so that the tenant has a data key")
    try:
        await connection.execute("SET ROLE provisioner_service")
        await connection.execute(
            "INSERT INTO secrets SELECT deployment_id, tenant_id, 'S_' || n, sealed_value, false"
            " FROM secrets, generate_series(2, $2) AS n WHERE deployment_id = $1",
            bare.deployment.deployment_id,
            settings.secrets_per_deployment,
        )
    finally:
        await connection.close()
    with expect_refused("RESOURCE_EXHAUSTED", "RESOURCE_LIMIT") as refused:
        await bare.put("ONE_MORE", value="x")
    assert violated(refused.value) == ["secrets"]
    await bare.put("S", value="it is replaced, all the same")
    await bare.delete("S_2")
    await bare.put("ONE_MORE", value="x")


def violated(error: Any) -> list[str]:
    """Returns the subjects of the quota failure that the refusal carries."""
    failure = error_details_pb2.QuotaFailure()
    status = rpc_status.from_call(error)
    assert status is not None
    assert any(detail.Unpack(failure) for detail in status.details)
    return [violation.subject for violation in failure.violations]


async def test_the_environment_has_what_the_deployment_has_and_the_key_may(owner: Owner) -> None:
    own = {"BULKHEAD_DEPLOYMENT_ID", "BULKHEAD_HOST"} | {
        "BULKHEAD_ADMIN_USER",
        "BULKHEAD_ADMIN_PASSWORD_HASH",
    }
    reader, writer = "BULKHEAD_DATABASE_READER_URL", "BULKHEAD_DATABASE_URL"
    for scopes, expected in (
        (("environment:read",), own),
        (("environment:read", "db:read"), own | {reader}),
        (FULL, own | {reader, writer}),
    ):
        found = await owner.environment(*scopes)
        assert {name for name in found if name.startswith("BULKHEAD_")} == expected
    for name, role in ((reader, pb2.DATABASE_ROLE_READER), (writer, pb2.DATABASE_ROLE_WRITER)):
        connection = await owner.stub.GetDatabaseConnection(
            pb2.GetDatabaseConnectionRequest(
                deployment_id=owner.deployment.deployment_id, role=role
            ),
            metadata=bearer(owner.customer.key),
        )
        assert found[name] == connection.uri
    assert found["BULKHEAD_DEPLOYMENT_ID"] == owner.deployment.deployment_id
    assert found["BULKHEAD_HOST"] == owner.deployment.host


async def test_a_bare_deployments_environment_says_who_it_is(bare: Owner) -> None:
    assert await bare.environment(*FULL) == {
        "BULKHEAD_DEPLOYMENT_ID": bare.deployment.deployment_id,
        "BULKHEAD_HOST": bare.deployment.host,
    }
    with expect_refused("FAILED_PRECONDITION", "RESOURCE_NOT_DECLARED"):
        await bare.reveal()


async def test_a_deployment_that_is_deleted_has_no_secrets_and_takes_none(bare: Owner) -> None:
    await bare.put("KEPT", value="until the end")
    deleted = await bare.stub.DeleteDeployment(
        pb2.DeleteDeploymentRequest(deployment_id=bare.deployment.deployment_id),
        metadata=bearer(bare.customer.key),
    )
    await bare.mesh.finished(bare.customer, deleted.operation.operation_id)
    for calling in (
        bare.put("LATE", value="x"),
        bare.names(),
        bare.delete("KEPT"),
        bare.reveal(),
    ):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await calling


@pytest.mark.parametrize(
    ("state", "code", "reason", "taken"),
    [
        ("creating", "UNAVAILABLE", "DEPLOYMENT_NOT_READY", True),
        ("suspended", "FAILED_PRECONDITION", "DEPLOYMENT_SUSPENDED", True),
        ("failed", "FAILED_PRECONDITION", "OPERATION_FAILED", True),
        ("deleting", "UNAVAILABLE", "DEPLOYMENT_NOT_READY", False),
    ],
)
async def test_a_deployment_that_is_not_ready_is_given_no_environment(
    mesh: Mesh, bare: Owner, state: str, code: str, reason: str, taken: bool
) -> None:
    await bare.put("KEPT", value="x")
    settings = mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    connection = await connect(settings)
    try:
        await connection.execute("SET ROLE provisioner_service")
        await connection.execute(
            "UPDATE deployments SET state = $2, suspended_at = now() WHERE deployment_id = $1",
            bare.deployment.deployment_id,
            state,
        )
    finally:
        await connection.close()
    with expect_refused(code, reason):
        await bare.environment()
    if taken:
        await bare.put("MORE", value="x")
        assert await bare.names() == ["KEPT", "MORE"]
        return
    for calling in (bare.put("MORE", value="x"), bare.reveal()):
        with expect_refused("FAILED_PRECONDITION", "OPERATION_RUNNING"):
            await calling


@pytest.mark.promise("P-10")
async def test_the_program_can_check_the_first_administrators_password(mesh: Mesh) -> None:
    customer = await mesh.customer()
    deployment = await mesh.deployment(customer, database=False, mcp=False, bootstrap_admin=True)
    owner = Owner(mesh, customer, deployment)
    assert deployment.bootstrap_admin
    environment = await owner.environment()
    shown = await owner.reveal()
    assert shown.user == environment["BULKHEAD_ADMIN_USER"] == "admin"
    assert len(shown.password) == 26
    assert shown.password not in str(environment)
    assert verifies(environment["BULKHEAD_ADMIN_PASSWORD_HASH"], shown.password)
    assert not verifies(environment["BULKHEAD_ADMIN_PASSWORD_HASH"], shown.password[::-1])
    assert (await owner.environment()) == environment
    with expect_refused("FAILED_PRECONDITION", "SHOWN_BEFORE"):
        await owner.reveal()


def verifies(phc: str, password: str) -> bool:
    """Whether the password is the one of this hash, as a program that knows the format sees it."""
    _, name, costs, salt, digest = phc.split("$")
    assert name == "scrypt"
    numbers = {key: int(value) for key, value in (each.split("=") for each in costs.split(","))}
    cost, block, lanes = 2 ** numbers["ln"], numbers["r"], numbers["p"]
    kdf = Scrypt(decoded(salt), len(decoded(digest)), cost, block, lanes)
    return kdf.derive(password.encode()) == decoded(digest)


def decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
