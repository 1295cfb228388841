"""Connections and bindings on the command line."""

import asyncio
import os
import pty
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.credentials.v1 import credentials_service_pb2 as pb
from typer.testing import CliRunner

from cli.program import build
from services.shared.errors import InvalidFieldError, UnavailableError
from tests.canaries import STATIC_TOKEN
from tests.scripted_api import COMMAND_SECONDS, CREATED, KEY, PROGRAM, ScriptedApi, bulkhead, time

LATER = CREATED + timedelta(days=30)
SECRET = STATIC_TOKEN
URL = "https://provider.example/authorize?state=secret"


def connection(state: str = "ACTIVE", **more: Any) -> pb.Connection:
    known: dict[str, Any] = {
        "connection_id": "con_1",
        "name": "build",
        "provider": "github",
        "kind": pb.CONNECTION_KIND_STATIC_TOKEN,
        "state": pb.ConnectionState.Value(f"CONNECTION_STATE_{state}"),
        "create_time": time(),
    }
    return pb.Connection(**(known | more))


def started(state: str = "AUTHORIZING") -> pb.StartAuthorizationResponse:
    return pb.StartAuthorizationResponse(
        connection=connection(state, kind=pb.CONNECTION_KIND_AUTHORIZATION_CODE),
        authorization_url=URL,
        expire_time=time(LATER),
    )


def waiting() -> pb.Connection:
    """Returns a connection whose link a person can use."""
    kind = pb.CONNECTION_KIND_AUTHORIZATION_CODE
    return connection("AUTHORIZING", kind=kind, authorization_expire_time=time(LATER))


async def test_a_token_is_read_from_a_file_and_never_printed(
    api: ScriptedApi, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    api.answers["CreateConnection"] = pb.CreateConnectionResponse(connection=connection())
    outcome = await bulkhead(
        api.port, "connection", "create", "github", "--name", "build", "--token-file", str(file),
        "--token-expires", "2026-12-22", "--exclusive", "--parameter", "host=a=b",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert SECRET not in outcome.out + outcome.err
    assert "Next: bulkhead binding create dep_… con_1" in outcome.err
    (request,) = api.requests("CreateConnection")
    assert request.static_token.token == SECRET
    assert request.static_token.expire_time.ToJsonString() == "2026-12-22T00:00:00Z"
    assert (request.exclusive, dict(request.parameters)) == (True, {"host": "a=b"})
    assert len(request.request_id) == 36


async def test_other_secrets_come_from_standard_input(api: ScriptedApi) -> None:
    api.answers["CreateConnection"] = pb.CreateConnectionResponse(connection=connection())
    api.answers["UpdateConnection"] = pb.UpdateConnectionResponse(connection=connection())
    create = ("connection", "create", "github", "--name", "n", "--json")
    outcomes = [
        await bulkhead(api.port, *arguments, given=SECRET)
        for arguments in (
            (*create, "--api-key-file", "-", "--username", "ada"),
            (*create, "--client-id", "id", "--client-secret-file", "-", "--scope", "read"),
            ("connection", "update", "con_1", "--token-file", "-", "--shared"),
        )
    ]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0], outcomes
    assert outcomes[0].json["connection_id"] == "con_1"
    api_key, client = api.requests("CreateConnection")
    assert (api_key.api_key.key, api_key.api_key.username) == (SECRET, "ada")
    assert client.client_credentials == pb.ClientCredentials(
        client_id="id", client_secret=SECRET, scopes=["read"]
    )
    (update,) = api.requests("UpdateConnection")
    assert update.static_token.token == SECRET
    assert (update.HasField("name"), update.HasField("exclusive")) == (False, True)
    assert not update.exclusive


async def test_at_a_terminal_a_secret_is_asked_for_and_not_shown(api: ScriptedApi) -> None:
    api.answers["CreateConnection"] = pb.CreateConnectionResponse(connection=connection())
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM,
        *("connection", "create", "github", "--name", "build", "--token-file", "-"),
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
            "BULKHEAD_KEY": KEY, "BULKHEAD_API": f"127.0.0.1:{api.port}",
        },
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = ""
    async with asyncio.timeout(COMMAND_SECONDS):
        while "not shown" not in shown:
            shown += (await asyncio.to_thread(os.read, ours, 1024)).decode()
        os.write(ours, f"{SECRET}\n".encode())
        shown += await asyncio.to_thread(rest, ours)
        assert await process.wait() == 0, shown
    os.close(ours)
    assert api.requests("CreateConnection")[0].static_token.token == SECRET
    assert SECRET not in shown


def rest(terminal: int) -> str:
    """Returns what is written to a terminal until nobody holds its other end."""
    found = b""
    try:
        while part := os.read(terminal, 1024):
            found += part
    except OSError:
        # How Linux says that the other end is closed.
        return found.decode()
    return found.decode()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "github", "--name", "n"), "connection authorize github"),
        (("create", "github", "--name", "n", "--token-file", "/nowhere"), "cannot read"),
        (("create", "github", "--name", "n", "--token-file", "-"), "nothing in standard input"),
        (("create", "x", "--name", "n", "--token-file", "-", "--api-key-file", "-"), "not both"),
        (("create", "x", "--name", "n", "--client-id", "i"), "needs --client-secret-file"),
        (("create", "x", "--name", "n", "--token-file", "-", "--scope", "s"), "needs --client-id"),
        (("create", "x", "--name", "n", "--token-file", "-", "--parameter", "a"), "NAME=VALUE"),
        (("update", "con_1"), "say what to change"),
        (("authorize", "github"), "--name"),
        (("authorize", "github", "--connection", "con_1"), "leave them out"),
        (("trace",), "nothing in standard input"),
    ],
)
def test_wrong_use_is_found_before_anything_is_sent(arguments: tuple[str, ...], said: str) -> None:
    environment = {"BULKHEAD_KEY": KEY, "BULKHEAD_API": "127.0.0.1:1"}
    outcome = CliRunner().invoke(build(), ["connection", *arguments], env=environment, input="")
    assert outcome.exit_code == 2, outcome.output
    assert said in " ".join(outcome.output.replace("│", " ").split())


async def test_authorize_invites_waits_and_shows_what_was_allowed(api: ScriptedApi) -> None:
    looks = iter([waiting(), UnavailableError("stopping"), waiting(), connection()])

    def look(_: object) -> Any:
        found = next(looks)
        return (
            pb.GetConnectionResponse(connection=found)
            if isinstance(found, pb.Connection)
            else found
        )

    api.answers |= {"StartAuthorization": started(), "GetConnection": look}
    outcome = await bulkhead(
        api.port, "connection", "authorize", "github", "--name", "team", "--scope", "repo",
        "--client-id", "id", "--client-secret-file", "-", given=SECRET,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "active" in outcome.out
    assert URL in outcome.err.splitlines()
    assert "works until 2026-12-22 12:00:00Z" in outcome.err
    (request,) = api.requests("StartAuthorization")
    assert (request.provider, request.name, list(request.scopes)) == ("github", "team", ["repo"])
    assert (request.client_id, request.client_secret) == ("id", SECRET)


async def test_authorize_returns_at_once_where_nobody_is_waited_for(api: ScriptedApi) -> None:
    api.answers["StartAuthorization"] = started()
    outcome = await bulkhead(
        api.port, "connection", "authorize", "github", "--name", "team", "--no-wait", "--json"
    )
    assert outcome.json["authorization_url"] == URL
    assert outcome.json["connection"]["state"] == "CONNECTION_STATE_AUTHORIZING"
    api.answers["StartAuthorization"] = started("ACTIVE")
    anew = await bulkhead(api.port, "connection", "authorize", "--connection", "con_1")
    assert (anew.code, URL in anew.out) == (0, True), anew.err
    assert "works on until then" in anew.err
    assert api.requests("GetConnection") == []


async def test_nobody_is_waited_for_longer_than_was_said(api: ScriptedApi) -> None:
    api.answers["StartAuthorization"] = started()
    api.answers["GetConnection"] = pb.GetConnectionResponse(connection=waiting())
    outcome = await bulkhead(
        api.port, "connection", "authorize", "x", "--name", "n", "--wait-seconds", "0.1", "--json"
    )
    assert outcome.code == 1
    assert outcome.json["error"]["reason"] == "AUTHORIZATION_PENDING"
    assert "bulkhead connection authorize --connection con_1" in outcome.err


async def test_a_list_says_what_is_broken_and_how_it_is_mended(api: ScriptedApi) -> None:
    broken = connection(
        "NEEDS_REAUTHORIZATION",
        connection_id="con_2",
        kind=pb.CONNECTION_KIND_AUTHORIZATION_CODE,
        state_reason=pb.STATE_REASON_GRANT_REFUSED,
    )
    api.answers["ListConnections"] = pb.ListConnectionsResponse(connections=[broken, connection()])
    outcome = await bulkhead(api.port, "connection", "list", "--state", "needs-reauthorization")
    head, first, on, second, mend = outcome.out.splitlines()
    assert head.split() == ["CONNECTION", "NAME", "PROVIDER", "KIND", "STATE"]
    assert (first.split()[-2:], on.strip()) == (["reauthorization:", "grant"], "refused")
    assert second.startswith("con_1")
    assert mend == "mend: bulkhead connection authorize --connection con_2"
    (request,) = api.requests("ListConnections")
    assert request.state == pb.CONNECTION_STATE_NEEDS_REAUTHORIZATION


async def test_delete_says_what_became_of_the_grant(api: ScriptedApi) -> None:
    api.answers["DeleteConnection"] = pb.DeleteConnectionResponse(
        revocation=pb.REVOCATION_UNSUPPORTED, advice="Remove it in GitHub.", bindings_ended=2
    )
    outcome = await bulkhead(api.port, "connection", "delete", "con_1")
    assert outcome.out.splitlines() == [
        "con_1 is deleted; bindings ended: 2",
        "at the provider: not withdrawn, since it withdraws nothing by request",
        "Remove it in GitHub.",
    ]
    shown = (await bulkhead(api.port, "connection", "delete", "con_1", "--json")).json
    assert (shown["connection_id"], shown["revocation"]) == ("con_1", "REVOCATION_UNSUPPORTED")


async def test_a_leaked_token_leads_to_the_vends_of_it(api: ScriptedApi) -> None:
    api.answers["FingerprintToken"] = pb.FingerprintTokenResponse(token_fingerprint="tok_1")
    api.answers["ListAuditEvents"] = auth_pb.ListAuditEventsResponse(
        events=[
            auth_pb.AuditEvent(
                key_id="key_9", time=time(), reason="nightly", resources={"deployment": "dep_1"}
            )
        ]
    )
    outcome = await bulkhead(api.port, "connection", "trace", given=SECRET)
    assert outcome.code == 0, outcome.err
    assert "key_9   dep_1       nightly" in outcome.out
    assert "In the audit log it is tok_1." in outcome.err
    assert SECRET not in outcome.out + outcome.err
    assert api.requests("FingerprintToken")[0].token == SECRET
    assert api.requests("ListAuditEvents")[0].resource_id == "tok_1"
    shown = (await bulkhead(api.port, "connection", "trace", "--json", given=SECRET)).json
    assert (shown["token_fingerprint"], len(shown["events"])) == ("tok_1", 1)


async def test_binding_create_list_and_delete(api: ScriptedApi) -> None:
    binding = pb.Binding(
        binding_id="bnd_1", deployment_id="dep_1", connection_id="con_1", alias="deploys",
        provider="github", scope_ceiling=["repo"], expire_time=time(LATER),
        state=pb.CONNECTION_STATE_ACTIVE,
    )  # fmt: skip
    api.answers["BindConnection"] = pb.BindConnectionResponse(binding=binding)
    api.answers["ListBindings"] = pb.ListBindingsResponse(bindings=[binding])
    api.answers["UnbindConnection"] = pb.UnbindConnectionResponse()
    made = await bulkhead(
        api.port, "binding", "create", "dep_1", "con_1", "--alias", "deploys", "--scope", "repo",
        "--expires", "2026-12-22T12:00:00Z", "--replace",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert "bulkhead vend deploys" in made.err
    listed = await bulkhead(api.port, "binding", "list", "--deployment", "dep_1")
    assert (
        "bnd_1    dep_1       deploys  github    repo     2026-12-22 12:00Z  active" in listed.out
    )
    ended = await bulkhead(api.port, "binding", "delete", "bnd_1")
    assert ended.out == "bnd_1 is ended\n"
    (request,) = api.requests("BindConnection")
    assert (request.deployment_id, request.connection_id, request.alias, request.replace) == (
        "dep_1", "con_1", "deploys", True,
    )  # fmt: skip
    assert list(request.scope_ceiling) == ["repo"]
    assert request.expire_time == time(LATER)


async def test_a_refused_binding_speaks_of_what_was_typed(api: ScriptedApi) -> None:
    api.answers["BindConnection"] = InvalidFieldError("alias", "must begin with a letter")
    outcome = await bulkhead(api.port, "binding", "create", "dep_1", "con_1", "--alias", "1")
    assert outcome.code == 1
    assert "--alias: must begin with a letter" in outcome.err
