"""Why a call was refused, and how that is told."""

from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# How grpc says that nobody answered at the address at all.
_UNREACHABLE = ("failed to connect", "connection refused", "dns resolution failed")


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818 it is what the exit code 1 means, not a fault
    """A call that was not done: the gRPC code, the reason of the contract, and its details."""

    code: str
    reason: str
    message: str
    field_name: str = ""
    retry_after_seconds: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """One line for people."""
        head = " ".join(part for part in ("refused:", self.code, self.reason) if part)
        where = (
            f" (field {self.field_name})"
            if self.field_name and self.field_name not in self.message
            else ""
        )
        wait = self.retry_after_seconds
        again = f"; try again in {wait:.3g} s" if wait is not None else ""
        return f"{head}: {self.message}{where}{again}"

    @property
    def document(self) -> dict[str, Any]:
        """The same for scripts: `{"error": {…}}`."""
        error: dict[str, Any] = {
            "code": self.code,
            "reason": self.reason,
            "message": self.message,
        }
        if self.field_name:
            error["field"] = self.field_name
        if self.retry_after_seconds is not None:
            error["retry_after_seconds"] = self.retry_after_seconds
        if self.metadata:
            error["metadata"] = self.metadata
        return {"error": error}


def refusal_of(error: grpc.aio.AioRpcError, target: str) -> Refusal:
    """Returns what a failed call tells: `google.rpc` details where the server sent them."""
    code, details = error.code().name, error.details() or ""
    if any(sign in details.lower() for sign in _UNREACHABLE):
        message = f"nobody answers at {target}; is the stack up? try: bulkhead up"
        return Refusal(code, "UNREACHABLE", message)
    info, retry, bad = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.BadRequest(),
    )
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError is a call too
    for detail in status.details if status else ():
        for kind in (info, retry, bad):
            detail.Unpack(kind)
    return Refusal(
        code=code,
        reason=info.reason,
        message=details or "no more is known",
        field_name=bad.field_violations[0].field if bad.field_violations else "",
        retry_after_seconds=(
            retry.retry_delay.ToTimedelta().total_seconds()
            if retry.HasField("retry_delay")
            else None
        ),
        metadata=dict(info.metadata),
    )
