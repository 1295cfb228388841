"""What must be true of every contract, whoever writes the next one."""

import ast
import filecmp
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bulkhead.common.v1 import access_pb2, error_reason_pb2

from services.shared.errors import Reason
from services.shared.principal import KeyKind
from tests.contracts import ROOT, Method, every_field, every_method

METHODS = pytest.mark.parametrize("method", every_method(), ids=lambda method: method.path)
# The methods that a test calls by name; isolation/ beside it attacks each by reflection too.
CALLED = {
    node.func.attr
    for folder in ("contract", "isolation")
    for tests in sorted((ROOT / "tests" / folder).glob("test_*.py"))
    for node in ast.walk(ast.parse(tests.read_text()))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
}
_NAMES_A_TENANT = re.compile(r"tenant|workspace|customer|account|organi[sz]ation", re.IGNORECASE)
# The one exchange of a tenant's id for a key of it; what it may be is tested in test_support_keys.
_MAY_NAME_A_TENANT = {("/bulkhead.auth.v1.AuthService/IssueSupportKey", "tenant_id")}
_HOLDS_A_SECRET = re.compile(r"^(key|password|uri|secret|token)$|digests?$")


def test_there_are_contracts_to_test() -> None:
    assert {method.service for method in every_method()} == {
        "app_proxy",
        "auth",
        "credentials",
        "provisioner",
        "ratelimit",
    }


@METHODS
def test_every_method_declares_who_may_call_it(method: Method) -> None:
    assert method.declares_access
    access = method.access
    assert access.audit != access_pb2.AUDIT_UNSPECIFIED
    assert access.keyless == (not access.keys)
    assert not access.keyless or access.peers


@pytest.mark.promise("P-30")
@METHODS
def test_no_request_names_a_tenant(method: Method) -> None:
    named = {
        (method.path, path)
        for path, _ in every_field(method.descriptor.input_type)
        if _NAMES_A_TENANT.search(path)
    }
    assert named == {(path, field) for path, field in _MAY_NAME_A_TENANT if path == method.path}


@METHODS
def test_ids_in_requests_say_what_they_name(method: Method) -> None:
    for path, field in every_field(method.descriptor.input_type):
        if field.name.endswith("_id") and field.name != "request_id":
            assert field.GetOptions().Extensions[access_pb2.resource].kind, path


@METHODS
def test_secrets_are_marked_as_such(method: Method) -> None:
    for message in (method.descriptor.input_type, method.descriptor.output_type):
        for path, field in every_field(message):
            if _HOLDS_A_SECRET.search(field.name) and field.message_type is None:
                assert field.GetOptions().Extensions[access_pb2.secret], path


@METHODS
def test_every_method_has_its_own_messages_and_is_called_by_a_test(method: Method) -> None:
    name = method.descriptor.name
    assert method.descriptor.input_type.name == f"{name}Request"
    assert method.descriptor.output_type.name == f"{name}Response"
    assert name in CALLED, f"no test calls {name}"


def test_the_reasons_of_errors_are_those_of_the_contract() -> None:
    contract = {
        name.removeprefix("ERROR_REASON_")
        for name in error_reason_pb2.ErrorReason.keys()  # noqa: SIM118 not a dict
    }
    assert contract - {"UNSPECIFIED"} == {reason.value for reason in Reason}


def test_the_kinds_of_keys_are_those_of_the_contract() -> None:
    contract = {
        name.removeprefix("KEY_KIND_").lower()
        for name in access_pb2.KeyKind.keys()  # noqa: SIM118 not a dict
    }
    assert contract - {"unspecified"} == {kind.value for kind in KeyKind}


def test_the_committed_code_is_what_the_contracts_generate(tmp_path: Path) -> None:
    # In a process of its own: the compiler forks, which one that runs gRPC does not survive.
    target = str(tmp_path / "gen")
    subprocess.run([sys.executable, "-m", "deploy.protos", target], check=True, cwd=ROOT)
    committed = ROOT / "protos" / "gen"
    fresh = {path.relative_to(tmp_path / "gen") for path in (tmp_path / "gen").rglob("*.py*")}
    kept = {
        path.relative_to(committed)
        for path in committed.rglob("*.py*")
        if "__pycache__" not in path.parts
    }
    assert fresh == kept
    _, differing, errors = filecmp.cmpfiles(
        tmp_path / "gen", committed, [str(path) for path in fresh], shallow=False
    )
    assert (differing, errors) == ([], [])
