"""Checking a certificate of deletion: its signature, and that it leaves nothing open (P-39).

It asks nobody: whoever has the certificate and the published keys can do the same.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

_ALGORITHM: Final = "Ed25519"
_TYPE: Final = "bulkhead-deletion+jwt"
_HEADER: Final = frozenset({"alg", "kid", "typ"})
_VERSION: Final = 1
# What every deployment has, whatever else it declares.
_ALWAYS: Final = frozenset({"keys", "route", "loans", "counters"})
# Who keeps something of tenants.
_SERVICES: Final = frozenset({"app_proxy", "auth", "credentials", "provisioner", "ratelimit"})
_OF_ALL: Final = ("requested_at", "cut_off_at", "access_revoked_at", "issued_at")
_TIMES: Final = ("access_revoked_at", "destroyed_at", "verified_gone_at")


class _OfAnySize(jws.JWSRegistry):
    """A certificate names every resource: that of a hundred deployments has half a megabyte."""

    max_payload_length = 64 << 20


class BadKeysError(Exception):
    """That is no key set to check with; says why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a certificate; it verifies when nothing is."""

    problems: tuple[str, ...]
    # What it says; empty when its signature does not hold.
    document: Mapping[str, Any] = field(default_factory=dict)
    # Of the key that signed it.
    key_id: str = ""

    @property
    def verified(self) -> bool:
        """Whether it is signed, and complete."""
        return not self.problems


def check(certificate: str, key_set: str) -> Verdict:
    """Returns what is wrong with the certificate.

    Args:
        certificate: a JWS in compact form.
        key_set: a JSON Web Key Set, as it was published.

    Raises:
        BadKeysError: that is no key set.
    """
    keys, registry = _keys(key_set), _OfAnySize(algorithms=[_ALGORITHM])
    try:
        header = dict(
            jws.extract_compact(certificate.strip().encode(), registry=registry).headers()
        )
    except (JoseError, ValueError, RecursionError):
        return Verdict(("it is no JWS in compact form",))
    key = keys.get(str(header.get("kid", "")))
    wrong = _wrong_header(header, known=key is not None)
    if wrong or key is None:
        return Verdict((wrong,))
    try:
        signed = jws.deserialize_compact(certificate.strip(), key, registry=registry)
        document = _parsed(signed.payload)
    except (JoseError, ValueError, TypeError, RecursionError):
        return Verdict(("the signature does not hold: it was changed, or another key signed it",))
    return Verdict(tuple(_problems(document)), document, key.thumbprint())


def _keys(key_set: str) -> Mapping[str, OKPKey]:
    """Returns the keys by their thumbprints (RFC 7638), whatever they are called there."""
    try:
        keys = [OKPKey.import_key(each) for each in json.loads(key_set)["keys"]]
        found = {key.thumbprint(): key for key in keys if key.curve_name == _ALGORITHM}
    except (JoseError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadKeysError("it is no JSON Web Key Set of Ed25519 keys") from error
    if not found:
        raise BadKeysError("it has no Ed25519 key")
    return found


def _wrong_header(header: Mapping[str, Any], *, known: bool) -> str:
    """Returns what is wrong with the header; the algorithm is ours to choose, never its."""
    if header.get("alg") != _ALGORITHM:
        return f"its algorithm is not {_ALGORITHM}"
    if header.get("typ") != _TYPE:
        return f"its type is not {_TYPE}"
    if set(header) != _HEADER:
        return "its header has more in it than belongs there"
    return "" if known else "none of the keys signed it: it names another one"


def _parsed(payload: bytes) -> Mapping[str, Any]:
    """Returns the document; a name that stands in it twice would be read differently elsewhere.

    Raises:
        ValueError: it is no JSON, or a name stands in it twice.
        TypeError: it is no object.
    """
    document = json.loads(payload, object_pairs_hook=_each_once)
    if not isinstance(document, dict):
        raise TypeError("not an object")
    return document


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields what keeps a signed document from saying that everything is gone."""
    if document.get("version") != _VERSION:
        yield f"its version is not {_VERSION}"
        return
    resources = document.get("resources")
    if not isinstance(resources, list) or not all(isinstance(one, dict) for one in resources):
        yield "it lists no resources"
        return
    yield from _wrong_order("the deletion", document, _OF_ALL)
    for resource in resources:
        yield from _wrong_resource(resource, document)
    yield from _missing(_by_deployment(resources))
    match document.get("kind"):
        case "deployment":
            if set(_by_deployment(resources)) != {document.get("sub")}:
                yield "its resources are not those of the deployment that it names"
        case "tenant":
            yield from _wrong_services(document)
        case _:
            yield "it is of neither a deployment nor a tenant"


def _wrong_resource(resource: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[str]:
    what = f"{resource.get('kind')} of {resource.get('deployment_id')}"
    times = {**resource, "requested_at": document.get("requested_at")}
    times["issued_at"] = document.get("issued_at")
    yield from _wrong_order(what, times, ("requested_at", *_TIMES, "issued_at"))
    if "unrecoverable_after" in resource and _time(resource["unrecoverable_after"]) is None:
        yield f"{what}: unrecoverable_after is no time"


def _wrong_order(what: str, times: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    found = {name: _time(times.get(name)) for name in names}
    missing = [name for name, time in found.items() if time is None]
    if missing:
        yield f"{what}: without {', '.join(missing)}"
        return
    for (one, first), (other, second) in pairwise(found.items()):
        if first is not None and second is not None and first > second:
            yield f"{what}: {other} is before {one}"


def _time(text: Any) -> datetime | None:
    """Returns the time; None when it is none, or of no time zone."""
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo is not None else None


def _by_deployment(resources: Sequence[Mapping[str, Any]]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for resource in resources:
        found.setdefault(resource.get("deployment_id"), []).append(resource.get("kind"))
    return found


def _missing(kinds: Mapping[Any, Sequence[Any]]) -> Iterator[str]:
    for deployment, present in kinds.items():
        if lacking := sorted(_ALWAYS - set(present)):
            yield f"{deployment}: nothing is said of its {', '.join(lacking)}"
        if len(set(present)) != len(present):
            yield f"{deployment}: a resource stands there twice"


def _wrong_services(document: Mapping[str, Any]) -> Iterator[str]:
    services = document.get("services")
    told = services if isinstance(services, dict) else {}
    for service in sorted(_SERVICES):
        receipt = told.get(service)
        if not isinstance(receipt, dict) or _time(receipt.get("erased_at")) is None:
            yield f"{service} does not say when it erased the tenant"
    if not isinstance(document.get("unrevoked_grants"), list):
        yield "it does not say which grants live on at their providers"
