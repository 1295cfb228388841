"""The commands `bulkhead certificate …`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli.certificate_text import parts, retained
from cli.deletions import certified, certified_now
from cli.options import CALL_SECONDS, WAIT_SECONDS, Api, Json, Timeout, WaitSeconds
from cli.panels import TENANT
from cli.rendering import as_json as to_json
from cli.rendering import document, table
from cli.secret_input import secret
from cli.session import REFUSED, Connection, Session, run

if TYPE_CHECKING:
    from cli.certificate_check import Verdict

_GET_EXAMPLE = """Example: bulkhead certificate get --token-file acme.token > acme.certificate"""
_KEYS_EXAMPLE = """Example: bulkhead certificate keys > keys.json"""
_VERIFY_EXAMPLE = """Example: bulkhead certificate verify acme.certificate --keys keys.json"""

TokenFile = Annotated[
    str,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="What the deletion handed out; - reads it from standard input.",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds `certificate` to the command line."""
    certificates = typer.Typer(
        no_args_is_help=True, help="Get the proof that something was deleted, and check it."
    )
    certificates.command("get", epilog=_GET_EXAMPLE)(get)
    certificates.command("keys", epilog=_KEYS_EXAMPLE)(keys)
    certificates.command("verify", epilog=_VERIFY_EXAMPLE)(verify)
    app.add_typer(certificates, name="certificate", rich_help_panel=TENANT)


def get(
    token_file: TokenFile,
    no_wait: Annotated[
        bool,
        typer.Option("--no-wait", help="Do not wait: exit with 1 when there is none yet."),
    ] = False,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    as_json: Json = False,
    api: Api = "",
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Print the certificate of a deletion, once there is one; no key is needed.

    What the deletion still waits for is told on stderr; standard output has
    the certificate, or nothing.
    """
    token = secret(token_file, "Token", "--token-file")

    async def command(session: Session) -> None:
        if no_wait:
            answer = await certified_now(session, token)
        else:
            answer = await certified(session, token, wait_seconds)
        session.show(document(answer), answer.certificate)

    run(Connection(api, None, timeout, as_json), command, keyless=True)


def keys(
    as_json: Json = False,
    api: Api = "",
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Print the public keys that certificates are checked with; no key of yours is needed.

    Keep them where nobody who can change the platform can change them, too.
    """

    async def command(session: Session) -> None:
        answer = await session.provisioner.ListCertificateKeys(pb.ListCertificateKeysRequest())
        session.show(json.loads(answer.keys), answer.keys)

    run(Connection(api, None, timeout, as_json), command, keyless=True)


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The certificate.")],
    keys_file: Annotated[
        Path,
        typer.Option("--keys", metavar="FILE", help="The keys, as `certificate keys` prints them."),
    ],
    full: Annotated[
        bool,
        typer.Option("--full", help="Also say when each resource ended, and how that was checked."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a certificate without asking anybody; exits with 1 when it does not verify.

    It proves that a holder of one of these keys has said, resource by
    resource, when access ended, when it was destroyed and when it was looked
    after; and that nothing was changed or left out since.
    """
    # The other commands do not wait for what checks signatures.
    from cli.certificate_check import BadKeysError, check  # noqa: PLC0415 see above

    try:
        verdict = check(_read(file), _read(keys_file))
    except BadKeysError as error:
        raise typer.BadParameter(f"--keys: {keys_file}: {error}") from None
    print(to_json(_shown(verdict)) if as_json else _told(verdict, full=full))
    if not verdict.verified:
        raise typer.Exit(REFUSED)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise typer.BadParameter(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise typer.BadParameter(f"cannot read {file}: it is not text") from None


def _shown(verdict: "Verdict") -> dict[str, Any]:
    return {
        "verified": verdict.verified,
        "problems": list(verdict.problems),
        "key_id": verdict.key_id,
        "certificate": dict(verdict.document),
    }


def _told(verdict: "Verdict", *, full: bool) -> str:
    if not verdict.verified:
        return "\n".join(["NOT VERIFIED", *(f"- {problem}" for problem in verdict.problems)])
    found = verdict.document
    resources = found["resources"]
    lines = [
        f"verified: the holder of the key {verdict.key_id} states that {found['sub']} is deleted",
        f"requested  {found['requested_at']}",
        f"cut off    {found['cut_off_at']}: keys and hosts",
        f"shut       {found['access_revoked_at']}: whatever else opened something",
        f"certified  {found['issued_at']}",
        f"resources  {len(resources)}, each destroyed and looked after",
    ]
    grants = [
        f"lives on   a grant at {each.get('provider')}: {each.get('advice')}"
        for each in found.get("unrevoked_grants", [])
    ]
    kept = [
        f"kept       {each['kind']} of {each['deployment_id']}, by its provider, until"
        f" {each['unrecoverable_after']}"
        for each in resources
        if "unrecoverable_after" in each
    ]
    staying = [f"retained   {each}" for each in retained(found)]
    return "\n".join([*lines, *grants, *kept, *staying, *(_tables(found) if full else ())])


def _tables(found: Mapping[str, Any]) -> list[str]:
    return [f"\n{part.title}\n{table(part.header, part.rows)}" for part in parts(found)]
