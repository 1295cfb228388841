"""What a refusal must look like."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class Refusal:
    """The refused call's error, once the block is left."""

    value: grpc.aio.AioRpcError


@contextmanager
def expect_refused(code: str, reason: str, *, field: str | None = None) -> Iterator[Refusal]:
    """Passes when the block is refused with exactly this code, reason and field."""
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield refusal
    error = refusal.value = caught.value
    info, bad = details(error)
    assert (error.code().name, info.domain, info.reason) == (code, "bulkhead", reason), error
    if field is not None:
        assert [violation.field for violation in bad.field_violations] == [field]


def details(
    error: grpc.aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    """Returns the two details that say why."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError is a call too
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(bad)
    return info, bad
