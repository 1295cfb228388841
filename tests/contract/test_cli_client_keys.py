"""Rotation, support keys and plans on the command line."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb
from bulkhead.common.v1 import access_pb2
from google.protobuf.duration_pb2 import Duration
from rich.cells import cell_len

from services.shared.errors import NotFoundError
from tests.scripted_api import CREATED, ScriptedApi, bulkhead, time

LATER = CREATED + timedelta(hours=1)
EFFECT = pb.Effect(effective_at=time(LATER), watchers_acknowledged=3, watchers_fenced=1)


async def test_key_issue_passes_deployment_scopes_and_name(api: ScriptedApi) -> None:
    api.answers["IssueKey"] = pb.IssueKeyResponse(
        key_id="key_2",
        key="smcp_1d_new",
        kind=access_pb2.KEY_KIND_DEPLOYMENT,
        deployment_id="dep_1",
        scopes=["db:read", "usage:read"],
    )
    scopes = ("--scope", "db:read", "--scope", "usage:read")
    outcome = await bulkhead(
        api.port, "key", "issue", "--deployment", "dep_1", *scopes, "--name", "agent", "--json"
    )
    assert (outcome.json["key_id"], outcome.json["key"]) == ("key_2", "smcp_1d_new")
    (request,) = api.requests("IssueKey")
    assert (request.deployment_id, request.name) == ("dep_1", "agent")
    assert list(request.scopes) == ["db:read", "usage:read"]


async def test_a_key_of_a_connection_is_issued_listed_and_shown_as_such(api: ScriptedApi) -> None:
    connection_id = "con_" + "0" * 22 + "abcd"
    api.answers["IssueKey"] = pb.IssueKeyResponse(
        key_id="key_2",
        key="smcp_1c_new",
        kind=access_pb2.KEY_KIND_CONNECTION,
        connection_id=connection_id,
        scopes=["tokens:read"],
    )
    api.answers["ListKeys"] = pb.ListKeysResponse(
        keys=[
            pb.Key(key_id="key_2", connection_id=connection_id, create_time=time()),
            pb.Key(key_id="key_1", create_time=time()),
        ]
    )
    shown = await bulkhead(api.port, "key", "issue", "--connection", connection_id)
    assert f"connection  {connection_id}" in shown.out
    assert "deployment" not in shown.out
    table = (await bulkhead(api.port, "key", "list", "--connection", connection_id)).out
    assert "CONNECTION" in table
    assert "con_…abcd" in table
    (issued,), (listed,) = api.requests("IssueKey"), api.requests("ListKeys")
    assert (issued.connection_id, issued.deployment_id) == (connection_id, "")
    assert listed.connection_id == connection_id


async def test_key_list_and_revoke(api: ScriptedApi) -> None:
    revoked = CREATED + timedelta(hours=1)
    api.answers["ListKeys"] = pb.ListKeysResponse(
        keys=[pb.Key(key_id="key_1", create_time=time(), revoke_time=time(revoked))]
    )
    api.answers["RevokeKey"] = pb.RevokeKeyResponse(key_id="key_1", revoke_time=time(revoked))
    keys = (await bulkhead(api.port, "key", "list", "--json")).json["keys"]
    assert keys[0]["revoke_time"] == "2026-11-22T13:00:00Z"
    assert "revoked 2026-11-22 13:00Z" in (await bulkhead(api.port, "key", "list")).out
    outcome = await bulkhead(api.port, "key", "revoke", "key_1")
    assert outcome.out == "key_1 is revoked since 2026-11-22 13:00:00Z\n"


def rotated() -> pb.RotateKeyResponse:
    return pb.RotateKeyResponse(
        key_id="key_2",
        key="smcp_1d_new",
        kind=access_pb2.KEY_KIND_DEPLOYMENT,
        deployment_id="dep_1",
        scopes=["db:read"],
        old_key_expire_time=time(LATER),
    )


async def test_rotate_prints_the_new_key_once_and_how_long_the_old_one_works(
    api: ScriptedApi,
) -> None:
    api.answers["RotateKey"] = rotated()
    outcome = await bulkhead(api.port, "key", "rotate", "key_1", "--grace", "1h30m")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("smcp_1d_new") == 1
    assert "key_1 works until 2026-11-22 13:00:00Z" in outcome.out
    assert "bulkhead key revoke key_1" in outcome.err
    (request,) = api.requests("RotateKey")
    assert (request.key_id, request.grace_period) == ("key_1", Duration(seconds=5_400))
    assert len(request.request_id) == 36


async def test_rotate_without_grace_says_that_the_old_key_is_revoked(api: ScriptedApi) -> None:
    api.answers["RotateKey"] = answer = rotated()
    answer.effect.CopyFrom(EFFECT)
    outcome = await bulkhead(api.port, "key", "rotate", "key_1", "--grace", "0s")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-2:] == [
        "key_1 is revoked since 2026-11-22 13:00:00Z",
        "in effect everywhere since 2026-11-22 13:00:00Z: 3 replicas acknowledged, 1 fenced",
    ]
    assert "works until" not in outcome.out
    assert "before its time" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [((), 86_400), (("--grace", "0"), 0), (("--grace", "7d"), 604_800), (("--grace", "90s"), 90)],
)
async def test_a_grace_period_is_written_as_people_say_it(
    api: ScriptedApi, arguments: tuple[str, ...], seconds: int
) -> None:
    api.answers["RotateKey"] = rotated()
    outcome = await bulkhead(api.port, "key", "rotate", "key_1", *arguments, "--json")
    assert outcome.json["old_key_expire_time"] == "2026-11-22T13:00:00Z"
    (request,) = api.requests("RotateKey")
    assert request.HasField("grace_period")
    assert request.grace_period.seconds == seconds


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("key", "rotate", "key_1", "--grace", "1w"), "is not a duration"),
        (("key", "rotate", "key_1", "--grace", ""), "is not a duration"),
        (("key", "rotate", "key_1", "--grace", "999999999d"), "is not a duration"),
        (("key", "issue", "--expires", "tomorrow"), "is not a time"),
        (("key", "issue", "--expires", "999999999d"), "is not a time"),
        (("support-key", "issue", "--reason", "r"), "--tenant"),
        (("support-key", "issue", "--tenant", "ten_1"), "--reason"),
        (("plan", "change", "gold"), "gold"),
    ],
)
async def test_wrong_use_is_exit_code_2_and_reaches_nobody(
    api: ScriptedApi, arguments: tuple[str, ...], said: str
) -> None:
    outcome = await bulkhead(api.port, *arguments)
    assert outcome.code == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert api.asked == []


async def test_an_expiry_is_a_time_or_an_age(api: ScriptedApi) -> None:
    api.answers["IssueKey"] = pb.IssueKeyResponse(
        key_id="key_1", key="smcp_1t_new", expire_time=time(LATER)
    )
    before = datetime.now(UTC)
    text = (await bulkhead(api.port, "key", "issue", "--expires", "30d")).out
    await bulkhead(api.port, "key", "issue", "--expires", "2027-01-31T12:00:00+01:00")
    await bulkhead(api.port, "key", "issue", "--expires", "2027-01-31")
    await bulkhead(api.port, "key", "issue")
    relative, zoned, date, none = api.requests("IssueKey")
    month = relative.expire_time.ToDatetime(UTC) - timedelta(days=30)
    assert before <= month <= datetime.now(UTC)
    assert zoned.expire_time.ToJsonString() == "2027-01-31T11:00:00Z"
    assert date.expire_time.ToJsonString() == "2027-01-31T00:00:00Z"
    assert not none.HasField("expire_time")
    assert "2026-11-22 13:00:00Z" in text


async def test_key_list_shows_the_life_of_each_key(api: ScriptedApi) -> None:
    api.answers["ListKeys"] = pb.ListKeysResponse(
        keys=[
            pb.Key(
                key_id="key_2",
                create_time=time(),
                last_use_time=time(CREATED + timedelta(minutes=5)),
                expire_time=time(LATER),
                support_reason="ticket 4711",
                name="support",
            ),
            pb.Key(
                key_id="key_1",
                hint="smcp_1t_…abcd",
                create_time=time(),
                successor_key_id="key_9",
                name="agent",
            ),
        ]
    )
    head, support, own = (await bulkhead(api.port, "key", "list")).out.splitlines()
    for column in ("LAST USED", "ENDS", "SUCCESSOR"):
        assert column in head
    # No key is of a deployment.
    assert "DEPLOYMENT" not in head
    assert "2026-11-22 12:05Z  2026-11-22 13:00Z  -" in support
    assert support.endswith("support: ticket 4711")
    assert own.startswith("key_1   1t_…abcd")
    assert "key_9" in own
    assert own.endswith("agent")


async def test_key_list_fits_a_terminal_and_never_cuts_a_keys_id(api: ScriptedApi) -> None:
    def key(number: int, **more: Any) -> pb.Key:
        return pb.Key(
            key_id=f"key_{number:026}",
            deployment_id=f"dep_{number:026}",
            hint="smcp_1d_…abcd",
            scopes=["db:read", "db:write", "usage:read"],
            create_time=time(),
            last_use_time=time(),
            successor_key_id=f"key_{number + 1:026}",
            **more,
        )

    keys = [key(1, name="名" * 60), key(2, revoke_time=time(), support_reason="x" * 200)]
    api.answers["ListKeys"] = pb.ListKeysResponse(keys=keys)
    lines = (await bulkhead(api.port, "key", "list")).out.splitlines()
    assert max(cell_len(line) for line in lines) <= 110
    _, first, second, note = lines
    assert "dep_…0001   2026-11-22 12:00Z" in first
    assert first.startswith(keys[0].key_id)
    assert "revoked 2026-11-22 12:00Z" in second
    assert "--json has it" in note


async def test_revoke_says_since_when_it_holds_everywhere(api: ScriptedApi) -> None:
    api.answers["RevokeKey"] = pb.RevokeKeyResponse(
        key_id="key_1", revoke_time=time(), effect=EFFECT
    )
    outcome = await bulkhead(api.port, "key", "revoke", "key_1")
    assert outcome.out.splitlines() == [
        "key_1 is revoked since 2026-11-22 12:00:00Z",
        "in effect everywhere since 2026-11-22 13:00:00Z: 3 replicas acknowledged, 1 fenced",
    ]
    shown = (await bulkhead(api.port, "key", "revoke", "key_1", "--json")).json
    assert shown["effect"]["watchers_acknowledged"] == 3


async def test_support_key_issue_sends_whom_why_and_for_how_long(api: ScriptedApi) -> None:
    api.answers["IssueSupportKey"] = pb.IssueSupportKeyResponse(
        key_id="key_1", key="smcp_1t_new", scopes=["audit:read"], expire_time=time(LATER)
    )
    arguments = ("support-key", "issue", "--tenant", "ten_1", "--reason", "ticket 4711")
    outcome = await bulkhead(
        api.port, *arguments, "--for", "15m", "--scope", "plan:write", "--scope", "audit:read"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("smcp_1t_new") == 1
    assert "2026-11-22 13:00:00Z" in outcome.out
    await bulkhead(api.port, *arguments, "--request-id", "r", "--json")
    first, second = api.requests("IssueSupportKey")
    assert (first.tenant_id, first.reason) == ("ten_1", "ticket 4711")
    assert list(first.scopes) == ["plan:write", "audit:read"]
    assert (first.lifetime.seconds, second.lifetime.seconds) == (900, 3_600)
    assert (second.request_id, list(second.scopes)) == ("r", [])


async def test_an_unknown_tenant_is_a_refusal(api: ScriptedApi) -> None:
    api.answers["IssueSupportKey"] = NotFoundError("tenant")
    outcome = await bulkhead(
        api.port, "support-key", "issue", "--tenant", "ten_x", "--reason", "r", "--json"
    )
    assert outcome.code == 1
    assert outcome.json["error"]["metadata"] == {"kind": "tenant"}


async def test_plan_change_says_since_when_every_replica_counts_by_it(api: ScriptedApi) -> None:
    api.answers["ChangePlan"] = pb.ChangePlanResponse(
        tenant=pb.Tenant(tenant_id="ten_1", name="Acme", plan=pb.PLAN_PRO, create_time=time()),
        effect=EFFECT,
    )
    outcome = await bulkhead(api.port, "plan", "change", "pro")
    assert outcome.code == 0, outcome.err
    first, second = outcome.out.splitlines()
    assert first == "ten_1 is on the plan pro"
    assert second.startswith("in effect everywhere since 2026-11-22 13:00:00Z")
    assert api.requests("ChangePlan")[0].plan == pb.PLAN_PRO
    shown = (await bulkhead(api.port, "plan", "change", "pro", "--json")).json
    assert shown["tenant"]["plan"] == "PLAN_PRO"
