"""The commands `bulkhead key …`."""

import uuid
from typing import Annotated

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb
from bulkhead.common.v1 import access_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from cli.effect import effect_lines
from cli.key_table import key_table
from cli.moments import duration, future
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Limit, RequestId, Timeout
from cli.paging import show_list
from cli.panels import TENANT
from cli.rendering import document, enum_text, fields, time_text
from cli.session import Connection, Session, run

_ISSUE_EXAMPLE = """Examples:

bulkhead key issue --deployment dep_… --name "my agent"

bulkhead key issue --deployment dep_… --scope db:read --expires 30d --json | jq -r .key

bulkhead key issue --connection con_… — for whoever needs the tokens of that connection alone"""
_ROTATE_EXAMPLE = """Examples:

bulkhead key rotate key_… — the old key works for another day

bulkhead key rotate key_… --grace 0 — the old key is dead before the new one is shown

bulkhead key rotate key_… --grace 7d --json | jq -r .key"""
_REVOKE_EXAMPLE = """Example: bulkhead key revoke key_…"""
_LIST_EXAMPLE = """Examples:

bulkhead key list --deployment dep_…

bulkhead key list --connection con_…

bulkhead key list --json | jq '.keys[] | select(.support_reason != "")'"""


def register(app: typer.Typer) -> None:
    """Adds `key` to the command line."""
    keys = typer.Typer(no_args_is_help=True, help="Issue, rotate, list and revoke keys.")
    keys.command("issue", epilog=_ISSUE_EXAMPLE)(issue)
    keys.command("rotate", epilog=_ROTATE_EXAMPLE)(rotate)
    keys.command("list", epilog=_LIST_EXAMPLE)(list_all)
    keys.command("revoke", epilog=_REVOKE_EXAMPLE)(revoke)
    app.add_typer(keys, name="key", rich_help_panel=TENANT)


def issue(
    deployment: Annotated[
        str,
        typer.Option(
            "--deployment",
            metavar="ID",
            help="A key that opens this deployment alone; without it, a key of the tenant.",
        ),
    ] = "",
    connection: Annotated[
        str,
        typer.Option(
            "--connection",
            metavar="ID",
            help="A key that gets the tokens of this connection, and nothing else.",
        ),
    ] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="What it may do; repeat for more. For a deployment: connections:read, db:read, "
            "db:write, deployments:read, environment:read, tokens:read, usage:read; for a "
            "connection tokens:read; for a tenant also audit:read, connections:write, "
            "deployments:write, keys:read, keys:write, secrets:read, secrets:write, tenants:read, "
            "tenants:write. Writing includes reading. Without it: all that your own key may give, "
            "but environment:read, which opens a deployment's secrets, only to a tenant's key.",
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What it is for, in your words.")] = "",
    expires: Annotated[
        str,
        typer.Option(
            "--expires",
            metavar="TIME",
            help="When it stops working: 12h or 30d from now, or 2027-01-31T12:00:00Z. Without it: "
            "never, or when your own key does.",
        ),
    ] = "",
    request_id: RequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Issue a key. It is shown once."""
    request = pb.IssueKeyRequest(
        request_id=request_id or str(uuid.uuid4()),
        deployment_id=deployment,
        connection_id=connection,
        scopes=scope or [],
        name=name,
        expire_time=future(expires, "--expires") if expires else None,
    )

    async def command(session: Session) -> None:
        key = await session.auth.IssueKey(request)
        session.show(document(key), _issued(key))
        session.tell("Keep the key now: it is not shown again.")

    run(Connection(api, key_file, timeout, as_json), command)


def rotate(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key to replace, `key_…`.")],
    grace: Annotated[
        str,
        typer.Option(
            "--grace", metavar="DURATION", help="How long the old key works on: 0 to 7d; 90s, 1h."
        ),
    ] = "1d",
    request_id: RequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Replace a key by one that opens the same, with the same scopes and name. It is shown once.

    Until the grace period ends both work; `key list` shows when the old one was
    last used. To end the grace period now: `bulkhead key revoke` with the id of
    the old key.
    """
    request = pb.RotateKeyRequest(
        request_id=request_id or str(uuid.uuid4()), key_id=key_id, grace_period=duration(grace)
    )

    async def command(session: Session) -> None:
        key = await session.auth.RotateKey(request)
        at_once = not request.grace_period.ToTimedelta()
        session.show(document(key), (_replaced if at_once else _rotated)(key_id, key))
        session.tell("Keep the key now: it is not shown again.")
        if not at_once:
            session.tell(f"To end the old key before its time: bulkhead key revoke {key_id}")

    run(Connection(api, key_file, timeout, as_json), command)


def list_all(
    deployment: Annotated[
        str, typer.Option("--deployment", metavar="ID", help="Only the keys of this deployment.")
    ] = "",
    connection: Annotated[
        str, typer.Option("--connection", metavar="ID", help="Only the keys of this connection.")
    ] = "",
    limit: Limit = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """List keys, newest first, by their ids: the keys themselves are nowhere kept.

    Keys with a support reason were made by the operator; they can be revoked
    like any other. What a terminal has no room for is shortened or left out;
    --json has all of it.
    """
    request = pb.ListKeysRequest(deployment_id=deployment, connection_id=connection)

    async def command(session: Session) -> None:
        async def ask(size: int, token: str) -> pb.ListKeysResponse:
            request.page_size, request.page_token = size, token
            return await session.auth.ListKeys(request)

        await show_list(session, "keys", ask, limit, key_table)

    run(Connection(api, key_file, timeout, as_json), command)


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="`key_…`, not the key itself.")],
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Revoke a key: when this returns, no replica of any service accepts it.

    Also ends the grace period of a key that was rotated. Database passwords
    that were fetched with the key stay as they are. Revoking twice is fine.
    Keep a second key of the tenant before revoking its last one: nobody can
    issue another.
    """

    async def command(session: Session) -> None:
        answer = await session.auth.RevokeKey(pb.RevokeKeyRequest(key_id=key_id))
        text = _revoked(answer.key_id, answer.revoke_time, answer.effect)
        session.show(document(answer), text)

    run(Connection(api, key_file, timeout, as_json), command)


def _issued(key: pb.IssueKeyResponse | pb.RotateKeyResponse, **more: str) -> str:
    return fields(
        {
            "key id": key.key_id,
            "kind": _kind(key.kind),
            "deployment": key.deployment_id,
            "connection": key.connection_id,
            "scopes": ", ".join(key.scopes),
            "expires": time_text(key.expire_time) if key.HasField("expire_time") else "",
            "key": key.key,
            **more,
        }
    )


def _rotated(old_key_id: str, key: pb.RotateKeyResponse) -> str:
    ends = time_text(key.old_key_expire_time)
    return _issued(key, **{"old key": f"{old_key_id} works until {ends}"})


def _replaced(old_key_id: str, key: pb.RotateKeyResponse) -> str:
    shown = _issued(key)
    return "\n".join([shown, _revoked(old_key_id, key.old_key_expire_time, key.effect)])


def _revoked(key_id: str, at: Timestamp, effect: pb.Effect) -> str:
    return "\n".join([f"{key_id} is revoked since {time_text(at)}", *effect_lines(effect)])


def _kind(kind: access_pb2.KeyKind.ValueType) -> str:
    return enum_text(access_pb2.KeyKind.Name(kind), "KEY_KIND_")
