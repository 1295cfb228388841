"""Attacks on every method, generated from what the contracts declare."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from bulkhead.common.v1 import access_pb2
from google.protobuf.message_factory import GetMessageClass

from services.shared.ids import random_text
from services.shared.keyformat import new_key
from services.shared.principal import KeyKind, permits
from services.shared.principal_messages import KEY_KINDS
from tests.contracts import Method, every_method
from tests.lending import Lender
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import details

SERVICES = ("app_proxy", "auth", "credentials", "edge", "provisioner", "ratelimit")
# How ids begin, by what they name.
PREFIXES = {
    "any": "dep_",
    "backup": "bak_",
    "binding": "bnd_",
    "connection": "con_",
    "deployment": "dep_",
    "key": "key_",
    "operation": "op_",
}
# What no tenant has: OAuth clients are the providers' to know, the keys around data keys the
# operator's.
NOBODYS = {"client", "key_encryption_key"}
KEYED = [method for method in every_method() if method.access.keys]


@dataclass(frozen=True, slots=True)
class Victim:
    """A tenant with one of everything."""

    customer: Customer
    ids: Mapping[str, str]
    keys: Mapping[KeyKind, str]


@pytest.fixture(scope="session")
async def victim(mesh: Mesh) -> Victim:
    return await make_victim(mesh)


@pytest.fixture(scope="session")
async def attacker(mesh: Mesh) -> Victim:
    return await make_victim(mesh)


async def make_victim(mesh: Mesh) -> Victim:
    customer = await mesh.customer()
    deployment = await mesh.deployment(customer)
    deployment_key = await mesh.key(customer, deployment.deployment_id)
    lender = Lender(mesh, customer)
    connection_id = await lender.connection(exclusive=True)
    binding = await lender.bind(deployment.deployment_id, connection_id)
    deletion = await mesh.deployment(customer, database=False, mcp=False)
    operation = await delete(mesh, customer, deletion.deployment_id)
    return Victim(
        customer,
        {
            "any": deployment.deployment_id,
            "backup": await back_up(mesh, customer, deployment.deployment_id),
            "binding": binding.binding_id,
            "connection": connection_id,
            "deployment": deployment.deployment_id,
            "key": deployment_key.key_id,
            "operation": operation,
        },
        {
            KeyKind.OPERATOR: mesh.operator_key,
            KeyKind.TENANT: customer.key,
            KeyKind.DEPLOYMENT: deployment_key.key,
            KeyKind.CONNECTION: (await lender.connection_key(connection_id)).key,
            KeyKind.JOB: await mesh.job_key(customer),
        },
    )


async def delete(mesh: Mesh, customer: Customer, deployment_id: str) -> str:
    method = next(method for method in every_method() if method.path.endswith("/DeleteDeployment"))
    deleted = await call(mesh, method, method.request(deployment_id=deployment_id), customer.key)
    operation_id: str = deleted.operation.operation_id
    return operation_id


async def back_up(mesh: Mesh, customer: Customer, deployment_id: str) -> str:
    method = next(method for method in every_method() if method.path.endswith("/CreateBackup"))
    request = method.request(request_id=fresh_id(), deployment_id=deployment_id)
    created = await call(mesh, method, request, customer.key)
    await mesh.finished(customer, created.operation.operation_id)
    backup_id: str = created.backup.backup_id
    return backup_id


async def call(
    mesh: Mesh, method: Method, request: Any, key: str | None, peer: str | None = None
) -> Any:
    """Returns the answer, or the first of a stream's."""
    channel = mesh.channel(method.service, peer or method.caller())
    metadata = bearer(key) if key is not None else ()
    response_type = GetMessageClass(method.descriptor.output_type)
    serialize, parse = type(request).SerializeToString, response_type.FromString
    if not method.descriptor.server_streaming:
        unary = channel.unary_unary(method.path, serialize, parse)
        return await unary(request, metadata=metadata, timeout=10)
    stream = channel.unary_stream(method.path, serialize, parse)(
        request, metadata=metadata, timeout=10
    )
    async for response in stream:
        stream.cancel()
        return response
    return None


async def refusal(calling: Any) -> tuple[str, str, str | None]:
    """Returns code, reason and message of a call that must not succeed."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calling
    info, _ = details(caught.value)
    return caught.value.code().name, info.reason, caught.value.details()


def ids(methods: list[Method]) -> Callable[..., Any]:
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.path)


@pytest.mark.promise("P-30")
@ids(KEYED)
async def test_without_a_key_or_with_a_false_one_no_method_opens(
    mesh: Mesh, method: Method
) -> None:
    missing = await refusal(call(mesh, method, method.request(), None))
    assert missing[:2] == ("UNAUTHENTICATED", "KEY_MISSING")
    for false in ("x", new_key(KeyKind.TENANT), new_key(KeyKind.DEPLOYMENT)):
        unknown = await refusal(call(mesh, method, method.request(), false))
        assert unknown[:2] == ("UNAUTHENTICATED", "KEY_INVALID")


@ids(KEYED)
async def test_a_key_of_another_kind_does_not_open_it(
    mesh: Mesh, victim: Victim, method: Method
) -> None:
    opens = {KEY_KINDS[kind] for kind in method.access.keys}
    tried = 0
    for kind, key in victim.keys.items():
        # A job's key is no key at all from any service but the one that holds it.
        if kind in opens or (kind is KeyKind.JOB and method.caller() != "provisioner"):
            continue
        answer = await refusal(call(mesh, method, method.request(), key))
        assert answer[:2] == ("PERMISSION_DENIED", "KEY_KIND_REFUSED"), kind
        tried += 1
    assert tried > 0 or len(opens) >= len(victim.keys) - 1


@ids([method for method in KEYED if method.access.scope])
async def test_a_key_without_the_scope_does_not_open_it(
    mesh: Mesh, victim: Victim, method: Method
) -> None:
    kind = KEY_KINDS[method.access.keys[0]]
    if kind is KeyKind.OPERATOR:
        # An operator's key cannot be narrowed: that it is the only kind is tested above.
        assert list(method.access.keys) == [access_pb2.KEY_KIND_OPERATOR]
        return
    of_deployment = kind is KeyKind.DEPLOYMENT
    others = ("usage:read",) if of_deployment else ("deployments:write", "audit:read", "usage:read")
    other = next(scope for scope in others if not permits([scope], method.access.scope))
    deployment = victim.ids["deployment"] if of_deployment else ""
    narrow = (await mesh.key(victim.customer, deployment, scopes=(other,))).key
    if list(method.access.keys) == [access_pb2.KEY_KIND_JOB]:
        narrow = await mesh.job_key(replace(victim.customer, key=narrow), (other,))
    answer = await refusal(call(mesh, method, method.request(), narrow))
    assert answer[:2] == ("PERMISSION_DENIED", "SCOPE_MISSING")


@ids([method for method in every_method() if method.access.peers])
async def test_a_service_that_is_no_peer_of_it_is_refused(
    mesh: Mesh, victim: Victim, method: Method
) -> None:
    strangers = [service for service in SERVICES if service not in method.access.peers]
    # What anybody may ask comes through the front door, and through nothing else.
    assert "edge" in strangers or list(method.access.peers) == ["edge"]
    for stranger in strangers:
        key = None if method.access.keyless else victim.customer.key
        answer = await refusal(call(mesh, method, method.request(), key, stranger))
        assert answer[:2] == ("PERMISSION_DENIED", "PEER_REFUSED"), stranger


def unknown(kind: str) -> str:
    """Returns an id that is nobody's: a new one, since to retire an id is to take it."""
    return PREFIXES[kind] + random_text()


def naming_requests(method: Method) -> list[tuple[str, str]]:
    """Returns path and kind of the request's top-level fields that name a resource."""
    return [
        (field.name, field.GetOptions().Extensions[access_pb2.resource].kind)
        for field in method.descriptor.input_type.fields
        if field.GetOptions().Extensions[access_pb2.resource].kind
    ]


# What a request needs beside the id so that the id is what it is judged by.
COMPLETED: Mapping[str, Callable[[], dict[str, Any]]] = {
    "/bulkhead.auth.v1.AuthService/IssueKey": lambda: {"request_id": fresh_id()},
    "/bulkhead.auth.v1.AuthService/RotateKey": lambda: {"request_id": fresh_id()},
    "/bulkhead.credentials.v1.CredentialsService/StartAuthorization": lambda: {
        "request_id": fresh_id()
    },
    "/bulkhead.provisioner.v1.ProvisionerService/RotateDatabaseCredentials": lambda: {
        "request_id": fresh_id()
    },
    "/bulkhead.provisioner.v1.ProvisionerService/CreateBranch": lambda: {
        "request_id": fresh_id(),
        "name": "taken",
    },
    "/bulkhead.provisioner.v1.ProvisionerService/CreateBackup": lambda: {"request_id": fresh_id()},
    "/bulkhead.provisioner.v1.ProvisionerService/RestoreBackup": lambda: {
        "request_id": fresh_id(),
        "name": "taken",
    },
    "/bulkhead.provisioner.v1.ProvisionerService/PutSecret": lambda: {
        "name": "TAKEN",
        "value": "taken",
    },
    "/bulkhead.provisioner.v1.ProvisionerService/DeleteSecret": lambda: {"name": "TAKEN"},
}
# Methods that answer alike for every id: nothing is found, nothing is changed, nothing is told.
SILENT = {
    "/bulkhead.auth.v1.AuthService/ListKeys",
    "/bulkhead.auth.v1.AuthService/RetireDeployment",
    "/bulkhead.auth.v1.AuthService/RetireConnection",
    "/bulkhead.credentials.v1.CredentialsService/ListBindings",
    "/bulkhead.credentials.v1.CredentialsService/ReleaseDeployment",
    "/bulkhead.app_proxy.v1.RoutingService/DeleteRoute",
}

# Methods to which a foreign or unknown id is not the same, and where it is attacked instead.
ATTACKED_ELSEWHERE = {
    # An unknown id is what it is for: contract/test_auth.py.
    "/bulkhead.auth.v1.AuthService/RegisterDeployment",
    # The same: contract/test_auth_connections.py.
    "/bulkhead.auth.v1.AuthService/RegisterConnection",
    # A log has what its own tenant tried with a foreign id: contract/test_audit_log.py.
    "/bulkhead.auth.v1.AuthService/ListAuditEvents",
    # Every tenant is the operator's to help: contract/test_support_keys.py.
    "/bulkhead.auth.v1.AuthService/IssueSupportKey",
}


@pytest.mark.promise("P-41")
@ids([method for method in KEYED if naming_requests(method)])
async def test_what_is_another_tenants_is_answered_as_what_does_not_exist(
    mesh: Mesh, victim: Victim, attacker: Victim, method: Method
) -> None:
    if method.path in ATTACKED_ELSEWHERE:
        return
    fields = COMPLETED.get(method.path, dict)
    for kind in (KEY_KINDS[number] for number in method.access.keys):
        if kind is KeyKind.JOB and method.caller() != "provisioner":
            continue
        for field, names in naming_requests(method):
            if names in NOBODYS:
                continue
            answers = [
                await outcome(mesh, method, fields() | {field: value}, attacker.keys[kind])
                for value in (victim.ids[names], unknown(names))
            ]
            assert answers[0] == answers[1], kind
            if method.path not in SILENT:
                assert answers[0][:2] == ("NOT_FOUND", "RESOURCE_NOT_FOUND")


async def outcome(mesh: Mesh, method: Method, fields: dict[str, Any], key: str) -> tuple[Any, ...]:
    """Returns what a caller sees: the refusal, or the answer."""
    try:
        return ("OK", str(await call(mesh, method, method.request(**fields), key)))
    except grpc.aio.AioRpcError as error:
        return (error.code().name, details(error)[0].reason, error.details())
