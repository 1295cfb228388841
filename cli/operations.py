"""Waiting for work that goes on after the call that asked for it."""

import asyncio
import sys
from collections.abc import Collection

import grpc
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli.refusal import Refusal
from cli.session import Session
from cli.steps import step_text

_AGAIN_SECONDS = 0.2


async def finished(
    session: Session, operation: pb.Operation, seconds: float, empty: Collection[str] = ()
) -> pb.Operation:
    """Returns the operation once it has succeeded; each step is told on stderr.

    Args:
        session: the conversation.
        operation: as it was when it began.
        seconds: how long it is waited.
        empty: steps in which nothing is done; they are not told.

    Raises:
        Refusal: it failed, or is still going on after `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            done = await _done(session, operation, _Progress(empty))
    except TimeoutError:
        raise _unfinished(operation, seconds) from None
    except asyncio.CancelledError:
        tell_it_goes_on(session, f"bulkhead deployment get {operation.deployment_id}")
        raise
    if done.state == pb.OPERATION_STATE_SUCCEEDED:
        return done
    raise Refusal(
        "FAILED_PRECONDITION",
        "OPERATION_FAILED",
        done.message or "the operation failed",
        metadata=_ids(done),
    )


def tell_it_goes_on(session: Session, where: str) -> None:
    """Tells who does not wait any longer, on a line of its own, where to look for the end of it."""
    session.tell(f"\nit goes on; see: {where}")


async def _done(session: Session, operation: pb.Operation, progress: "_Progress") -> pb.Operation:
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
    """Tells each step once, but for those in which nothing is done."""

    def __init__(self, empty: Collection[str]) -> None:
        self._told = ("", 0)
        self._empty = frozenset(empty)

    def tell(self, operation: pb.Operation) -> None:
        now = (operation.step, operation.retries)
        if not operation.step or now == self._told or operation.step in self._empty:
            return
        self._told = now
        again = f" (try {operation.retries + 1}: {operation.message})" if operation.retries else ""
        print(f"… {step_text(operation.step)}{again}", file=sys.stderr, flush=True)


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
