"""One call on its way through the interceptors."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from bulkhead.common.v1.access_pb2 import Access
from google.protobuf.message import Message

from services.shared.principal import Principal


@dataclass(slots=True)
class Call:
    """What is known of a call; filled in as it passes the interceptors."""

    # Full name without the leading slash, `bulkhead.auth.v1.AuthService/IssueKey`.
    method: str
    access: Access
    # None when what was sent is no message of the method.
    request: Message | None
    context: "grpc.aio.ServicerContext[Any, Any]"
    peer: str = ""
    principal: Principal | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


# Entered before the handler, left after it; what it raises on entry refuses the call.
Interceptor: TypeAlias = Callable[[Call], AbstractAsyncContextManager[None]]
Entered: TypeAlias = AsyncIterator[None]
