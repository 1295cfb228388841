"""The command `bulkhead support-key issue`."""

import uuid
from typing import Annotated

import typer
from bulkhead.auth.v1 import auth_service_pb2 as pb

from cli.moments import duration
from cli.options import CALL_SECONDS, Api, Json, KeyFile, RequestId, Timeout
from cli.panels import WATCH
from cli.rendering import document, fields, time_text
from cli.session import Connection, Session, run

_ISSUE_EXAMPLE = """Examples, with the operator's key:

bulkhead support-key issue --tenant ten_… --reason "ticket 4711: key refused" --for 15m

bulkhead support-key issue --tenant ten_… --reason "upgrade as ordered" --scope plan:write

The key is a tenant's key: use it as BULKHEAD_KEY, e.g. with bulkhead audit list."""


def register(app: typer.Typer) -> None:
    """Adds `support-key` to the command line."""
    support = typer.Typer(
        no_args_is_help=True, help="Help a tenant, with a short-lived key that it sees."
    )
    # Kept as a group of one, so that it reads like the other commands about keys.
    support.callback()(_group)
    support.command("issue", epilog=_ISSUE_EXAMPLE)(issue)
    app.add_typer(support, name="support-key", rich_help_panel=WATCH)


def _group() -> None:
    """Help a tenant, with a short-lived key that it sees."""


def issue(
    tenant: Annotated[str, typer.Option("--tenant", metavar="ID", help="Who is helped, `ten_…`.")],
    reason: Annotated[
        str,
        typer.Option("--reason", help="What for, in words that the tenant will read; to 200."),
    ],
    lifetime: Annotated[
        str,
        typer.Option("--for", metavar="DURATION", help="How long it works, at most 1h; 90s, 15m."),
    ] = "1h",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="What it may do; repeat for more: audit:read, deployments:read, "
            "keys:read, tenants:read, usage:read, plan:write. Without it: "
            "everything that only reads.",
        ),
    ] = None,
    request_id: RequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Issue a key of a tenant to yourself. Needs the operator's key; the key is shown once.

    The tenant sees it with its reason in its audit log and among its keys, and can revoke it.
    """
    request = pb.IssueSupportKeyRequest(
        request_id=request_id or str(uuid.uuid4()),
        tenant_id=tenant,
        reason=reason,
        lifetime=duration(lifetime),
        scopes=scope or [],
    )

    async def command(session: Session) -> None:
        key = await session.auth.IssueSupportKey(request)
        session.show(document(key), _issued(key))
        session.tell("Keep the key now: it is not shown again.")

    run(Connection(api, key_file, timeout, as_json), command)


def _issued(key: pb.IssueSupportKeyResponse) -> str:
    return fields(
        {
            "key id": key.key_id,
            "scopes": ", ".join(key.scopes),
            "expires": time_text(key.expire_time),
            "key": key.key,
        }
    )
