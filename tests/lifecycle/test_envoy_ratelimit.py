"""Limits by descriptors, asked for by a real Envoy, while their file changes."""

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import StartMesh
from tests.lifecycle.limited_envoy import BODY, Limited, limited_envoy
from tests.mesh import Mesh

# By the year, so that no window ends while a test runs.
CONFIG = """
domain: {domain}
descriptors:
  - key: user
    rate_limit: {{unit: year, requests_per_unit: {most}}}
  - key: service
    rate_limit: {{unit: year, requests_per_unit: 5}}
  - key: trial
    shadow_mode: true
    rate_limit: {{unit: year, requests_per_unit: 1}}
  - key: tokens
    count_refused: true
    rate_limit: {{unit: year, requests_per_unit: {tokens}}}
"""


TOKENS = len(BODY) * 3 // 2


@dataclass(frozen=True)
class Setting:
    """An Envoy before a ratelimit of its own, and the file of its limits."""

    envoy: Limited
    mesh: Mesh
    file: Path
    domain: str

    def write(self, most: int) -> None:
        # At once, as a file is replaced by those who know how.
        new = self.file.with_suffix(".new")
        new.write_text(config(self.domain, most))
        new.replace(self.file)


def config(domain: str, most: int) -> str:
    return CONFIG.format(domain=domain, most=most, tokens=TOKENS)


@pytest.fixture
async def setting(start_mesh: StartMesh, tmp_path: Path) -> AsyncIterator[Setting]:
    domain = uuid.uuid4().hex
    file = tmp_path / "limits" / "shop.yaml"
    file.parent.mkdir()
    file.write_text(config(domain, 2))
    own = {"ratelimit_config": file.parent, "ratelimit_config_seconds": 0.05}
    async with (
        start_mesh({"ratelimit": own}, names=("auth", "ratelimit")) as mesh,
        limited_envoy(tmp_path, mesh.pki["edge"], mesh.ports["ratelimit"], domain) as envoy,
    ):
        yield Setting(envoy, mesh, file, domain)


async def test_a_request_over_the_limit_is_answered_429_with_headers(setting: Setting) -> None:
    first, second, third = [await setting.envoy.get(user="ada") for _ in range(3)]
    assert [each.status_code for each in (first, second, third)] == [200, 200, 429]
    assert [each.headers["x-ratelimit-remaining"] for each in (first, second, third)] == [
        "1",
        "0",
        "0",
    ]
    assert third.headers["x-ratelimit-limit"].split(",")[0] == "2"
    assert 0 < int(third.headers["x-ratelimit-reset"]) <= 366 * 86_400
    assert third.headers["x-envoy-ratelimited"] == "true"
    assert (await setting.envoy.get(user="bob")).status_code == 200


async def test_of_two_descriptors_a_refused_request_burns_neither(setting: Setting) -> None:
    both = {"user": "ada", "service": "search"}
    answers = [await setting.envoy.get(**both) for _ in range(5)]
    assert [each.status_code for each in answers] == [200, 200, 429, 429, 429]
    others = [await setting.envoy.get(service="search") for _ in range(4)]
    assert [each.status_code for each in others] == [200, 200, 200, 429]


async def test_shadow_mode_refuses_nobody(setting: Setting) -> None:
    answers = [await setting.envoy.get(trial="yes") for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 200]
    assert answers[-1].headers["x-ratelimit-remaining"] == "0"


async def test_a_request_without_descriptors_is_not_limited(setting: Setting) -> None:
    answers = [await setting.envoy.get() for _ in range(5)]
    assert {each.status_code for each in answers} == {200}
    assert "x-ratelimit-limit" not in answers[0].headers


async def test_what_is_told_after_the_request_is_counted_beyond_the_limit(
    setting: Setting,
) -> None:
    # The limit is one and a half answers: the second is begun, and is more than was left.
    last = await setting.envoy.get(tokens="ada")
    assert last.headers["x-ratelimit-remaining"] == str(TOKENS)
    async with asyncio.timeout(30):
        while last.status_code == 200:
            # What was told comes in whole answers, not one by one.
            assert int(last.headers["x-ratelimit-remaining"]) in {TOKENS, TOKENS - len(BODY)}
            last = await setting.envoy.get(tokens="ada")
    assert last.status_code == 429
    assert last.headers["x-ratelimit-remaining"] == "0"
    assert (await setting.envoy.get(tokens="bob")).status_code == 200


async def test_a_changed_file_counts_while_requests_go_on(setting: Setting) -> None:
    answers = [await setting.envoy.get(user="ada") for _ in range(3)]
    assert answers[-1].status_code == 429
    setting.write(4)
    # What was used stays used.
    assert (await until_limit(setting, "4", user="eve")) == "4"
    answers = [await setting.envoy.get(user="ada") for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    setting.write(1)
    assert (await until_limit(setting, "1", user="eve")) == "1"
    assert (await setting.envoy.get(user="ada")).status_code == 429


async def test_a_bad_file_changes_nothing_and_a_good_one_after_it_does(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    setting.file.write_text("domain: [")
    printed = ""
    async with asyncio.timeout(30):
        while "limits not read again" not in printed:
            captured = capsys.readouterr()
            printed += captured.out + captured.err
            await asyncio.sleep(0.01)
    assert f"{setting.file}: line 1, column 10" in printed
    answers = [await setting.envoy.get(user="ada") for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    setting.write(7)
    assert (await until_limit(setting, "7", user="eve")) == "7"


async def until_limit(setting: Setting, limit: str, **headers: str) -> str:
    """Returns the limit that answers name, once it is `limit`."""
    async with asyncio.timeout(30):
        while True:
            answer = await setting.envoy.get(**headers)
            told: str = answer.headers["x-ratelimit-limit"].split(",")[0]
            if told == limit:
                return told


async def test_when_the_limiter_is_away_nobody_passes(setting: Setting) -> None:
    await setting.mesh.stop("ratelimit")
    assert (await setting.envoy.get(user="ada")).status_code == 503
    await setting.mesh.start("ratelimit")
    async with asyncio.timeout(30):
        while (await setting.envoy.get(user="ada")).status_code != 200:
            pass


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("domain: [", "line 1, column 10: "),
        ("domain: d\ndescriptors: [{key: a, limit: 5}]", "descriptors[0].limit: "),
    ],
)
def test_a_bad_file_refuses_to_start_with_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    ended = subprocess.run(
        [sys.executable, "-m", "services.ratelimit"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "BULKHEAD_RATELIMIT_CONFIG": str(file),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"{file}: {says}")
    assert ended.stderr.count("\n") == 1
