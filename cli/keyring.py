"""The commands `bulkhead keyring …`."""

import asyncio
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias

import typer
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb

from cli.options import CALL_SECONDS, WAIT_SECONDS, Api, Json, KeyFile, Timeout, WaitSeconds
from cli.panels import WATCH
from cli.refusal import Refusal
from cli.rendering import document, fields, table
from cli.session import Connection, Session, run

_AGAIN_SECONDS = 0.5
# What refusals call what these commands take by its place.
_BY_PLACE = MappingProxyType({"key_encryption_key_id": "KEK_ID"})

Keyring: TypeAlias = credentials_pb.GetKeyringResponse | provisioner_pb.GetKeyringResponse


class Service(StrEnum):
    """Which service's: each has keys of its own."""

    CREDENTIALS = "credentials"
    PROVISIONER = "provisioner"


OfService = Annotated[
    Service,
    typer.Option(
        "--service",
        help="Whose keyring: that of credentials keeps grants, that of the provisioner secrets.",
    ),
]

_STATUS_EXAMPLE = """Example: bulkhead keyring status --key-file .bulkhead/operator.key"""
_ROTATE_EXAMPLE = """Example: bulkhead keyring rotate --wait --key-file .bulkhead/operator.key"""
_DESTROY_EXAMPLE = """Example: bulkhead keyring destroy kek_… --key-file .bulkhead/operator.key"""


def register(app: typer.Typer) -> None:
    """Adds `keyring` to the command line."""
    keyring = typer.Typer(
        no_args_is_help=True,
        help="Look at, rotate and destroy the keys that all kept grants and secrets are encrypted "
        "under; with the operator's key.",
    )
    keyring.command("status", epilog=_STATUS_EXAMPLE)(status)
    keyring.command("rotate", epilog=_ROTATE_EXAMPLE)(rotate)
    keyring.command("destroy", epilog=_DESTROY_EXAMPLE)(destroy)
    app.add_typer(keyring, name="keyring", rich_help_panel=WATCH)


def status(
    service: OfService = Service.CREDENTIALS,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Show the key-encryption keys, and how far a rotation is."""

    async def command(session: Session) -> None:
        keyring = await _status(session, service)
        session.show(document(keyring), _shown(keyring))
        if keyring.data_keys_unreadable:
            session.tell(_unreadable(keyring, service))

    run(Connection(api, key_file, timeout, as_json), command)


def rotate(
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when every data key is under the current key.")
    ] = False,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    service: OfService = Service.CREDENTIALS,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Make a new key-encryption key, and wrap every tenant's data key anew under it.

    Nothing stops meanwhile. Repeated before it is done, it goes on and makes no
    second key. Keys that are mounted are made by their owner: then this wraps
    under the current one.
    """

    async def command(session: Session) -> None:
        stub, messages = _keyring(session, service)
        begun = await stub.RotateKeyring(messages.RotateKeyringRequest())
        keyring = await _status(session, service)
        if wait:
            keyring = await _wrapped(session, service, keyring, wait_seconds)
        shown = document(begun) | document(keyring)
        session.show(shown, _shown(keyring))
        session.tell(_next(keyring, service))

    run(Connection(api, key_file, timeout, as_json), command)


def destroy(
    kek_id: Annotated[
        str, typer.Argument(metavar="KEK_ID", help="`kek_…`, as `keyring status` shows it.")
    ],
    service: OfService = Service.CREDENTIALS,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Destroy a key-encryption key that nothing is under any more.

    For good: backups from its time can be read by nobody from then on.
    """

    async def command(session: Session) -> None:
        stub, messages = _keyring(session, service)
        await stub.DestroyKeyEncryptionKey(
            messages.DestroyKeyEncryptionKeyRequest(key_encryption_key_id=kek_id)
        )
        session.show({"key_encryption_key_id": kek_id}, f"{kek_id} is destroyed")
        session.tell("Backups from its time cannot be read any more.")

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def _keyring(session: Session, service: Service) -> tuple[Any, Any]:
    """Returns the service's stub, and the messages that it takes."""
    if service is Service.PROVISIONER:
        return session.provisioner_keyring, provisioner_pb
    return session.keyring, credentials_pb


async def _status(session: Session, service: Service) -> Keyring:
    stub, messages = _keyring(session, service)
    found: Keyring = await stub.GetKeyring(messages.GetKeyringRequest())
    return found


async def _wrapped(session: Session, service: Service, keyring: Keyring, seconds: float) -> Keyring:
    """Returns the keyring once nothing is left to wrap; how much is, is told on stderr.

    Raises:
        Refusal: data keys are left that cannot be unwrapped, or it is not done after `seconds`.
    """
    told = -1
    try:
        async with asyncio.timeout(seconds):
            while (left := _left(keyring)) > 0:
                if left != told:
                    session.tell(f"{_data_keys(left)} left to wrap")
                    told = left
                await asyncio.sleep(_AGAIN_SECONDS)
                keyring = await _status(session, service)
    except TimeoutError:
        left_now = _data_keys(_left(keyring))
        message = f"{left_now} left to wrap after {seconds:g} s; it goes on without us"
        raise Refusal("DEADLINE_EXCEEDED", "", message) from None
    if keyring.data_keys_unreadable:
        raise Refusal("FAILED_PRECONDITION", "", _unreadable(keyring, service))
    return keyring


def _left(keyring: Keyring) -> int:
    return keyring.data_keys_to_wrap - keyring.data_keys_unreadable


def _data_keys(number: int) -> str:
    return "1 data key" if number == 1 else f"{number:,} data keys"


def _shown(keyring: Keyring) -> str:
    rows = [
        (
            key.key_encryption_key_id,
            "current" if key.current else "",
            str(key.data_keys),
            "" if key.usable else "missing",
        )
        for key in keyring.key_encryption_keys
    ]
    about = {"held by": keyring.holder, "left to wrap": keyring.data_keys_to_wrap}
    return f"{fields(about)}\n\n{table(('key', '', 'data keys', ''), rows)}"


def _unreadable(keyring: Keyring, service: Service) -> str:
    return (
        f"{_data_keys(keyring.data_keys_unreadable)} cannot be unwrapped: the key-encryption key is"
        f" missing, or what it wrapped was changed; the log of {service} names them"
    )


def _next(keyring: Keyring, service: Service) -> str:
    which = "" if service is Service.CREDENTIALS else f" --service {service}"
    if keyring.data_keys_to_wrap:
        return f"See how far it is: bulkhead keyring status{which}"
    spare = [key for key in keyring.key_encryption_keys if not key.current]
    if not spare:
        return "Nothing is left to do."
    oldest = spare[-1].key_encryption_key_id
    return f"Once no backup needs it any more: bulkhead keyring destroy {oldest}{which}"
