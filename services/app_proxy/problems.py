"""Refusals as HTTP: `application/problem+json` (RFC 9457), or a small page for a browser."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from services.app_proxy.door import Refusal
from services.app_proxy.rate_limit_headers import rate_limit_headers

_PROBLEM = "application/problem+json"
_HTML = "text/html"
_OF_STATES = (402, 503)
_MACHINE = ("application/json", _PROBLEM, "text/event-stream")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{refresh}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:1rem/1.5 system-ui,sans-serif;margin:20vh auto;max-width:32rem;padding:0 1rem}}\
</style></head><body><h1>{title}</h1><p>{detail}</p></body></html>
"""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A whole HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: str


def answer_to(refusal: Refusal, accept: str | None) -> HttpAnswer:
    """Returns `refusal` as a problem document, or as a page where a browser asks for one.

    Only a deployment's state has a page: every other refusal is for a program to read.
    """
    page = refusal.status in _OF_STATES and prefers_html(accept)
    headers = {
        "content-type": f"{_HTML}; charset=utf-8" if page else _PROBLEM,
        "cache-control": "no-store",
    }
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    headers |= rate_limit_headers(refusal.quotas, refusal.retry_after)
    if refusal.challenge is not None:
        headers["www-authenticate"] = refusal.challenge
    return HttpAnswer(refusal.status, headers, _page(refusal) if page else _problem(refusal))


def prefers_html(accept: str | None) -> bool:
    """Whether `accept` names text/html and nothing for programs more (RFC 9110, 12.5.1)."""
    weights = _weights(accept or "")
    html = weights.get(_HTML, 0.0)
    return html > max((weights.get(name, 0.0) for name in _MACHINE), default=0.0)


def _weights(accept: str) -> dict[str, float]:
    weights = {}
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weights[name] = min((_quality(part) for part in parameters), default=1.0)
    return weights


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return min(1.0, max(0.0, float(value)))
    except ValueError:
        return 0.0


def _problem(refusal: Refusal) -> str:
    return json.dumps(
        {
            "type": f"urn:bulkhead:error:{refusal.reason.value}",
            "title": refusal.title,
            "status": refusal.status,
            "detail": refusal.detail,
            "reason": refusal.reason.value,
        }
    )


def _page(refusal: Refusal) -> str:
    wait = refusal.retry_after
    refresh = f'<meta http-equiv="refresh" content="{wait}">' if wait is not None else ""
    return _PAGE.format(title=escape(refusal.title), detail=escape(refusal.detail), refresh=refresh)
