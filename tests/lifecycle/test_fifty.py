"""Fifty deployments of one tenant, made, used and deleted: nothing is left, provably (P-39).

Another tenant lives through all of it.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import asyncpg
import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from cli.certificate_check import check
from deploy.local.postgres import MeshPostgres
from deploy.local.valkey import ValkeyServer
from services.provisioner.drivers.bucket_protocol import BucketAccess
from services.shared.postgres import Connection
from tests.apps import App, an_app
from tests.certificates import certified, decoded, encoded, published_keys
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.s3 import Storage, s3_client
from tests.scan import scan_of
from tests.scan_machine import ports_left, processes_left
from tests.scan_rows import Names

pytestmark = pytest.mark.promise("P-39")
PATIENCE_SECONDS = 120.0
WORD = f"word-{secrets.token_hex(12)}"
# Of fifty: those that are made anew, then copies of some.
PLAIN, WITH_BUCKETS, COMPLETE, BRANCHES, RESTORED = 12, 18, 8, 8, 4
# So many are asked for at one moment.
AT_ONCE = 8

One = TypeVar("One")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Crowd:
    """A tenant and its many deployments."""

    mesh: Mesh
    customer: Customer

    @property
    def stub(self) -> ProvisionerServiceStub:
        return self.mesh.stub(ProvisionerServiceStub, "provisioner")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.customer.key)

    async def create(self, number: int) -> pb2.Deployment:
        """Returns the deployment of that number, once it is ready."""
        bucket = number >= PLAIN
        complete = number >= PLAIN + WITH_BUCKETS
        answer = await self.stub.CreateDeployment(
            pb2.CreateDeploymentRequest(
                request_id=fresh_id(),
                name=f"one-{number}",
                mcp=complete or not bucket,
                database=complete or not bucket,
                bucket=bucket,
                bootstrap_admin=complete,
            ),
            metadata=self.metadata,
        )
        await self.done(answer.operation)
        return answer.deployment

    async def branch(self, source: pb2.Deployment) -> pb2.Deployment:
        answer = await self.stub.CreateBranch(
            pb2.CreateBranchRequest(
                request_id=fresh_id(), deployment_id=source.deployment_id, name="branch", mcp=True
            ),
            metadata=self.metadata,
        )
        await self.done(answer.operation)
        return answer.deployment

    async def restore(self, source: pb2.Deployment) -> pb2.Deployment:
        """Returns a deployment made of a backup of another, which lies in its bucket if it can."""
        target = pb2.BACKUP_TARGET_BUCKET if source.bucket else pb2.BACKUP_TARGET_FILE
        backup = await self.stub.CreateBackup(
            pb2.CreateBackupRequest(
                request_id=fresh_id(), deployment_id=source.deployment_id, target=target
            ),
            metadata=self.metadata,
        )
        await self.done(backup.operation)
        answer = await self.stub.RestoreBackup(
            pb2.RestoreBackupRequest(
                request_id=fresh_id(), backup_id=backup.backup.backup_id, name="restored"
            ),
            metadata=self.metadata,
        )
        await self.done(answer.operation)
        return answer.deployment

    async def done(self, operation: pb2.Operation) -> None:
        latest = operation
        async for change in self.stub.WaitOperation(
            pb2.WaitOperationRequest(operation_id=operation.operation_id),
            metadata=self.metadata,
            timeout=PATIENCE_SECONDS,
        ):
            latest = change.operation
        assert latest.state == pb2.OPERATION_STATE_SUCCEEDED, latest

    async def use(self, one: pb2.Deployment) -> int:
        """Writes and reads what it can; returns the public port of its database, 0 if none."""
        await self.stub.PutSecret(
            pb2.PutSecretRequest(deployment_id=one.deployment_id, name="WORD", value=WORD),
            metadata=self.metadata,
        )
        if one.bucket:
            await self.put_object(one)
        if not one.database:
            return 0
        way_in = await App(self.mesh, self.customer, one.deployment_id, one.host).way_in()
        connection = await asyncpg.connect(way_in.uri, timeout=PATIENCE_SECONDS)
        try:
            await connection.execute("CREATE TABLE IF NOT EXISTS kept (word text)")
            await connection.execute("INSERT INTO kept VALUES ($1)", WORD)
            assert WORD in [row["word"] for row in await connection.fetch("SELECT word FROM kept")]
        finally:
            await connection.close()
        return int(way_in.port)

    async def put_object(self, one: pb2.Deployment) -> None:
        key = await self.mesh.key(self.customer, one.deployment_id, ("environment:read",))
        answer = await self.stub.GetEnvironment(
            pb2.GetEnvironmentRequest(), metadata=bearer(key.key)
        )
        found = {variable.name: variable.value for variable in answer.variables}
        assert found["WORD"] == WORD
        access = BucketAccess(
            *(
                found[f"BULKHEAD_BUCKET_{part}"]
                for part in ("ENDPOINT", "REGION", "NAME", "ACCESS_KEY", "SECRET_KEY")
            )
        )
        async with s3_client(access) as client:
            await client.put_object(Bucket=access.bucket, Key=f"of/{WORD}", Body=WORD.encode())
            begun = await client.create_multipart_upload(Bucket=access.bucket, Key=f"half/{WORD}")
            assert begun["UploadId"]


async def each(things: Iterable[One], work: Callable[[One], Awaitable[Made]]) -> Sequence[Made]:
    """Returns what `work` makes of each, so many at once as one machine can bear."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(thing: One) -> Made:
        async with places:
            return await work(thing)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(thing)) for thing in things]
    return [task.result() for task in tasks]


@asynccontextmanager
async def untouched(mesh: Mesh) -> AsyncIterator[None]:
    """Another tenant is asked all the time; it answers as ever."""
    app = await an_app(mesh)
    async with app.writer() as writer:
        await writer.execute("CREATE TABLE kept AS SELECT 'theirs' AS word")
        session = asyncio.create_task(_ask(writer))
        try:
            yield
        finally:
            session.cancel()
            await asyncio.wait([session])
        assert session.cancelled(), session.exception()
    async with app.writer() as writer:
        assert await writer.fetchval("SELECT word FROM kept") == "theirs"
    assert set((await app.resources()).values()) == {"READY"}


async def _ask(session: Connection) -> None:
    while True:
        assert await session.fetchval("SELECT word FROM kept") == "theirs"
        await asyncio.sleep(0.1)


async def test_fifty_deployments_are_made_used_and_deleted_and_nothing_is_left(
    mesh_with_buckets: Mesh, s3: Storage, postgres: MeshPostgres, valkey: ValkeyServer
) -> None:
    mesh = mesh_with_buckets
    crowd = Crowd(mesh, await mesh.customer())
    scan = await scan_of(mesh, postgres, valkey, s3)
    async with untouched(mesh):
        made = [*await each(range(PLAIN + WITH_BUCKETS + COMPLETE), crowd.create)]
        with_databases = [one for one in made if one.database]
        made += await each(with_databases[-BRANCHES:], crowd.branch)
        made += await each(with_databases[PLAIN - 2 : PLAIN + 2], crowd.restore)
        assert len({one.deployment_id for one in made}) == 50
        ports = await each(made, crowd.use)
        names = Names(
            crowd.customer.tenant_id,
            deployments=frozenset(one.deployment_id for one in made),
            hosts=frozenset(one.host for one in made),
            keys=frozenset({crowd.customer.key_id}),
            words=frozenset({WORD}),
            ports=frozenset(ports) - {0},
        )
        # What is looked for is what is there.
        assert len(await asyncio.to_thread(ports_left, names.ports)) == len(names.ports) > 30
        assert len(await asyncio.to_thread(processes_left, names.deployments)) > 30
        deleted = await crowd.stub.DeleteTenant(
            pb2.DeleteTenantRequest(), metadata=crowd.metadata, timeout=PATIENCE_SECONDS
        )
        certificate = await certified(crowd.stub, deleted.certificate_token)
        assert await scan.settled(names) == []
    await assert_proves(crowd, certificate, made)


async def assert_proves(crowd: Crowd, certificate: str, made: Sequence[pb2.Deployment]) -> None:
    """Checks the certificate offline: it names every resource, and cannot be changed."""
    keys = await published_keys(crowd.stub)
    verdict = check(certificate, keys)
    assert verdict.verified, verdict.problems
    assert verdict.document["sub"] == crowd.customer.tenant_id
    certified_kinds = {(one["deployment_id"], one["kind"]) for one in verdict.document["resources"]}
    assert certified_kinds >= {(one.deployment_id, kind) for one in made for kind in kinds_of(one)}
    header, body, signature = certificate.split(".")
    document = decoded(body)
    document["resources"].pop()
    assert not check(f"{header}.{encoded(document)}.{signature}", keys).verified


def kinds_of(one: pb2.Deployment) -> set[str]:
    """Returns what the deployment was made of."""
    return (
        {"keys", "route", "loans", "counters", "secrets"}
        | ({"database", "backups"} if one.database else set())
        | ({"bucket"} if one.bucket else set())
    )
