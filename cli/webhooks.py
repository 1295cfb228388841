"""The commands `bulkhead webhook …`."""

from typing import Annotated

import typer
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.options import CALL_SECONDS, Api, Json, KeyFile, Timeout
from cli.panels import LEND
from cli.rendering import document, fields, time_text
from cli.session import Connection, Session, run

_SET_EXAMPLE = """Example: bulkhead webhook set https://hooks.example.com/bulkhead

Each report is signed as Standard Webhooks has it: before you believe it,
check it with any library for that, and the secret that is shown here."""
_SHOW_EXAMPLE = """Example: bulkhead webhook show"""
_DELETE_EXAMPLE = """Example: bulkhead webhook delete"""


def register(app: typer.Typer) -> None:
    """Adds `webhook` to the command line."""
    webhooks = typer.Typer(
        no_args_is_help=True, help="Be told of connections that broke, by a signed request."
    )
    webhooks.command("set", epilog=_SET_EXAMPLE)(set_webhook)
    webhooks.command("show", epilog=_SHOW_EXAMPLE)(show)
    webhooks.command("delete", epilog=_DELETE_EXAMPLE)(delete)
    app.add_typer(webhooks, name="webhook", rich_help_panel=LEND)


def set_webhook(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to report to; https.")],
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Say where broken connections are reported. Its secret is shown once.

    Setting it anew changes both address and secret.
    """

    async def command(session: Session) -> None:
        webhook = await session.credentials.SetWebhook(pb.SetWebhookRequest(url=url))
        session.show(document(webhook), fields({"url": webhook.url, "secret": webhook.secret}))
        session.tell("Keep the secret now: it is not shown again.")

    run(Connection(api, key_file, timeout, as_json), command, {"url": "URL"})


def show(
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Show where reports go, how many wait, and what the last try met with."""

    async def command(session: Session) -> None:
        webhook = await session.credentials.GetWebhook(pb.GetWebhookRequest())
        session.show(document(webhook), _shown(webhook))

    run(Connection(api, key_file, timeout, as_json), command)


def delete(
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """End the reports, also those that wait. Doing it twice is fine."""

    async def command(session: Session) -> None:
        answer = await session.credentials.DeleteWebhook(pb.DeleteWebhookRequest())
        session.show(document(answer), "nothing is reported any more")

    run(Connection(api, key_file, timeout, as_json), command)


def _shown(webhook: pb.GetWebhookResponse) -> str:
    if not webhook.url:
        return "no webhook; set one: bulkhead webhook set https://…"
    delivered = webhook.HasField("last_delivery_time")
    return fields(
        {
            "url": webhook.url,
            "created": time_text(webhook.create_time),
            "waiting": webhook.undelivered,
            "last delivery": time_text(webhook.last_delivery_time) if delivered else "none yet",
            "last failure": webhook.last_failure,
        }
    )
