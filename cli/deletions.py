"""Waiting for a deletion to be certified."""

import asyncio
import secrets
import sys
from pathlib import Path

import grpc
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli.operations import tell_it_goes_on
from cli.private_files import write_private
from cli.refusal import Refusal
from cli.rendering import document
from cli.secret_input import file_text
from cli.session import Session
from cli.steps import step_text

_TOKEN_BYTES = 32
_SEE = "bulkhead certificate get --token-file FILE"
_SOONEST_SECONDS, _LATEST_SECONDS = 0.2, 2.0


def kept_token(file: Path) -> str:
    """Returns what will open the certificate: what is in the file, or a new one, written there.

    So who repeats a deletion whose answer was lost repeats it with the same token.

    Raises:
        typer.BadParameter: the file cannot be read or written.
    """
    if file.exists():
        return file_text(file, "the token file").strip()
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    write_private(file, token)
    return token


async def certified(
    session: Session, token: str, seconds: float, see: str = _SEE
) -> pb.GetDeletionCertificateResponse:
    """Returns the answer with the certificate; what is waited for is told on stderr.

    Args:
        session: the conversation.
        token: what opens the certificate.
        seconds: how long it is waited.
        see: the command with which whoever does not wait any longer has it later.

    Raises:
        Refusal: there is none after `seconds`, or there will be none.
    """
    told = _Told()
    try:
        async with asyncio.timeout(seconds):
            return await _certified(session, token, told)
    except TimeoutError:
        raise Refusal(
            "DEADLINE_EXCEEDED",
            "OPERATION_RUNNING",
            f"not certified after {seconds:g} s; the deletion goes on, see: {see}",
        ) from None
    except asyncio.CancelledError:
        tell_it_goes_on(session, see)
        raise


async def certified_now(session: Session, token: str) -> pb.GetDeletionCertificateResponse:
    """Returns the answer with the certificate, which is there already.

    Raises:
        Refusal: there is none yet, after what is left was told on stderr; or there will be none.
    """
    request = pb.GetDeletionCertificateRequest(certificate_token=token)
    answer = await session.provisioner.GetDeletionCertificate(request)
    if answer.certificate:
        return answer
    if answer.state == pb.OPERATION_STATE_FAILED:
        raise _failed(answer)
    _Told().tell(answer)
    raise Refusal(
        "FAILED_PRECONDITION",
        "OPERATION_RUNNING",
        f"there is no certificate yet; to wait for it: {_SEE}",
        answer=document(answer),
    )


async def _certified(
    session: Session, token: str, told: "_Told"
) -> pb.GetDeletionCertificateResponse:
    request = pb.GetDeletionCertificateRequest(certificate_token=token)
    pause = _SOONEST_SECONDS
    while True:
        answer = await _asked(session, request)
        if answer is not None and answer.certificate:
            return answer
        if answer is not None and answer.state == pb.OPERATION_STATE_FAILED:
            raise _failed(answer)
        if answer is not None:
            told.tell(answer)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LATEST_SECONDS)


def _failed(answer: pb.GetDeletionCertificateResponse) -> Refusal:
    return Refusal(
        "FAILED_PRECONDITION",
        "OPERATION_FAILED",
        "; ".join(each.message for each in answer.remainders) or "the deletion failed",
        answer=document(answer),
    )


async def _asked(
    session: Session, request: pb.GetDeletionCertificateRequest
) -> pb.GetDeletionCertificateResponse | None:
    """Returns the answer; None while nobody can say."""
    try:
        return await session.provisioner.GetDeletionCertificate(request)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
    return None


class _Told:
    """Tells each thing that is waited for once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, answer: pb.GetDeletionCertificateResponse) -> None:
        for each in answer.remainders:
            what = each.deployment_id or "the tenant"
            why = f" ({each.message})" if each.message else ""
            line = f"… {what}: {step_text(each.step)}{why}"
            if line not in self._told:
                self._told.add(line)
                print(line, file=sys.stderr, flush=True)
