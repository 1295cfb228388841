"""Identities of SeaweedFS: a file each below /etc/iam/identities of its filer.

Its gateways follow that folder and know of a change within moments. Files of their own cannot lose
one another's changes, as those of its IAM API could, which writes all identities at once; and that
API, once it may write, lets every identity make itself further keys. It stays off.

The filer is asked over mutual TLS. It must keep small files inside its store (its option
`saveToFilerLimit`, 4,096 bytes or more).
"""

import json
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath

import httpx

from services.provisioner.drivers.bucket_protocol import BucketAccess
from services.provisioner.drivers.protocol import DriverError

_FOLDER = "/etc/iam/identities/"
# All of an own bucket's content; nothing of the bucket itself, such as its policy or removal.
_ACTIONS = ("Read", "Write", "List", "Tagging")
_PAGE_SIZE = 1_000
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class FilerAddress:
    """Where the filer is, and with what one proves to be allowed in."""

    url: str
    certificate: Path
    key: Path
    authority: Path


class SeaweedIdentities:
    """See the module."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def grant(self, access: BucketAccess) -> None:
        """Writes the bucket's identity."""
        await self._ask("PUT", _file(access.bucket), content=json.dumps(_identity(access)))

    async def granted(self, access: BucketAccess) -> bool:
        """Whether the bucket's identity is as it would be written."""
        answer = await self._ask("GET", _file(access.bucket))
        return answer.status_code == HTTPStatus.OK and _parsed(answer) == _identity(access)

    async def revoke(self, bucket: str) -> None:
        """Removes the bucket's identity."""
        await self._ask("DELETE", _file(bucket))

    async def buckets(self) -> Sequence[str]:
        """Returns the buckets of all identities, a page at a time."""
        found: list[str] = []
        last = ""
        while True:
            query = {"limit": str(_PAGE_SIZE), "lastFileName": last}
            answer = await self._ask("GET", _FOLDER, params=query)
            listed = _parsed(answer) if answer.status_code == HTTPStatus.OK else {}
            names = [PurePosixPath(entry["FullPath"]).name for entry in listed.get("Entries") or ()]
            found += [PurePosixPath(name).stem for name in names]
            if len(names) < _PAGE_SIZE:
                return found
            last = names[-1]

    async def _ask(
        self, method: str, path: str, *, content: str = "", params: dict[str, str] | None = None
    ) -> httpx.Response:
        with _filer_errors():
            answer = await self._http.request(method, path, content=content, params=params)
        if answer.status_code != HTTPStatus.NOT_FOUND and answer.is_error:
            raise DriverError(f"the filer answered {answer.status_code}")
        return answer


@asynccontextmanager
async def open_seaweed_identities(filer: FilerAddress) -> AsyncIterator[SeaweedIdentities]:
    """Yields the identities; nothing is asked before the first use.

    Raises:
        OSError: a file of the address cannot be read.
    """
    context = ssl.create_default_context(cafile=filer.authority)
    context.load_cert_chain(filer.certificate, filer.key)
    async with httpx.AsyncClient(
        base_url=filer.url,
        verify=context,
        timeout=_TIMEOUT_SECONDS,
        trust_env=False,
        headers={"accept": "application/json", "content-type": "application/json"},
    ) as http:
        yield SeaweedIdentities(http)


@contextmanager
def _filer_errors() -> Iterator[None]:
    try:
        yield
    # A refused certificate is told by an error of the system, after the handshake.
    except (httpx.HTTPError, OSError) as error:
        raise DriverError(f"the filer cannot be asked: {type(error).__name__}") from error


def _parsed(answer: httpx.Response) -> dict[str, list[dict[str, str]]]:
    try:
        parsed: dict[str, list[dict[str, str]]] = answer.json()
    except ValueError as error:
        raise DriverError("the filer's answer is no JSON") from error
    return parsed


def _file(bucket: str) -> str:
    return f"{_FOLDER}{bucket}.json"


def _identity(access: BucketAccess) -> dict[str, object]:
    credentials = {
        "access_key": access.access_key,
        "secret_key": access.secret_key,
        "status": "Active",
    }
    return {
        "name": access.bucket,
        "credentials": [credentials],
        "actions": [f"{action}:{access.bucket}" for action in _ACTIONS],
    }
