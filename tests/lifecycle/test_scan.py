"""The scan that proves deletions can fail: it sees whatever is planted, wherever it is (P-39)."""

import asyncio
import secrets
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from deploy.local.postgres import MeshPostgres
from deploy.local.valkey import ValkeyServer
from services.provisioner.drivers.bucket_protocol import BucketAccess
from services.provisioner.drivers.seaweed_identities import FilerAddress, open_seaweed_identities
from tests.mesh import Mesh
from tests.readable_valkey import reader
from tests.s3 import Storage, s3_client
from tests.scan import Scan, scan_of
from tests.scan_rows import Names

TENANT, DEPLOYMENT, HOST, KEPT_HOST, KEY, WORD = (
    f"{prefix}{secrets.token_hex(13)}"
    for prefix in ("ten_", "dep_", "host-", "kept-", "key_", "word-")
)
NAMES = Names(
    TENANT,
    deployments=frozenset({DEPLOYMENT}),
    hosts=frozenset({HOST, KEPT_HOST}),
    keys=frozenset({KEY}),
    words=frozenset({WORD}),
)
ROUTE, KEPT_ROUTE = f"deploy:route:{HOST}", f"deploy:route:{KEPT_HOST}"


@pytest.fixture(scope="module")
async def scan(
    mesh_with_buckets: Mesh, postgres: MeshPostgres, valkey: ValkeyServer, s3: Storage
) -> Scan:
    return await scan_of(mesh_with_buckets, postgres, valkey, s3)


Plant: TypeAlias = Callable[[Scan, Storage], AbstractAsyncContextManager[object]]


def row(service: str, *statements: str) -> Plant:
    """Plants rows in the service's database."""

    @asynccontextmanager
    async def planted(scan: Scan, _: Storage) -> AsyncIterator[None]:
        connection = await scan.postgres.connect(scan.databases[service])
        try:
            async with connection.transaction():
                for statement in statements:
                    await connection.execute(statement)
            yield
            for statement in reversed(statements):
                table = statement.split()[2]
                await connection.execute(
                    f"DROP TABLE {table}"
                    if statement.startswith("CREATE")
                    else f"DELETE FROM {table} AS one WHERE one::text LIKE ANY($1)",
                    *([] if statement.startswith("CREATE") else [forms()]),
                )
        finally:
            await connection.close()

    return planted


def forms() -> list[str]:
    """Returns the patterns of everything that is sought."""
    return [f"%{form}%" for name in NAMES.all for form in (name, name.encode().hex())]


def in_any_table(service: str) -> Plant:
    """Plants a row in a table that nobody has heard of."""
    return row(
        service,
        "CREATE TABLE unheard_of (at int, word jsonb)",
        f"""INSERT INTO unheard_of VALUES (1, '{{"of": ["{WORD}"]}}')""",
    )


def key(*command: str) -> Plant:
    """Plants a key in Valkey."""

    @asynccontextmanager
    async def planted(scan: Scan, _: Storage) -> AsyncIterator[None]:
        async with aclosing(reader(scan.valkey)) as client:
            await client.execute_command(*command)  # type: ignore[no-untyped-call]
            yield
            await client.delete(command[1])

    return planted


@asynccontextmanager
async def bucket(_: Scan, s3: Storage) -> AsyncIterator[None]:
    async with s3_client(await s3.administrator()) as client:
        await client.create_bucket(Bucket=WORD)
        yield
        await client.delete_bucket(Bucket=WORD)


def in_bucket(how: str) -> Plant:
    """Plants something in a bucket that is another's."""

    @asynccontextmanager
    async def planted(_: Scan, s3: Storage) -> AsyncIterator[None]:
        place = {"Bucket": f"another-{secrets.token_hex(4)}", "Key": f"in/{WORD}"}
        async with s3_client(await s3.administrator()) as client:
            await client.create_bucket(Bucket=place["Bucket"])
            if how == "upload":
                begun = await client.create_multipart_upload(**place)
                place["UploadId"] = begun["UploadId"]
            elif how == "object":
                await client.put_object(**place, Body=b"")
            else:
                await client.put_bucket_versioning(
                    Bucket=place["Bucket"], VersioningConfiguration={"Status": "Enabled"}
                )
                await client.put_object(**place, Body=b"")
                await client.delete_object(**place)
            yield
            if how == "upload":
                await client.abort_multipart_upload(**place)
            listed = await client.list_object_versions(Bucket=place["Bucket"])
            for one in (*listed.get("Versions", ()), *listed.get("DeleteMarkers", ())):
                await client.delete_object(
                    Bucket=place["Bucket"], Key=one["Key"], VersionId=one["VersionId"]
                )
            await client.delete_bucket(Bucket=place["Bucket"])

    return planted


@asynccontextmanager
async def identity(_: Scan, s3: Storage) -> AsyncIterator[None]:
    server = await s3.server()
    files = server.identity
    address = FilerAddress(server.filer, files.certificate, files.key, files.authority)
    async with open_seaweed_identities(address) as identities:
        access = BucketAccess(server.endpoint, "", WORD, "no", "none")
        await identities.grant(access)
        yield
        await identities.revoke(WORD)


def make(file: Path, content: str | None = None) -> None:
    """Makes a file with its folders; a folder when it has no content."""
    (file if content is None else file.parent).mkdir(parents=True)
    if content is not None:
        file.write_text(content)


def on_disk(name: str, content: str | None) -> Plant:
    """Plants a file, or a folder when it has no content."""

    @asynccontextmanager
    async def planted(scan: Scan, _: Storage) -> AsyncIterator[None]:
        place = Path(scan.folders[0], f"inner-{secrets.token_hex(4)}")
        await asyncio.to_thread(make, place / name, content)
        yield
        await asyncio.to_thread(shutil.rmtree, place)

    return planted


@asynccontextmanager
async def process(
    *, says: str = "", cwd: Path | None = None, opens: str = ""
) -> AsyncIterator[None]:
    code = (
        "import sys; kept = [open(one) for one in sys.stdin.readline().split()]; print(); input()"
    )
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, says),
        cwd=cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write(f"{opens}\n".encode())
    await running.stdout.readline()
    try:
        yield
    finally:
        running.kill()
        await running.wait()


@asynccontextmanager
async def process_named(scan: Scan, _: Storage) -> AsyncIterator[None]:
    async with process(says=f"--of={DEPLOYMENT}"):
        yield


def process_of_removed_place(how: str) -> Plant:
    """Plants a process whose folder, or open file, has gone."""

    @asynccontextmanager
    async def planted(scan: Scan, _: Storage) -> AsyncIterator[None]:
        # Of its own, so that no finding of a file stands for it.
        place = Path(scan.folders[0], how, DEPLOYMENT)
        await asyncio.to_thread(make, place / "opened", "")
        cwd = place if how == "folder" else None
        async with process(cwd=cwd, opens=str(place / "opened") if cwd is None else ""):
            await asyncio.to_thread(shutil.rmtree, place.parent)
            yield

    return planted


PLANTS: dict[str, tuple[Plant, str]] = {
    **{
        f"a_row_of_{service}": (in_any_table(service), f"{service}: a row of unheard_of")
        for service in ("auth", "ratelimit", "credentials", "provisioner", "app_proxy")
    },
    "an_entry_of_the_queue": (
        row(
            "provisioner",
            "INSERT INTO pgqueuer (priority, status, entrypoint, payload, execute_after)"
            f" VALUES (0, 'queued', 'nobody', '{DEPLOYMENT}', now() + interval '1 day')",
        ),
        "provisioner: a row of pgqueuer",
    ),
    "a_tombstone_that_says_more": (
        row("ratelimit", f"INSERT INTO tombstones VALUES ('{TENANT}{DEPLOYMENT}', now(), 1)"),
        "ratelimit: a row of tombstones",
    ),
    "a_revocation_that_says_more": (
        row("auth", f"INSERT INTO revocations VALUES (-1, ARRAY['{KEY}', '{DEPLOYMENT}'])"),
        "auth: a row of revocations",
    ),
    "a_release_that_says_more": (
        row("ratelimit", f"INSERT INTO releases VALUES ('{DEPLOYMENT}', '{WORD}')"),
        "ratelimit: a row of releases",
    ),
    "a_key": (key("SET", f"limit:{{{DEPLOYMENT}}}", "1"), "valkey: limit:"),
    "a_value": (key("SET", "limit:a_value", f"of {WORD}"), "valkey: limit:a_value"),
    "a_hash": (key("HSET", "limit:a_hash", "field", WORD), "valkey: limit:a_hash"),
    "a_set": (key("SADD", "limit:a_set", WORD), "valkey: limit:a_set"),
    "a_sorted_set": (key("ZADD", "limit:a_sorted_set", "1", WORD), "valkey: limit:a_sorted_set"),
    "a_list": (key("RPUSH", "limit:a_list", "other", WORD), "valkey: limit:a_list"),
    "a_stream": (key("XADD", "limit:a_stream", "*", "field", WORD), "valkey: limit:a_stream"),
    "a_route": (key("SET", ROUTE, "{}", "EX", "60"), f"valkey: {ROUTE}"),
    "a_forgotten_route_for_ever": (key("SET", KEPT_ROUTE, "-"), f"valkey: {KEPT_ROUTE}"),
    "a_bucket": (bucket, "s3: bucket"),
    "an_object": (in_bucket("object"), "s3: version"),
    "a_version_behind_a_marker": (in_bucket("marker"), "s3: delete marker"),
    "an_upload": (in_bucket("upload"), "s3: upload"),
    "an_identity": (identity, "filer: /etc/iam/identities/"),
    "a_folder": (on_disk(f".{DEPLOYMENT}.doomed", None), f"/.{DEPLOYMENT}.doomed is left"),
    "a_file": (on_disk(f"{DEPLOYMENT}.bak", ""), f"/{DEPLOYMENT}.bak is left"),
    "content_of_a_file": (on_disk("innocent", f"a\0b{WORD}"), "/innocent holds what was written"),
    "a_process": (process_named, f"--of={DEPLOYMENT} is at work"),
    "a_process_in_a_folder_that_is_gone": (
        process_of_removed_place("folder"),
        f"/folder/{DEPLOYMENT}",
    ),
    "a_process_with_a_file": (process_of_removed_place("file"), f"/file/{DEPLOYMENT}/opened"),
}


@pytest.fixture(scope="module")
async def found(scan: Scan, s3: Storage) -> list[str]:
    """What the scan finds when everything is planted; nothing, when it is gone again."""
    async with AsyncExitStack() as planted:
        for plant, _ in PLANTS.values():
            await planted.enter_async_context(plant(scan, s3))
        found = await scan.findings(NAMES)
    assert await scan.findings(NAMES) == []
    return found


@pytest.mark.promise("P-39")
@pytest.mark.parametrize("what", PLANTS)
def test_the_scan_sees_what_is_left(found: list[str], what: str) -> None:
    _, sentence = PLANTS[what]
    assert any(sentence in one for one in found), found


@pytest.mark.promise("P-39")
async def test_the_scan_sees_a_port_on_which_somebody_listens(scan: Scan) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        names = Names(TENANT, ports=frozenset({port}))
        assert await scan.findings(names) == [f"port {port}: somebody listens"]
    assert await scan.findings(names) == []


@pytest.mark.promise("P-39")
async def test_what_says_that_a_tenant_was_may_stay_and_nothing_else_is_found(
    scan: Scan, s3: Storage
) -> None:
    may_stay = (
        row("ratelimit", f"INSERT INTO tombstones VALUES ('{TENANT}', now(), 1)"),
        row("ratelimit", f"INSERT INTO releases VALUES ('{DEPLOYMENT}', '{TENANT}')"),
        row("auth", f"INSERT INTO revocations VALUES (-1, ARRAY['{KEY}'])"),
        key("SET", ROUTE, "-", "EX", "60"),
    )
    async with AsyncExitStack() as planted:
        for plant in may_stay:
            await planted.enter_async_context(plant(scan, s3))
        assert await scan.findings(NAMES) == []
