"""Windows on a real Valkey Cluster: a domain's counters are together, domains are spread."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from services.ratelimit.window_store import WindowStore
from services.ratelimit.windows import Counted, Mode, Unit
from services.shared.redis import is_cluster, open_valkey
from tests.valkey_cluster import ask, cluster_settings, valkey_cluster

DOMAINS = 30


@pytest.fixture(scope="module")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[WindowStore, list[int]]]:
    home = tmp_path_factory.mktemp("cluster")
    async with (
        valkey_cluster(home) as ports,
        open_valkey(cluster_settings(home, ports[0], "ratelimit")) as client,
    ):
        assert is_cluster(client)
        yield WindowStore(client, 30.0), ports


def hit(counter: str, limit: int) -> Counted:
    return Counted(counter, Unit.YEAR, 1, limit, 1, Mode.ENFORCED)


async def test_a_request_of_several_descriptors_is_decided_as_a_whole(
    cluster: tuple[WindowStore, list[int]],
) -> None:
    store, ports = cluster
    domains = [uuid.uuid4().hex for _ in range(DOMAINS)]
    asked = [hit("narrow", 2), hit("wide", 9)]
    for expected in (False, False, True):
        answers = await asyncio.gather(*(store.count(domain, asked) for domain in domains))
        assert {narrow.over for narrow, _ in answers} == {expected}
    assert {wide.left for _, wide in answers} == {7}
    counted = [len(await ask(port, "KEYS", "limit:{rls:*")) for port in ports]
    # A year has not ended meanwhile: two counters for each domain, on every node some.
    assert sum(counted) == 2 * DOMAINS
    assert all(counted)
