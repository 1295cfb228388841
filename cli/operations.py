"""Waiting for work that goes on after the call that asked for it."""

import asyncio
import sys

import grpc
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli.refusal import Refusal
from cli.session import Session

_AGAIN_SECONDS = 0.2


async def finished(session: Session, operation: pb.Operation, seconds: float) -> pb.Operation:
    """Returns the operation once it has succeeded; each step is told on stderr.

    Raises:
        Refusal: it failed, or is still going on after `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            done = await _done(session, operation)
    except TimeoutError:
        raise _unfinished(operation, seconds) from None
    if done.state == pb.OPERATION_STATE_SUCCEEDED:
        return done
    raise Refusal(
        "FAILED_PRECONDITION",
        "OPERATION_FAILED",
        done.message or "the operation failed",
        metadata=_ids(done),
    )


async def _done(session: Session, operation: pb.Operation) -> pb.Operation:
    progress = _Progress()
    request = pb.WaitOperationRequest(operation_id=operation.operation_id)
    while True:
        try:
            async for answer in session.provisioner.WaitOperation(request):
                operation = answer.operation
                progress.tell(operation)
        except grpc.aio.AioRpcError as error:
            # The server that was asked is stopping: another one, or its next life, knows as well.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        if operation.state in (pb.OPERATION_STATE_SUCCEEDED, pb.OPERATION_STATE_FAILED):
            return operation
        await asyncio.sleep(_AGAIN_SECONDS)


class _Progress:
    """Tells each step once."""

    def __init__(self) -> None:
        self._told = ("", 0)

    def tell(self, operation: pb.Operation) -> None:
        now = (operation.step, operation.retries)
        if not operation.step or now == self._told:
            return
        self._told = now
        again = f" (try {operation.retries + 1}: {operation.message})" if operation.retries else ""
        print(f"… {operation.step}{again}", file=sys.stderr, flush=True)


def _unfinished(operation: pb.Operation, seconds: float) -> Refusal:
    return Refusal(
        "DEADLINE_EXCEEDED",
        "OPERATION_RUNNING",
        f"still going on after {seconds:g} s; it continues, see:"
        f" bulkhead deployment get {operation.deployment_id}",
        metadata=_ids(operation),
    )


def _ids(operation: pb.Operation) -> dict[str, str]:
    return {"operation_id": operation.operation_id, "deployment_id": operation.deployment_id}
