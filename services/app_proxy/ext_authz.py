"""`envoy.service.auth.v3.Authorization` in the words of the door."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from bulkhead.envoy.auth.v3 import authorization_pb2 as pb
from bulkhead.envoy.auth.v3.authorization_pb2 import HeaderValue, HeaderValueOption, HttpStatus
from bulkhead.envoy.auth.v3.authorization_pb2_grpc import AuthorizationServicer
from google.rpc import code_pb2
from opentelemetry import metrics

from services.app_proxy.door import Guest, Refusal, Visit
from services.app_proxy.problems import answer_to
from services.app_proxy.rate_limit_headers import rate_limit_headers
from services.app_proxy.service import Door
from services.shared.recording import SCOPE, Labels, observing

SERVICE = "envoy.service.auth.v3.Authorization"
# Ours alone to set: what comes from outside under these names is taken away.
_RESERVED = "x-bulkhead-"
_LET_IN = "OK"


class DoorServicer(AuthorizationServicer):
    """Answers Envoy, which asks before it forwards anything."""

    def __init__(self, door: Door) -> None:
        self._door = door
        # Counted here, and read when somebody looks: it is done for every request.
        self._verdicts: Counter[str] = Counter()
        metrics.get_meter(SCOPE).create_observable_counter(
            "bulkhead.door.verdicts",
            observing(self._read),
            "{request}",
            "Requests let in or refused, by reason.",
        )

    async def Check(self, request: pb.CheckRequest, context: Any) -> pb.CheckResponse:  # noqa: ARG002, N802 named and called by grpc
        """Returns OK, or the whole HTTP answer that ends the request."""
        http = request.attributes.request.http
        headers = _headers(http)
        authority = http.host or headers.get(":authority", "")
        verdict = await self._door.admit(Visit(authority, headers.get("authorization")))
        if isinstance(verdict, Guest):
            self._verdicts[_LET_IN] += 1
            structlog.contextvars.bind_contextvars(deployment_id=verdict.route.deployment_id)
            return _admitted(headers, verdict)
        self._verdicts[verdict.reason.value] += 1
        return _denied(verdict, headers.get("accept"))

    def _read(self) -> Iterable[tuple[float, Labels]]:
        return [(number, {"reason": reason}) for reason, number in self._verdicts.copy().items()]


def _headers(http: pb.AttributeContext.HttpRequest) -> Mapping[str, str]:
    """Returns the request's headers by lower-case name; a repeated one joined by commas."""
    if http.headers:
        return dict(http.headers)
    joined: dict[str, str] = {}
    for header in http.header_map.headers:
        value = header.raw_value.decode("latin-1") or header.value
        name = header.key.lower()
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _admitted(headers: Mapping[str, str], guest: Guest) -> pb.CheckResponse:
    forged = [name for name in headers if name.startswith(_RESERVED)]
    return pb.CheckResponse(
        status=pb.Status(code=code_pb2.OK),
        ok_response=pb.OkHttpResponse(
            headers_to_remove=forged,
            response_headers_to_add=_overwriting(rate_limit_headers(guest.quotas)),
        ),
    )


def _denied(refusal: Refusal, accept: str | None) -> pb.CheckResponse:
    answer = answer_to(refusal, accept)
    return pb.CheckResponse(
        status=pb.Status(code=code_pb2.PERMISSION_DENIED, message=refusal.reason.value),
        denied_response=pb.DeniedHttpResponse(
            status=HttpStatus(code=answer.status),
            headers=_overwriting(answer.headers),
            body=answer.body,
        ),
    )


def _overwriting(headers: Mapping[str, str]) -> list[HeaderValueOption]:
    return [
        HeaderValueOption(
            header=HeaderValue(key=name, value=value),
            append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        for name, value in headers.items()
    ]
