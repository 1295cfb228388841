"""A double of a cluster's API server, on loopback: the part of it that the `cnpg` driver uses.

It is named a double because it is none of Kubernetes's code. It holds to what "API Concepts" of
Kubernetes's documentation says of versions, conflicts, server-side apply, watches and finalizers,
asks for a token, remembers which verbs were used on what, and makes the faults it is told to make.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import web

from tests.kubernetes_double_store import (
    Key,
    Object,
    RefusedError,
    Store,
    has_labels,
    now,
    pages,
)

_BOOKMARK_SECONDS = 0.2
_LARGEST_PAGE = 3
# Who has to do something before these are gone.
_FINALIZED = frozenset({"namespaces", "clusters", "deployments"})


@dataclass(frozen=True, slots=True)
class Use:
    """A verb that was used on a kind of object, as RBAC names both."""

    group: str
    resource: str
    verb: str
    # Empty where a name plays no part: when something is made, or all of a kind are asked for.
    name: str


@dataclass(slots=True)
class Fault:
    """What is answered to the next requests that fit, instead of doing what they ask for."""

    fits: Callable[[str, str], bool]
    status: int
    times: int = 1
    retry_after: str = ""
    # It is done all the same, and only the answer is another one.
    done: bool = False
    seen: int = 0


@dataclass(frozen=True, slots=True)
class _Asked:
    group: str
    key: Key


@dataclass(slots=True)
class ApiDouble:
    """The state of the double, for those who look behind it."""

    token: str
    store: Store = field(default_factory=Store)
    uses: set[Use] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    watches: set[web.StreamResponse] = field(default_factory=set)
    watched: int = 0
    expired: int = 0

    def fault(self, fits: Callable[[str, str], bool], status: int, **more: object) -> Fault:
        """Makes the next request that fits, by method and kind, fail."""
        made = Fault(fits, status)
        for name, value in more.items():
            setattr(made, name, value)
        self.faults.append(made)
        return made

    async def changed(self) -> None:
        """Tells everybody who waits for a change."""
        async with self.store.changed:
            self.store.changed.notify_all()

    async def break_watches(self) -> None:
        """Ends every watch in mid-air."""
        for response in list(self.watches):
            transport = response._req.transport if response._req else None  # noqa: SLF001
            if transport is not None:
                transport.abort()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answers one request."""
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        asked = _parsed(request.path)
        fault = self._due(request.method, asked.key.plural)
        if fault is not None and not fault.done:
            return _status(fault.status, "made by the test", fault.retry_after)
        try:
            answered = await self._do(request, asked)
        except RefusedError as refused:
            answered = _status(refused.status, refused.reason)
        await self.changed()
        return answered if fault is None else _status(fault.status, "made by the test")

    def _due(self, method: str, plural: str) -> Fault | None:
        for fault in self.faults:
            if fault.seen < fault.times and fault.fits(method, plural):
                fault.seen += 1
                return fault
        return None

    def _use(self, asked: _Asked, verb: str, name: str = "") -> None:
        self.uses.add(Use(asked.group, asked.key.plural, verb, name))

    async def _do(self, request: web.Request, asked: _Asked) -> web.StreamResponse:
        if request.method == "PATCH":
            return self._patch(request, asked, await request.json())
        if request.method == "DELETE":
            return self._delete(asked)
        if request.method != "GET":
            raise RefusedError(405, "MethodNotAllowed")
        if asked.key.name:
            self._use(asked, "get", asked.key.name)
            return web.json_response(self.store.get(asked.key))
        if request.query.get("watch") == "true":
            self._use(asked, "watch", _named(request))
            return await self._watch(request, asked.key)
        self._use(asked, "list", _named(request))
        return self._list(request, asked.key)

    def _patch(self, request: web.Request, asked: _Asked, body: Object) -> web.Response:
        self._use(asked, "patch", asked.key.name)
        if not request.query.get("fieldManager"):
            raise RefusedError(400, "BadRequest")
        if request.headers["Content-Type"] == "application/merge-patch+json":
            return web.json_response(self.store.merge(asked.key, body))
        if request.headers["Content-Type"] != "application/apply-patch+yaml":
            raise RefusedError(415, "UnsupportedMediaType")
        if asked.key not in self.store.objects:
            self._use(asked, "create")
        return web.json_response(self.store.apply(asked.key, body))

    def _delete(self, asked: _Asked) -> web.Response:
        self._use(asked, "delete", asked.key.name)
        found = self.store.get(asked.key)
        if asked.key.plural not in _FINALIZED:
            self.store.drop(asked.key)
            return web.json_response(found)
        if found["metadata"].get("deletionTimestamp"):
            raise RefusedError(409, "Conflict")
        found["metadata"]["deletionTimestamp"] = now()
        if asked.key.plural == "namespaces":
            found["status"] = {"phase": "Terminating"}
        return web.json_response(self.store.put(asked.key, found))

    def _list(self, request: web.Request, key: Key) -> web.Response:
        selector = request.query.get("labelSelector", "")
        name = _named(request)
        found = [
            one
            for one in self.store.all(key.plural, key.namespace)
            if has_labels(one, selector) and name in ("", one["metadata"]["name"])
        ]
        size = min(int(request.query.get("limit", _LARGEST_PAGE)), _LARGEST_PAGE)
        page, more = pages(found, size, request.query.get("continue", ""))
        meta = {"resourceVersion": str(self.store.version), "continue": more}
        return web.json_response({"items": page, "metadata": meta})

    async def _watch(self, request: web.Request, key: Key) -> web.StreamResponse:
        wanted = Key(key.plural, key.namespace, _named(request))
        version = int(request.query["resourceVersion"])
        self.watched += 1
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        self.watches.add(response)
        try:
            async with asyncio.timeout(float(request.query["timeoutSeconds"])):
                await self._tell(response, wanted, version)
        except (TimeoutError, ConnectionError):
            pass
        except RefusedError as refused:
            self.expired += 1
            # As the real one: not the status of the answer, but an event in it.
            await _line(response, "ERROR", {"code": refused.status, "reason": refused.reason})
        finally:
            self.watches.discard(response)
        return response

    async def _tell(self, response: web.StreamResponse, wanted: Key, version: int) -> None:
        while True:
            for event in self.store.since(version):
                version = event.version
                if event.key == wanted:
                    await _line(response, event.type, event.object)
            await _line(response, "BOOKMARK", {"metadata": {"resourceVersion": str(version)}})
            with suppress(TimeoutError):
                async with asyncio.timeout(_BOOKMARK_SECONDS), self.store.changed:
                    await self.store.changed.wait()


def _named(request: web.Request) -> str:
    return request.query.get("fieldSelector", "").removeprefix("metadata.name=")


async def _line(response: web.StreamResponse, kind: str, found: Object) -> None:
    await response.write(json.dumps({"type": kind, "object": found}).encode() + b"\n")


def _status(status: int, reason: str, retry_after: str = "") -> web.Response:
    body = {"kind": "Status", "status": "Failure", "reason": reason, "code": status}
    headers = {"Retry-After": retry_after} if retry_after else {}
    return web.json_response(body, status=status, headers=headers)


def _parsed(path: str) -> _Asked:
    parts = path.strip("/").split("/")
    group = parts[1] if parts[0] == "apis" else ""
    rest = parts[3:] if parts[0] == "apis" else parts[2:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    return _Asked(group, Key(rest[0], namespace, rest[1] if len(rest) > 1 else ""))


@asynccontextmanager
async def serve(double: ApiDouble) -> AsyncIterator[str]:
    """Yields the URL at which the double is served."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", double.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
