"""The provisioner dies at every boundary of deletions: all is gone in the end (P-39)."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from deploy.local.ports import free_ports
from deploy.local.postgres import MeshPostgres
from deploy.local.valkey import ValkeyServer
from services.provisioner.domain import OperationKind
from services.provisioner.settings import Settings
from tests.certificates import verified
from tests.conftest import StartMesh
from tests.lives import Place, a_life, begin, certificate, died_everywhere, running_place
from tests.provisioner_kills import (
    insisted,
    provisioner,
)
from tests.s3 import Storage
from tests.scan_machine import processes_left

pytestmark = pytest.mark.promise("P-39")


@pytest.fixture(scope="module")
async def place(
    start_mesh: StartMesh, s3: Storage, postgres: MeshPostgres, valkey: ValkeyServer
) -> AsyncIterator[Place]:
    async with running_place(start_mesh, s3, postgres, valkey) as running:
        yield running


async def test_a_deletion_killed_everywhere_ends_certified(place: Place) -> None:
    life = await a_life(place, everything=True)
    with place.kills.armed(OperationKind.DELETE):
        request = pb2.DeleteDeploymentRequest(deployment_id=life.app.deployment_id)
        deleted = await insisted(
            lambda: place.stub.DeleteDeployment(request, metadata=life.metadata)
        )
        await life.done(deleted.operation)
        await died_everywhere(place.kills, OperationKind.DELETE)
    document = await verified(place.stub, await certificate(place, deleted.certificate_token))
    kinds = {one["kind"] for one in document["resources"]}
    assert kinds >= {"keys", "route", "loans", "counters", "database", "bucket", "secrets"}
    assert await asyncio.to_thread(processes_left, [life.app.deployment_id]) == []
    life.others.append(pb2.Deployment(deployment_id=life.app.deployment_id, host=life.app.host))
    await life.end()


async def test_a_tenants_deletion_killed_everywhere_ends_certified_and_harms_nobody_else(
    place: Place,
) -> None:
    life, other = await a_life(place, everything=True), await a_life(place)
    names = await life.names()
    token = secrets.token_hex(32)
    with place.kills.armed(OperationKind.DELETE_TENANT):
        await life.delete_tenant(token)
        await certificate(place, token)
        await died_everywhere(place.kills, OperationKind.DELETE_TENANT)
    await life.certified(token, names)
    assert await other.words(other.app.deployment_id) == [other.word]
    await other.end()


async def test_of_two_replicas_one_takes_each_step_whoever_dies(place: Place) -> None:
    settings = place.mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    second = settings.model_copy(update={"listen": f"127.0.0.1:{free_ports(1)[0]}"})
    async with provisioner(second, place.kills):
        with place.kills.armed(OperationKind.CREATE):
            life, operation = await begin(place)
            await life.done(operation)
            # Each boundary once: who takes over a step that was cut off begins with it.
            await died_everywhere(place.kills, OperationKind.CREATE)
        await life.write()
        with place.kills.armed(OperationKind.DELETE):
            deleted = await insisted(
                lambda: place.stub.DeleteDeployment(
                    pb2.DeleteDeploymentRequest(deployment_id=life.app.deployment_id),
                    metadata=life.metadata,
                )
            )
            await life.done(deleted.operation)
            await died_everywhere(place.kills, OperationKind.DELETE)
        life.others.append(pb2.Deployment(deployment_id=life.app.deployment_id, host=life.app.host))
        await life.end()
