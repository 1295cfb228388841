"""No secret that is kept is in a log, a span, an error, a command line or an environment.

Unmistakable secrets are planted in everything that takes one, and those that the provider and the
mesh make themselves are noted. They are used, misused, refreshed and deleted; then all that the
stack lets others see of itself is searched for them, in every usual encoding.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as pb
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub
from google.protobuf.message import Message

from deploy.envoy.routes import CALLBACK_PATH
from deploy.local.story.browser import Page, browsing
from tests.canaries import Secret, canary, leaked
from tests.e2e.outside import Deployment, Stack, Tenant, http_client
from tests.e2e.witness import Exports, keys, logs, named, processes
from tests.mesh import bearer, fresh_id
from tests.provider_double import Fault, ProviderDouble, answers

PATIENCE_SECONDS = 30.0
# Of an access token: less than a minute is left as soon as it is vended, so that the next vend
# refreshes it.
SHORT_SECONDS = 61
# Of an environment, what is no secret.
KNOWN = {
    *("BULKHEAD_DEPLOYMENT_ID", "BULKHEAD_HOST", "BULKHEAD_ADMIN_USER"),
    *("BULKHEAD_BUCKET_ENDPOINT", "BULKHEAD_BUCKET_REGION", "BULKHEAD_BUCKET_NAME"),
}
# Faults: more than will be met.
MANY = 100


@dataclass
class Planted:
    """The secrets so far, and what was said of them where nothing of them may be said."""

    api: CredentialsServiceStub
    tenant_key: str
    provisioner: ProvisionerServiceStub
    auth: AuthServiceStub
    secrets: list[Secret] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)

    def new(self, what: str) -> str:
        secret = canary(what)
        self.secrets.append(secret)
        return secret

    def tell(self, what: str, text: str) -> None:
        """Keeps a text that nobody asked for a secret."""
        self.told[f"{len(self.told)} {what}"] = text

    async def call(self, method: str, request: Message, key: str = "") -> Any:
        """Returns the answer."""
        presented = bearer(key or self.tenant_key)
        stub = self.api if hasattr(self.api, method) else self.provisioner
        return await getattr(stub, method)(request, metadata=presented, timeout=PATIENCE_SECONDS)

    async def done(self, method: str, request: Message) -> Any:
        """Returns the answer, and keeps it."""
        answer = await self.call(method, request)
        self.tell(method, str(answer))
        return answer

    async def refused(self, method: str, request: Message, key: str = "") -> None:
        """Keeps everything that a refusal says."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request, key)
        error = caught.value
        trailing = [f"{name}: {value!r}" for name, value in error.trailing_metadata() or ()]
        self.tell(method, "\n".join([str(error), error.debug_error_string() or "", *trailing]))

    def see(self, what: str, page: Page) -> Page:
        """Keeps what a page says; what its form hides is for the person's browser alone."""
        self.tell(what, page.heading)
        return page


@pytest.mark.promise("P-09")
@pytest.mark.promise("P-33")
async def test_no_planted_secret_is_in_anything_that_others_see(
    stack: Stack, provider: ProviderDouble, exported: Exports
) -> None:
    tenant = await stack.tenant()
    deployment = await tenant.deployment("bare", ())
    async with grpc.aio.insecure_channel(stack.api) as channel, short_lived(provider):
        planted = Planted(
            CredentialsServiceStub(channel),
            tenant.key,
            ProvisionerServiceStub(channel),
            AuthServiceStub(channel),
        )
        connections = await created(planted, provider)
        connections["oauth"] = await authorized(planted, provider)
        await bound(planted, deployment, connections)
        await vended(planted, deployment, connections, provider)
        await misused(planted, deployment, stack)
        await kept(planted)
        await broken(planted, deployment, connections["oauth"], provider)
        for connection in connections.values():
            await planted.done("DeleteConnection", delete(connection))
    await by_command_line(planted, tenant)
    tenant_id = (await tenant.run("tenant", "get", "--json")).json["tenant_id"]
    planted.secrets += [*await keys(stack, tenant_id), *noted(provider)]
    await exported_up_to(exported, "DeleteConnection")
    seen = {
        **named("told:", planted.told),
        **named("log:", logs(stack)),
        **named("process:", await processes(stack)),
        "spans": exported.text,
    }
    witnessed(seen, connections)
    found = {name: leaked(text, planted.secrets) for name, text in seen.items()}
    assert {name: secrets for name, secrets in found.items() if secrets} == {}


def witnessed(seen: dict[str, str], connections: dict[str, str]) -> None:
    """Checks that what was looked at is what there is to look at."""
    for part in ("credentials", "app_proxy", "auth", "provisioner"):
        assert seen[f"log: {part}.log"], part
    assert CALLBACK_PATH in seen["log: access.log"]
    for contract in ("credentials.v1.CredentialsService", "provisioner.v1.ProvisionerService"):
        assert contract in seen["spans"]
    processes = [text for name, text in seen.items() if name.startswith("process:")]
    assert any("services.credentials" in text for text in processes)
    assert any("BULKHEAD_KEYRING_FILE" in text for text in processes)
    assert all(any(each in text for text in seen.values()) for each in connections.values())


async def created(planted: Planted, provider: ProviderDouble) -> dict[str, str]:
    """Returns a connection of each kind that no person has to allow, and sets a webhook."""
    client = provider.client
    planted.secrets.append(client.client_secret)
    own = pb.ClientCredentials(client_id=client.client_id, client_secret=client.client_secret)
    credentials: dict[str, Any] = {
        "static": {"static_token": pb.StaticToken(token=planted.new("static-token"))},
        "key": {"api_key": pb.ApiKey(key=planted.new("api-key"))},
        "client": {"client_credentials": own},
    }
    found = {}
    for name, credential in credentials.items():
        made = await planted.done("CreateConnection", create(name=name, **credential))
        found[name] = made.connection.connection_id
    hook = await planted.call("SetWebhook", pb.SetWebhookRequest(url="https://127.0.0.1:1/hook"))
    planted.secrets.append(hook.secret)
    return found


def create(provider: str = "loopback", name: str = "n", **more: Any) -> pb.CreateConnectionRequest:
    return pb.CreateConnectionRequest(request_id=fresh_id(), provider=provider, name=name, **more)


def delete(connection: str) -> pb.DeleteConnectionRequest:
    return pb.DeleteConnectionRequest(connection_id=connection)


async def authorized(planted: Planted, provider: ProviderDouble) -> str:
    """Returns a connection that a person has allowed."""
    connection, url = await started(planted, provider)
    async with browsing() as browser:
        here = planted.see("asked", await browser.open(url))
        assert (await browser.press(here, "Allow")).heading == "Connected"
        # What was used up is of no use, and is not repeated either.
        assert planted.see("used up", await browser.press(here, "Allow")).status == 404
    return connection


async def started(planted: Planted, provider: ProviderDouble) -> tuple[str, str]:
    client = provider.client
    request = pb.StartAuthorizationRequest(
        request_id=fresh_id(),
        provider="loopback",
        name="oauth",
        client_id=client.client_id,
        client_secret=client.client_secret,
    )
    answer = await planted.call("StartAuthorization", request)
    url = answer.authorization_url
    planted.secrets += [url, *parse_qs(urlsplit(url).query)["state"]]
    return answer.connection.connection_id, url


async def bound(planted: Planted, deployment: Deployment, connections: dict[str, str]) -> None:
    for alias, connection in connections.items():
        request = pb.BindConnectionRequest(
            deployment_id=deployment.deployment_id, connection_id=connection, alias=alias
        )
        await planted.done("BindConnection", request)


async def vended(
    planted: Planted, deployment: Deployment, connections: dict[str, str], provider: ProviderDouble
) -> None:
    """Vends all of them, the one of OAuth until it had to be refreshed."""
    tokens = [await vend(planted, deployment, alias) for alias in connections]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not provider.state.seen["refresh"]:
            await asyncio.sleep(0.1)
            tokens.append(await vend(planted, deployment, "oauth"))
    assert all(result.HasField("token") for result in tokens)
    planted.secrets += [result.token.token for result in tokens]
    fingerprint = pb.FingerprintTokenRequest(token=tokens[-1].token.token)
    await planted.done("FingerprintToken", fingerprint)


async def kept(planted: Planted) -> None:
    """Has a deployment's secrets and first administrator kept, shown, refused and deleted."""
    made = await planted.done(
        "CreateDeployment",
        provisioner_pb.CreateDeploymentRequest(
            request_id=fresh_id(), name="kept", database=True, bucket=True, bootstrap_admin=True
        ),
    )
    here = made.deployment.deployment_id
    wait = provisioner_pb.WaitOperationRequest(operation_id=made.operation.operation_id)
    changes = planted.provisioner.WaitOperation(
        wait, metadata=bearer(planted.tenant_key), timeout=PATIENCE_SECONDS
    )
    states = [change.operation.state async for change in changes]
    assert states[-1] == provisioner_pb.OPERATION_STATE_SUCCEEDED
    for name, content in (
        ("GIVEN", {"value": planted.new("kept")}),
        ("MADE", {"generate_length": 64}),
    ):
        request = provisioner_pb.PutSecretRequest(deployment_id=here, name=name, **content)
        await planted.done("PutSecret", request)
    for name, value in (
        ("PATH", planted.new("bad-name")),
        ("NUL", planted.new("bad-value") + "\0"),
        ("LONG", planted.new("too-long") * 1_000),
    ):
        request = provisioner_pb.PutSecretRequest(deployment_id=here, name=name, value=value)
        await planted.refused("PutSecret", request)
    await planted.done("ListSecrets", provisioner_pb.ListSecretsRequest(deployment_id=here))
    reveal = provisioner_pb.RevealBootstrapAdminRequest(deployment_id=here)
    planted.secrets.append((await planted.call("RevealBootstrapAdmin", reveal)).password)
    await planted.refused("RevealBootstrapAdmin", reveal)
    scopes = ["environment:read", "db:write"]
    issued = await planted.auth.IssueKey(
        auth_pb.IssueKeyRequest(request_id=fresh_id(), deployment_id=here, scopes=scopes),
        metadata=bearer(planted.tenant_key),
    )
    planted.secrets.append(issued.key)
    asked = provisioner_pb.GetEnvironmentRequest()
    found = await planted.call("GetEnvironment", asked, issued.key)
    assert {"GIVEN", "MADE", "BULKHEAD_DATABASE_URL", "BULKHEAD_BUCKET_SECRET_KEY"} <= {
        each.name for each in found.variables
    }
    planted.secrets += [each.value for each in found.variables if each.name not in KNOWN]
    await planted.done(
        "DeleteSecret", provisioner_pb.DeleteSecretRequest(deployment_id=here, name="GIVEN")
    )


async def vend(planted: Planted, deployment: Deployment, alias: str) -> pb.VendResult:
    request = pb.VendRequest(items=[pb.VendItem(alias=alias, purpose="a test")])
    answer = await planted.call("Vend", request, deployment.key)
    return pb.VendResult.FromString(answer.results[0].SerializeToString())


async def misused(planted: Planted, deployment: Deployment, stack: Stack) -> None:
    """Gives secrets where they are refused, over each way in."""
    unknown = pb.ClientCredentials(client_id="unknown", client_secret=planted.new("secret"))
    for request in (
        create("nowhere", static_token=pb.StaticToken(token=planted.new("unknown-provider"))),
        create(api_key=pb.ApiKey(key=planted.new("too-long") * 300)),
        create(static_token=pb.StaticToken(token=planted.new("unprintable") + "\nü")),
        create(client_credentials=unknown),
    ):
        await planted.refused("CreateConnection", request)
    token = pb.StaticToken(token=planted.new("unknown-connection"))
    nobodys = pb.UpdateConnectionRequest(connection_id=f"con_{'0' * 26}", static_token=token)
    await planted.refused("UpdateConnection", nobodys)
    answers_of_it = {"state": planted.new("state"), "code": planted.new("code")}
    completion = pb.CompleteAuthorizationRequest(**answers_of_it)
    await planted.refused("CompleteAuthorization", completion)
    await planted.refused("GetWebhook", pb.GetWebhookRequest(), f"smcp_1t_{planted.new('key')}")
    sent = {**answers_of_it, "decision": "allow"}
    async with http_client() as http:
        for host in ("localhost", deployment.host):
            url = f"http://{host}:{stack.port}{CALLBACK_PATH}"
            for answer in (await http.get(url, params=sent), await http.post(url, data=sent)):
                assert answer.status_code in {401, 404}, answer.status_code
                planted.tell(f"{answer.request.method} {host}", f"{answer.text} {answer.headers}")


async def broken(
    planted: Planted, deployment: Deployment, connection: str, provider: ProviderDouble
) -> None:
    """Lets the provider say secrets back to us, when codes are exchanged and tokens refreshed."""
    echo = json.dumps({"error": "invalid_grant", "error_description": planted.new("echo")})
    refusal = answers(400, echo, content_type="application/json")
    page = answers(500, f"<html>{planted.new('page')}</html>", content_type="text/html")
    _, url = await started(planted, provider)
    async with met(provider, refusal), browsing() as browser:
        refused = await browser.press(await browser.open(url), "Allow")
        assert planted.see("refused", refused).status == 400
    async with met(provider, page):
        client = pb.ClientCredentials(client_id="any", client_secret=planted.new("secret"))
        await planted.refused("CreateConnection", create(client_credentials=client))
        await refused_once(planted, deployment, "client")
    async with met(provider, refusal):
        await refused_once(planted, deployment, "oauth")
    request = pb.GetConnectionRequest(connection_id=connection)
    answer = await planted.done("GetConnection", request)
    assert answer.connection.state == pb.CONNECTION_STATE_NEEDS_REAUTHORIZATION


async def refused_once(planted: Planted, deployment: Deployment, alias: str) -> None:
    """Vends until the token at hand is of no use any more, and no other can be had."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (result := await vend(planted, deployment, alias)).HasField("token"):
            planted.secrets.append(result.token.token)
            await asyncio.sleep(0.1)
    planted.tell(f"vend {alias}", str(result))


async def by_command_line(planted: Planted, tenant: Tenant) -> None:
    """Gives secrets to commands, which are refused as well."""
    token = ("--token-file", "-", "--json")
    for arguments in (
        ("connection", "create", "nowhere", "--name", "n", *token),
        ("connection", "update", f"con_{'0' * 26}", *token),
    ):
        ran = await tenant.run(*arguments, given=planted.new("token"))
        assert ran.code == 1
        planted.tell(" ".join(arguments), ran.out + ran.err)


def noted(provider: ProviderDouble) -> list[str]:
    """Returns everything that the provider has given out."""
    state = provider.state
    return [*state.codes, *state.access_tokens, *state.refresh_tokens]


@asynccontextmanager
async def short_lived(provider: ProviderDouble) -> AsyncIterator[None]:
    """Lets access tokens be of use for a moment."""
    before, provider.rules.expires_in = provider.rules.expires_in, SHORT_SECONDS
    try:
        yield
    finally:
        provider.rules.expires_in = before


@asynccontextmanager
async def met(provider: ProviderDouble, fault: Fault) -> AsyncIterator[None]:
    """Lets every request for a token meet the fault."""
    provider.next("/token", *(fault,) * MANY)
    try:
        yield
    finally:
        provider.faults.clear()


async def exported_up_to(exported: Exports, method: str) -> None:
    """Waits until the spans of the last calls have come."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while method not in exported.text:
            await asyncio.sleep(0.1)
