"""A cluster's API as the `cnpg` driver needs it: few verbs, each repeated while that may help.

What the API promises is in Kubernetes's "API Concepts": server-side apply, 409 for what was changed
since it was read, 429 with `Retry-After` from an API that is busy.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeAlias

import aiohttp
from kubernetes_asyncio.client import ApiClient

Object: TypeAlias = dict[str, Any]

FIELD_MANAGER = "bulkhead-provisioner"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_CONFLICT, _NOT_FOUND, _TOO_MANY, _SERVER_ERROR = 409, 404, 429, 500
_REQUEST_SECONDS = 15.0
_PATIENCE_SECONDS = 20.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 5.0
_FAILURES = (aiohttp.ClientError, TimeoutError, OSError)


class ApiError(Exception):
    """The API did not do it. Names the status and what was asked for, nothing of its content."""

    def __init__(self, status: int | None, what: str) -> None:
        super().__init__(f"{what}: {status or 'no answer'}")
        self.status = status


class ConflictError(ApiError):
    """It was changed since it was read; read it again."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object, and where the API has it."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """Returns the path of one object, or of all of them."""
        root = "/apis/" if "/" in self.api_version else "/api/"
        within = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        one = f"/{name}" if name else ""
        return f"{root}{self.api_version}{within}/{self.plural}{one}"


NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False)
VOLUME = Kind("v1", "PersistentVolume", "persistentvolumes", namespaced=False)
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
POD = Kind("v1", "Pod", "pods")
SECRET = Kind("v1", "Secret", "secrets")
QUOTA = Kind("v1", "ResourceQuota", "resourcequotas")
LIMITS = Kind("v1", "LimitRange", "limitranges")
POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
CLUSTER = Kind("postgresql.cnpg.io/v1", "Cluster", "clusters")
_APPLIED = {
    kind.name: kind for kind in (NAMESPACE, SECRET, QUOTA, LIMITS, POLICY, DEPLOYMENT, CLUSTER)
}


class KubernetesApi:
    """Speaks to one API server. Every method raises ApiError when it is not done."""

    def __init__(self, client: ApiClient, patience: float = _PATIENCE_SECONDS) -> None:
        self._client = client
        self._patience = patience

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        """Returns the object; None if there is none."""
        try:
            return await self._ask("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def look(self, kind: Kind, name: str, namespace: str) -> tuple[Object | None, str]:
        """Returns the object, None if there is none, and the version from which to watch it on.

        That is the collection's: the object's own may be older than what the API remembers.
        """
        query = {"fieldSelector": f"metadata.name={name}"}
        found = await self._ask("GET", kind.path(namespace), query=query)
        items = found["items"]
        return items[0] if items else None, str(found["metadata"]["resourceVersion"])

    async def list(
        self, kind: Kind, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        """Returns all objects with these labels."""
        query = {"limit": "500"}
        if labels:
            query["labelSelector"] = ",".join(f"{name}={is_}" for name, is_ in labels.items())
        found: list[Object] = []
        while True:
            page = await self._ask("GET", kind.path(namespace), query=query)
            found += page["items"]
            more = page["metadata"].get("continue")
            if not more:
                return found
            query["continue"] = more

    async def apply(self, wanted: Object) -> Object:
        """Makes the object, or what is ours of it, as it is wanted.

        With a `resourceVersion` in it, only if it is still that very version.

        Raises:
            ConflictError: it is another version.
        """
        meta = wanted["metadata"]
        path = _APPLIED[wanted["kind"]].path(meta.get("namespace"), meta["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._ask("PATCH", path, query=query, body=wanted, content_type=_APPLY)

    async def merge(
        self, kind: Kind, name: str, change: Object, namespace: str | None = None
    ) -> Object | None:
        """Returns the object with `change` merged into it (RFC 7386); None if there is none.

        Raises:
            ConflictError: `change` names a version, and it is another one.
        """
        query = {"fieldManager": FIELD_MANAGER}
        path = kind.path(namespace, name)
        try:
            return await self._ask("PATCH", path, query=query, body=change, content_type=_MERGE)
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def delete(self, kind: Kind, name: str, namespace: str | None = None) -> None:
        """Lets the object go, and what it owns; that takes until its finalizers are done."""
        try:
            await self._ask(
                "DELETE", kind.path(namespace, name), body={"propagationPolicy": "Foreground"}
            )
        except ApiError as error:
            if error.status not in (_NOT_FOUND, _CONFLICT):
                raise

    @asynccontextmanager
    async def watch(
        self, kind: Kind, name: str, namespace: str, version: str, seconds: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yields the answer of a watch on one object from `version` on; its lines are events."""
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        path = kind.path(namespace)
        answer = await self._send("GET", path, query, None, "application/json", seconds + 5)
        try:
            if answer.status >= 400:  # noqa: PLR2004 HTTP's own bound
                raise ApiError(answer.status, path)
            yield answer
        finally:
            answer.close()

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        until = monotonic() + self._patience
        attempt = 0
        while True:
            status, after, answer = await self._once(method, path, query, body, content_type)
            if status is not None and status < 400:  # noqa: PLR2004 HTTP's own bound
                return answer
            versioned = bool(body and body.get("metadata", {}).get("resourceVersion"))
            if status == _CONFLICT and (versioned or method != "PATCH"):
                raise ConflictError(status, f"{method} {path}")
            pause = _pause(attempt, after)
            if not _passes(status) or monotonic() + pause > until:
                raise ApiError(status, f"{method} {path}")
            attempt += 1
            await asyncio.sleep(pause)

    async def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Object | None,
        content_type: str,
    ) -> tuple[int | None, float, Object]:
        """Returns the status, none if there was no answer; what to wait for; and the answer."""
        try:
            answer = await self._send(method, path, query, body, content_type, _REQUEST_SECONDS)
            async with answer:
                text = await answer.read()
                after = _seconds(answer.headers.get("Retry-After"))
                return answer.status, after, _parsed(text)
        except _FAILURES:
            return None, 0.0, {}

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Object | None,
        content_type: str,
        seconds: float,
    ) -> aiohttp.ClientResponse:
        answer = await self._client.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=seconds,
        )
        assert isinstance(answer, aiohttp.ClientResponse)  # noqa: S101 what the client promises
        return answer


def _passes(status: int | None) -> bool:
    """Whether asking again may help: a conflict with another writer, a busy API, a lost answer."""
    return status is None or status in (_CONFLICT, _TOO_MANY) or status >= _SERVER_ERROR


def _pause(attempt: int, after: float) -> float:
    """Returns what was asked for and a part more, or a random part of what grows (full jitter)."""
    grown = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**attempt)
    return after + random.uniform(0, grown)  # noqa: S311 no secret


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        # A date: the API itself sends seconds.
        return 1.0


def _parsed(text: bytes) -> Object:
    try:
        parsed = json.loads(text or b"{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
