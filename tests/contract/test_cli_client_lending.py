"""What the commands of connections and bindings say to who is at the terminal."""

import asyncio
import os
import signal
import sys
from datetime import timedelta
from typing import Any

import grpc
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.common.v1 import error_reason_pb2
from bulkhead.credentials.v1 import credentials_service_pb2 as pb
from bulkhead.credentials.v1.credentials_service_pb2_grpc import (
    CredentialsServiceStub,
    KeyringServiceStub,
)
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import (
    KeyringServiceStub as ProvisionerKeyringStub,
)
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import (
    ProvisionerServiceStub,
)
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub
from typer.testing import CliRunner

from cli.program import build
from cli.refusal import Refusal
from cli.session import Session
from cli.waiting import Patience, allowed
from services.shared.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidFieldError,
    Reason,
)
from tests.scripted_api import (
    COMMAND_SECONDS,
    CREATED,
    KEY,
    PROGRAM,
    ScriptedApi,
    bulkhead,
    time,
)

LATER = CREATED + timedelta(days=30)
TAIL = "0123456789abcdefghijklmnop"
CON, DEP, BND = f"con_{TAIL}", f"dep_{TAIL}", f"bnd_{TAIL}"
ANEW = f"bulkhead connection authorize --connection {CON}"
LONG = "a name of many words that says what it is for and whose it is"
BY_PERSON = pb.CONNECTION_KIND_AUTHORIZATION_CODE


def connection(state: str = "AUTHORIZING", **more: Any) -> pb.Connection:
    known: dict[str, Any] = {
        "connection_id": CON,
        "name": LONG,
        "provider": "google_workspace",
        "kind": BY_PERSON,
        "state": pb.ConnectionState.Value(f"CONNECTION_STATE_{state}"),
        "create_time": time(),
    }
    return pb.Connection(**(known | more))


STARTED = pb.StartAuthorizationResponse(
    connection=connection(), authorization_url="https://p.example/", expire_time=time(LATER)
)


async def test_nobody_is_waited_for_once_the_link_is_gone(
    api: ScriptedApi, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter([connection(authorization_expire_time=time(LATER))])
    api.answers["GetConnection"] = lambda _: pb.GetConnectionResponse(
        connection=next(looks, connection())
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{api.port}") as channel:
        session = Session(
            AuthServiceStub(channel),
            ProvisionerServiceStub(channel),
            RatelimitServiceStub(channel),
            CredentialsServiceStub(channel),
            KeyringServiceStub(channel),
            ProvisionerKeyringStub(channel),
            json=False,
        )
        with pytest.raises(Refusal) as refused:
            await allowed(session, STARTED, Patience(COMMAND_SECONDS, provider=0.1))
    assert refused.value.reason == "AUTHORIZATION_ENDED"
    assert f"they did not allow it, or the link was used up; begin anew: {ANEW}" in (
        refused.value.message
    )
    assert "used up or over" in capsys.readouterr().err


async def test_what_the_provider_grants_late_still_counts(api: ScriptedApi) -> None:
    looks = iter([connection(), connection()])
    api.answers["StartAuthorization"] = STARTED
    api.answers["GetConnection"] = lambda _: pb.GetConnectionResponse(
        connection=next(looks, connection("ACTIVE"))
    )
    outcome = await bulkhead(api.port, "connection", "authorize", "github", "--name", "n")
    assert (outcome.code, "state       active" in outcome.out) == (0, True), outcome.err


async def test_who_stops_waiting_is_told_what_is_left(api: ScriptedApi) -> None:
    open_yet = connection(authorization_expire_time=time(LATER))
    api.answers["StartAuthorization"] = STARTED
    api.answers["GetConnection"] = pb.GetConnectionResponse(connection=open_yet)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, "connection", "authorize", "github", "--name", "n",
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
            "BULKHEAD_KEY": KEY, "BULKHEAD_API": f"127.0.0.1:{api.port}",
        },
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(COMMAND_SECONDS):
        while not api.requests("GetConnection"):
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = await process.communicate()
    assert process.returncode != 0
    assert "the link works on until 2026-12-22 12:00:00Z" in told.decode()
    assert ANEW in told.decode()
    assert f"bulkhead connection delete {CON}" in told.decode()


async def test_what_waits_for_a_person_says_so(api: ScriptedApi) -> None:
    open_yet = connection(authorization_expire_time=time(LATER))
    api.answers["GetConnection"] = pb.GetConnectionResponse(connection=open_yet)
    shown = (await bulkhead(api.port, "connection", "get", CON)).out
    assert "link open until  2026-12-22 12:00:00Z" in shown
    assert ANEW not in shown
    api.answers["ListConnections"] = pb.ListConnectionsResponse(
        connections=[open_yet, connection()]
    )
    lines = (await bulkhead(api.port, "connection", "list")).out.splitlines()
    assert lines[-3:] == [
        f"{CON}: allow it by 2026-12-22 12:00:00Z",
        f"mend: {ANEW}",
        f"or end: bulkhead connection delete {CON}",
    ]


def binding(state: str = "ACTIVE") -> pb.Binding:
    return pb.Binding(
        binding_id=BND, deployment_id=DEP, connection_id=CON, alias="google_workspace",
        provider="google_workspace", scope_ceiling=["drive.readonly", "calendar.readonly"],
        expire_time=time(LATER), state=pb.ConnectionState.Value(f"CONNECTION_STATE_{state}"),
    )  # fmt: skip


async def test_tables_fit_eighty_columns_with_whole_words(api: ScriptedApi) -> None:
    broken = connection(
        "NEEDS_REAUTHORIZATION",
        state_reason=pb.STATE_REASON_GRANT_REFUSED,
        last_vend_time=time(),
    )
    kinds = [kind for kind in pb.ConnectionKind.values() if kind]
    token = pb.VendedToken(
        token="t" * 40, token_type="Bearer", expire_time=time(LATER), alias="google_workspace",
        scopes=["drive.readonly", "calendar"], provider="google_workspace", connection_id=CON,
    )  # fmt: skip
    refusal = pb.VendRefusal(
        reason=error_reason_pb2.ERROR_REASON_CONNECTION_NEEDS_REAUTHORIZATION,
        message=f"the connection needs a new token: bulkhead connection update {CON}",
    )
    event = auth_pb.AuditEvent(
        sequence=100_000, key_id=f"key_{TAIL}", time=time(), reason=LONG,
        resources={"deployment": DEP, "connection": CON},
    )  # fmt: skip
    api.answers |= {
        "ListConnections": pb.ListConnectionsResponse(connections=[broken]),
        "ListBindings": pb.ListBindingsResponse(bindings=[binding("NEEDS_REAUTHORIZATION")]),
        "ListProviders": pb.ListProvidersResponse(
            providers=[
                pb.Provider(
                    name="google_workspace", title="Google Workspace and all that goes with it",
                    kinds=kinds, parameters=["account", "region"], operator_client=True,
                )
            ]
        ),
        "FingerprintToken": pb.FingerprintTokenResponse(token_fingerprint="tok_1"),
        "ListAuditEvents": auth_pb.ListAuditEventsResponse(events=[event]),
        "Vend": pb.VendResponse(
            results=[pb.VendResult(token=token), pb.VendResult(refusal=refusal)]
        ),
    }  # fmt: skip
    for command, whole in (
        ("connection list", CON),
        ("binding list", BND),
        ("provider list", "google_workspace"),
        ("connection trace", f"key_{TAIL}"),
        ("vend a b", f"connection update {CON}"),
    ):
        outcome = await bulkhead(api.port, *command.split(), given="leaked")
        shown = (outcome.out + outcome.err).splitlines()
        assert [line for line in shown if len(line) > 80] == [], command
        assert whole in outcome.out + outcome.err, command


PROVIDERS = pb.ListProvidersResponse(
    providers=[
        pb.Provider(name="github", kinds=[BY_PERSON, pb.CONNECTION_KIND_STATIC_TOKEN]),
        pb.Provider(name="acme", kinds=[pb.CONNECTION_KIND_API_KEY], parameters=["team"]),
    ]
)


@pytest.mark.parametrize(
    ("provider", "error", "said"),
    [
        (
            "gitub",
            InvalidFieldError("provider", "is not in the catalogue"),
            "PROVIDER: there is no 'gitub'; see: bulkhead provider list",
        ),
        (
            "github",
            InvalidFieldError("credential", "github takes static_token"),
            "github takes `bulkhead connection authorize` or --token-file",
        ),
        (
            "acme",
            InvalidFieldError("parameters.team", "must match [a-z]+"),
            "--parameter team: must match [a-z]+; acme takes --parameter team=…",
        ),
    ],
)
async def test_a_refused_connection_speaks_of_options(
    api: ScriptedApi, provider: str, error: Exception, said: str
) -> None:
    api.answers |= {"CreateConnection": error, "ListProviders": PROVIDERS}
    outcome = await bulkhead(
        api.port, "connection", "create", provider, "--name", "n", "--api-key-file", "-", given="k"
    )
    assert (outcome.code, said in outcome.err) == (1, True), outcome.err


async def test_another_kind_of_credential_is_refused_with_the_one_that_fits(
    api: ScriptedApi,
) -> None:
    there = connection("ACTIVE", kind=pb.CONNECTION_KIND_STATIC_TOKEN)
    kind = FailedPreconditionError("of kind static_token", Reason.CONNECTION_KIND)
    api.answers |= {
        "UpdateConnection": kind,
        "GetConnection": pb.GetConnectionResponse(connection=there),
    }
    outcome = await bulkhead(
        api.port, "connection", "update", CON, "--api-key-file", "-", given="k"
    )
    assert f"of kind static_token: bulkhead connection update {CON} --token-file -" in outcome.err


async def test_an_alias_that_is_taken_names_what_holds_it(api: ScriptedApi) -> None:
    api.answers["BindConnection"] = AlreadyExistsError(
        "taken", Reason.ALIAS_TAKEN, metadata={"binding_id": BND}
    )
    outcome = await bulkhead(api.port, "binding", "create", DEP, CON, "--alias", "chat")
    assert outcome.code == 1
    assert f"chat is the binding {BND} already; --replace swaps it" in outcome.err


async def test_a_binding_to_what_waits_says_what_comes_first(api: ScriptedApi) -> None:
    api.answers["BindConnection"] = pb.BindConnectionResponse(binding=binding("AUTHORIZING"))
    outcome = await bulkhead(api.port, "binding", "create", DEP, CON)
    first, then = outcome.err.splitlines()
    assert first == f"Next, for it is authorizing: {ANEW}"
    assert then.endswith("bulkhead vend google_workspace")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", CON, DEP), f"{CON}: that is a connection's id"),
        (("create", DEP, "github"), "github: that is no id; here goes a connection's"),
        (("delete", CON), "that is a connection's id; here goes a binding's"),
        (("create", DEP, CON, "--expires", "yesterday"), "--expires: 'yesterday' is not a time"),
    ],
)
def test_ids_and_times_are_looked_at_before_anything_is_sent(
    arguments: tuple[str, ...], said: str
) -> None:
    environment = {"BULKHEAD_KEY": KEY, "BULKHEAD_API": "127.0.0.1:1", "COLUMNS": "200"}
    outcome = CliRunner().invoke(build(), ["binding", *arguments], env=environment)
    assert (outcome.exit_code, said in outcome.output) == (2, True), outcome.output
