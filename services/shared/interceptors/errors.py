"""Domain errors to rich statuses; everything else to an id that finds it in the log."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status

from services.shared.errors import BulkheadError, Reason
from services.shared.ids import random_text
from services.shared.interceptors.call import Call, Entered
from services.shared.status import internal_status, to_status

_CODES = {code.value[0]: code for code in grpc.StatusCode}


@asynccontextmanager
async def errors(call: Call) -> Entered:
    """Surrounds the call so that no exception's text reaches the caller unless it is meant to."""
    try:
        yield
    except BulkheadError as error:
        await _refuse(call, to_status(error), error.reason)
    except asyncio.CancelledError:
        # The caller left or its deadline passed; there is no one to tell.
        late = call.context.time_remaining() == 0
        call.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        raise
    except grpc.aio.AbortError:
        # A handler has ended the call itself, as with `abort_with_status`.
        # A number, when it was set as one.
        code: Any = call.context.code()
        call.code = _CODES.get(code, code)
        raise
    except Exception:  # noqa: BLE001 the last line of defence: its text must not leave
        error_id = f"err_{random_text(12)}"
        structlog.get_logger().exception("unexpected", method=call.method, error_id=error_id)
        await _refuse(call, internal_status(error_id), Reason.INTERNAL)


async def _refuse(call: Call, status: status_pb2.Status, reason: Reason) -> None:
    call.code = _CODES.get(status.code, grpc.StatusCode.INTERNAL)
    call.reason = reason.value
    await call.context.abort_with_status(rpc_status.to_status(status))
