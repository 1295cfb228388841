"""The commands `bulkhead secret …`."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated

import grpc
import typer
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli.connection_refusals import checked_id
from cli.fitting import fitted
from cli.options import CALL_SECONDS, Api, Json, KeyFile, Timeout
from cli.panels import TENANT
from cli.rendering import document, fields, minute_text, time_text
from cli.secret_input import content
from cli.session import Connection, Session, run

_PUT_EXAMPLE = """Examples:

bulkhead secret put dep_… SESSION_KEY --generate

bulkhead secret put dep_… SMTP_PASSWORD --value-file - — asks for it, and does not show it

bulkhead secret put dep_… TLS_KEY --value-file server.key"""
_LIST_EXAMPLE = """Example: bulkhead secret list dep_…"""
_DELETE_EXAMPLE = """Example: bulkhead secret delete dep_… SESSION_KEY"""
# What refusals call what these commands take.
_AS_OPTIONS = MappingProxyType(
    {
        "deployment_id": "DEPLOYMENT",
        "name": "NAME",
        "value": "--value-file",
        "generate_length": "--length",
    }
)
_WRAPPED = MappingProxyType({"secret": 20})

DeploymentId = Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Whose, `dep_…`.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Of the environment variable: letters, digits and _; as SESSION_KEY."
    ),
]


def register(app: typer.Typer) -> None:
    """Adds `secret` to the command line."""
    secrets = typer.Typer(
        no_args_is_help=True,
        help="Keep secrets for a deployment's own program, the only one that is ever shown them.",
    )
    secrets.command("put", epilog=_PUT_EXAMPLE)(put)
    secrets.command("list", epilog=_LIST_EXAMPLE)(list_all)
    secrets.command("delete", epilog=_DELETE_EXAMPLE)(delete)
    app.add_typer(secrets, name="secret", rich_help_panel=TENANT)


def put(
    deployment_id: DeploymentId,
    name: Name,
    value_file: Annotated[
        str,
        typer.Option(
            "--value-file",
            metavar="FILE",
            help="Where the value is, but for a last line break; - asks for it, or reads a pipe.",
            show_default=False,
        ),
    ] = "",
    generate: Annotated[
        bool, typer.Option("--generate", help="Have a random one made, which you never see.")
    ] = False,
    length: Annotated[
        int,
        typer.Option(
            "--length",
            metavar="N",
            help="Of the random one, 16 to 256 characters. \\[default: 43, which are 256 bits]",
            show_default=False,
        ),
    ] = 0,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Keep a secret of a deployment; it replaces one of the same name.

    It is encrypted before it is stored, and shown to nobody but the deployment's
    own program. A program that runs has it from its next start on.
    """
    request = pb.PutSecretRequest(deployment_id=checked_id(deployment_id, "dep"), name=name)
    if bool(value_file) == generate:
        raise typer.BadParameter("say what: --value-file FILE, --value-file - or --generate")
    if length and not generate:
        raise typer.BadParameter("--length is of what --generate makes")
    if generate:
        request.generate_length = length
    else:
        request.value = content(value_file, name, "--value-file")

    async def command(session: Session) -> None:
        before = await _is_there(session, request)
        kept = (await session.provisioner.PutSecret(request)).secret
        session.show(document(kept), _shown(kept, "replaced" if before else ""))

    run(Connection(api, key_file, timeout, as_json), command, _AS_OPTIONS)


def list_all(
    deployment_id: DeploymentId,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """List the names of a deployment's secrets; no command of yours shows a value."""
    request = pb.ListSecretsRequest(deployment_id=checked_id(deployment_id, "dep"))

    async def command(session: Session) -> None:
        answer = await session.provisioner.ListSecrets(request)
        session.show(document(answer), _listed(answer.secrets))

    run(Connection(api, key_file, timeout, as_json), command, _AS_OPTIONS)


def delete(
    deployment_id: DeploymentId,
    name: Name,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Delete a secret: it is gone when the command returns."""
    request = pb.DeleteSecretRequest(deployment_id=checked_id(deployment_id, "dep"), name=name)

    async def command(session: Session) -> None:
        await session.provisioner.DeleteSecret(request)
        session.show({"deployment_id": deployment_id, "name": name}, f"{name} is deleted")

    run(Connection(api, key_file, timeout, as_json), command, _AS_OPTIONS)


async def _is_there(session: Session, request: pb.PutSecretRequest) -> bool:
    """Returns whether there is one of the name, as far as the key may know."""
    if session.json:
        return False
    asked = pb.ListSecretsRequest(deployment_id=request.deployment_id)
    try:
        found = (await session.provisioner.ListSecrets(asked)).secrets
    except grpc.aio.AioRpcError:
        # What is to be done tells what is wrong; a key that may only put is none of that.
        return False
    return any(one.name == request.name for one in found)


def _shown(secret: pb.Secret, state: str) -> str:
    return fields(
        {
            "secret": secret.name,
            "state": state,
            "value": _origin(secret),
            "updated": time_text(secret.update_time),
        }
    )


def _listed(secrets: Sequence[pb.Secret]) -> str:
    if not secrets:
        return "no secrets; keep one: bulkhead secret put dep_… NAME --generate"
    columns = {
        "secret": [one.name for one in secrets],
        "value": [_origin(one) for one in secrets],
        "updated": [minute_text(one.update_time) for one in secrets],
    }
    return fitted(columns, _WRAPPED, ())


def _origin(secret: pb.Secret) -> str:
    return "generated" if secret.generated else "given"
