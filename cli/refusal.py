"""Why a call was refused, and how that is told."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

_NOBODY = "UNREACHABLE"
_INDEX = re.compile(r"\[\d+\]")
# How grpc says that nobody answered at the address at all.
_UNREACHABLE = (
    "failed to connect",
    "connection refused",
    "dns resolution failed",
    "errors resolving",
)
# What a field of the contract is called on the command line; a command may call it otherwise.
_OPTIONS = {
    "database": "--database",
    "deployment_id": "--deployment",
    "end_time": "--until",
    "expire_time": "--expires",
    "grace_period": "--grace",
    "key_id": "KEY_ID",
    "lifetime": "--for",
    "mcp": "--mcp",
    "page_size": "--limit",
    "plan": "--plan",
    "reason": "--reason",
    "request_id": "--request-id",
    "resource_id": "--about",
    "role": "--role",
    "scopes": "--scope",
    "start_time": "--since",
    "tenant_id": "--tenant",
}


# What to do about it, where the message of a service cannot know how that is typed.
_ADVICE = {
    "DEPLOYMENT_SUSPENDED": "end that with the tenant's key: bulkhead deployment resume dep_…",
    "NOT_SUSPENDED": "there is nothing to resume",
    "OPERATION_RUNNING": "wait for its end, and see: bulkhead deployment get dep_…",
    "RESOURCE_LIMIT": "delete what is not needed any more",
    "RESOURCE_LOST": "what was in it is gone; see: bulkhead deployment get dep_…",
    "SECRET_UNREADABLE": "put it anew; the operator sees its keys: bulkhead keyring status",
    "SHOWN_BEFORE": "whoever has lost it sets another one in the program itself",
    "TENANT_DELETING": "see how far it is: bulkhead certificate get --token-file FILE",
}
# By which a message says by itself what can be typed.
_COMMAND = "bulkhead "
_AGAIN = "try again"


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818 it is what the exit code 1 means, not a fault
    """A call that was not done: the gRPC code, the reason of the contract, and its details."""

    code: str
    reason: str
    message: str
    field_name: str = ""
    retry_after_seconds: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    # What is known all the same; scripts have it beside the error.
    answer: dict[str, Any] = field(default_factory=dict)

    def line(self, options: Mapping[str, str]) -> str:
        """Returns one line for people.

        Args:
            options: what this command calls fields of the contract, where it differs from others.
        """
        head = " ".join(part for part in ("refused:", self.code, self.reason) if part)
        told = self._message({**_OPTIONS, **options})
        more = f"{self._advice(told)}{self._again(told)}"
        return f"{head}: {told.rstrip('.') if more else told}{more}"

    def _advice(self, told: str) -> str:
        advice = _ADVICE.get(self.reason, "")
        return f"; {advice}" if advice and _COMMAND not in told else ""

    def _message(self, options: Mapping[str, str]) -> str:
        if not self.field_name:
            return self.message
        option = self._option(options)
        about, separator, what = self.message.partition(": ")
        if separator and about == self.field_name:
            return f"{option}: {what}"
        return self.message if option in self.message else f"{self.message} ({option})"

    def _option(self, options: Mapping[str, str]) -> str:
        """Returns what the field is called on the command line, whichever of a list it is in."""
        name = _INDEX.sub("", self.field_name)
        parent, dot, child = name.partition(".")
        if dot and name not in options and parent in options:
            return f"{options[parent]} {child}"
        return options.get(name, self.field_name)

    def _again(self, told: str) -> str:
        if self.retry_after_seconds is not None:
            return f"; {_AGAIN} in {self.retry_after_seconds:.3g} s"
        said = self.reason == _NOBODY or _AGAIN in told.lower()
        return f"; {_AGAIN}" if self.code == "UNAVAILABLE" and not said else ""

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
        return {**self.answer, "error": error}


def refusal_of(error: grpc.aio.AioRpcError, target: str) -> Refusal:
    """Returns what a failed call tells: `google.rpc` details where the server sent them."""
    code, details = error.code().name, error.details() or ""
    if any(sign in details.lower() for sign in _UNREACHABLE):
        message = f"nobody answers at {target}; is the stack up? try: bulkhead up"
        return Refusal(code, _NOBODY, message)
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
