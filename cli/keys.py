"""The commands `bulkhead key …`."""

import uuid
from typing import Annotated

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb
from bulkhead.common.v1 import access_pb2

from cli.options import CALL_SECONDS, Api, Json, KeyFile, Limit, RequestId, Timeout
from cli.paging import listed
from cli.rendering import document, enum_text, fields, table, time_text
from cli.session import Connection, Session, run

_ISSUE_EXAMPLE = """Examples:

bulkhead key issue --deployment dep_… --name "my agent"

bulkhead key issue --deployment dep_… --scope db:read --json | jq -r .key"""
_REVOKE_EXAMPLE = """Example: bulkhead key revoke key_…"""
_LIST_EXAMPLE = """Example: bulkhead key list --deployment dep_…"""


def register(app: typer.Typer) -> None:
    """Adds `key` to the command line."""
    keys = typer.Typer(no_args_is_help=True, help="Issue, list and revoke keys.")
    keys.command("issue", epilog=_ISSUE_EXAMPLE)(issue)
    keys.command("list", epilog=_LIST_EXAMPLE)(list_all)
    keys.command("revoke", epilog=_REVOKE_EXAMPLE)(revoke)
    app.add_typer(keys, name="key")


def issue(
    deployment: Annotated[
        str,
        typer.Option(
            "--deployment",
            metavar="ID",
            help="A key that opens this deployment alone; without it, a key of the tenant.",
        ),
    ] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="What it may do; repeat for more. For a deployment: db:read, db:write, "
            "deployments:read, usage:read; for a tenant also audit:read, deployments:write, "
            "keys:read, keys:write, tenants:read. Writing includes reading. Without it: all "
            "that your own key may give.",
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What it is for, in your words.")] = "",
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
        scopes=scope or [],
        name=name,
    )

    async def command(session: Session) -> None:
        key = await session.auth.IssueKey(request)
        session.show(document(key), _issued(key))
        session.tell("Keep the key now: it is not shown again.")

    run(Connection(api, key_file, timeout, as_json), command)


def list_all(
    deployment: Annotated[
        str, typer.Option("--deployment", metavar="ID", help="Only the keys of this deployment.")
    ] = "",
    limit: Limit = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """List keys, newest first, by their ids: the keys themselves are nowhere kept."""

    async def command(session: Session) -> None:
        async def page(size: int, token: str) -> tuple[list[pb.Key], str]:
            request = pb.ListKeysRequest(deployment_id=deployment, page_size=size, page_token=token)
            answer = await session.auth.ListKeys(request)
            return list(answer.keys), answer.next_page_token

        found = await listed(page, limit)
        session.show({"keys": [document(one) for one in found]}, _listed(found))

    run(Connection(api, key_file, timeout, as_json), command)


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="`key_…`, not the key itself.")],
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Revoke a key: from now on neither the API nor a deployment's host opens to it.

    Database passwords that were fetched with it stay as they are. Revoking twice is fine. Keep a
    second key of the tenant before revoking its last one: nobody can issue another.
    """

    async def command(session: Session) -> None:
        answer = await session.auth.RevokeKey(pb.RevokeKeyRequest(key_id=key_id))
        text = f"{answer.key_id} is revoked since {time_text(answer.revoke_time)}"
        session.show(document(answer), text)

    run(Connection(api, key_file, timeout, as_json), command)


def _issued(key: pb.IssueKeyResponse) -> str:
    return fields(
        {
            "key id": key.key_id,
            "kind": _kind(key.kind),
            "deployment": key.deployment_id,
            "scopes": ", ".join(key.scopes),
            "key": key.key,
        }
    )


def _listed(keys: list[pb.Key]) -> str:
    if not keys:
        return "no keys"
    header = ("key id", "kind", "deployment", "hint", "scopes", "created", "revoked", "name")
    return table(header, [_row(key) for key in keys])


def _row(key: pb.Key) -> tuple[str, ...]:
    return (
        key.key_id,
        _kind(key.kind),
        key.deployment_id or "-",
        key.hint,
        ",".join(key.scopes),
        time_text(key.create_time),
        time_text(key.revoke_time) if key.HasField("revoke_time") else "-",
        key.name,
    )


def _kind(kind: access_pb2.KeyKind.ValueType) -> str:
    return enum_text(access_pb2.KeyKind.Name(kind), "KEY_KIND_")
