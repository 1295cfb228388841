"""What of the images can be known without building them: their recipe, their locks, their start."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from deploy.local.layout import SERVICES

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "deploy" / "images"
DOCKERFILE = IMAGES / "Dockerfile"
VENV = Path(sys.executable).parent
SECONDS = 120
# What the script that builds images needs beside an engine.
TOOLS = ("cat", "dirname", "git", "sed", "sh", "tr")
OWN = {"bulkhead", "services"}


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the Dockerfile: what it stands on, and its instructions in order."""

    base: str
    instructions: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        return [words for instruction, words in self.instructions if instruction == name]

    def copied(self) -> Iterator[tuple[str, str]]:
        """Yields what is copied out of the stage `build`, and where to."""
        for words in self.all("COPY"):
            origin, source, target = words.split()
            assert origin == "--from=build"
            yield source, target


@dataclass(frozen=True, slots=True)
class Pin:
    """A line of a lock."""

    version: str
    marker: str
    hashes: frozenset[str]


def stages() -> Mapping[str, Stage]:
    """Returns the stages of the Dockerfile by name."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE))
    found: dict[str, Stage] = {}
    for block in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        first, *lines = [line for line in block.splitlines() if line.strip()]
        base, name = first.split(" AS ")
        instructions = (line.split(maxsplit=1) for line in lines)
        found[name] = Stage(
            base, tuple((one, " ".join(rest.split())) for one, rest in instructions)
        )
    return found


def lock(name: str) -> Mapping[str, Pin]:
    """Returns the pins of a lock by distribution."""
    text = re.sub(r"\s*\\\n\s*", " ", (ROOT / name).read_text())
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return dict(_pin(line) for line in lines)


def _pin(line: str) -> tuple[str, Pin]:
    wanted, *hashes = line.split(" --hash=")
    requirement, _, marker = wanted.partition(";")
    name, version = requirement.strip().split("==")
    return name.partition("[")[0], Pin(version, marker.strip(), frozenset(hashes))


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ;]", each)[0].lower().replace("_", "-") for each in requirements}


def project() -> Mapping[str, list[str]]:
    """Returns what the project needs: to run, and of each extra and group."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = found["project"]["optional-dependencies"]
    return {"run": found["project"]["dependencies"], **extras, **found["dependency-groups"]}


def test_the_linter_of_dockerfiles_has_nothing_to_say() -> None:
    linted = subprocess.run(
        [VENV / "hadolint", "--no-color", DOCKERFILE],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (linted.returncode, linted.stdout) == (0, "")


def test_there_is_a_target_for_each_service_that_starts_it_and_holds_no_other() -> None:
    targets = {name: stage for name, stage in stages().items() if stage.base == "service"}
    assert set(targets) == set(SERVICES)
    for name, stage in targets.items():
        assert [json.loads(words) for words in stage.all("ENTRYPOINT")] == [
            ["python", "-m", f"services.{name}"]
        ]
        assert list(stage.copied()) == [(f"/app/services/{name}", f"/app/services/{name}")]
        assert (ROOT / "services" / name / "__main__.py").exists()
        assert not stage.all("RUN")


def test_services_run_as_nobody_in_particular_and_write_nothing() -> None:
    service = stages()["service"]
    assert service.all("USER") == ["65532:65532"]
    assert not any(stage.all("USER") for stage in stages().values() if stage.base == "service")
    assert not service.all("RUN")
    (variables,) = service.all("ENV")
    assert "PYTHONDONTWRITEBYTECODE=1" in variables.split()


def test_what_is_copied_is_there_and_not_ignored() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [source for words in stages()["build"].all("COPY") for source in words.split()[:-1]]
    assert set(copied) == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_the_lock_of_the_services_has_what_the_project_needs_to_run_and_no_more() -> None:
    pins, everything = lock("requirements-services.lock"), lock("requirements.lock")
    assert distributions(project()["run"]) <= set(pins)
    others = distributions([*project()["local"], *project()["dev"]]) - {"bulkhead"}
    assert not others & set(pins)
    assert {name: everything.get(name) for name in pins} == pins


def test_the_lock_of_the_build_is_of_the_same_versions() -> None:
    pins, everything = lock("requirements-build.lock"), lock("requirements.lock")
    assert distributions(project()["build"]) <= set(pins)
    assert {name: everything.get(name) for name in pins} == pins


@pytest.mark.parametrize("name", ["requirements-services.lock", "requirements-build.lock"])
def test_a_lock_has_hashes_and_says_nothing_of_where_from(name: str) -> None:
    assert all(pin.hashes for pin in lock(name).values())
    assert "://" not in (ROOT / name).read_text()
    assert "index" not in {line.split()[0].strip("-") for line in _options(name)}


def _options(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line.startswith("-")]


def test_services_import_nothing_that_the_images_lack() -> None:
    pins, known = set(lock("requirements-services.lock")), packages_distributions()
    for file in sorted((ROOT / "services").rglob("*.py")):
        for module in _imported(ast.parse(file.read_text())) - OWN - sys.stdlib_module_names:
            found = distributions(known[module])
            assert found & pins, f"{file.relative_to(ROOT)}: {module}"


def _imported(module: ast.Module) -> set[str]:
    """Returns the top names of what is imported with a module; a function may never import."""
    names: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, unpacked, as the stage `build` leaves it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT,
        capture_output=True,
        timeout=SECONDS,
        check=True,
    )
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "app")
    (folder / "app/services/__pycache__").mkdir()
    return folder


def started(target: str, wheel: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """Runs the entry point of `target` on a tree with what its image has; without any settings."""
    service, own = stages()["service"], stages()[target]
    for source, place in (*service.copied(), *own.copied()):
        if source.startswith("/app"):
            (origin,) = wheel.glob(source[1:])
            copy = shutil.copytree if origin.is_dir() else shutil.copy
            (root / place[1:]).parent.mkdir(parents=True, exist_ok=True)
            copy(origin, root / place[1:])
    variables = dict(pair.split("=", 1) for pair in service.all("ENV")[0].split())
    environment = variables | {"PATH": f"{VENV}:{os.defpath}", "PYTHONPATH": str(root / "app")}
    (root / "empty").mkdir()
    return subprocess.run(
        json.loads(own.all("ENTRYPOINT")[0]),
        cwd=root / "empty",
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_a_service_starts_from_what_its_image_has_and_says_what_it_misses(
    wheel: Path, tmp_path: Path
) -> None:
    """Its imports are whole; what is not mounted is named in one line."""
    with ThreadPoolExecutor(2) as two:
        ended = two.map(lambda target: started(target, wheel, tmp_path / target), SERVICES)
        for target, process in zip(SERVICES, ended, strict=True):
            assert process.returncode in (1, 2), process.stderr
            (line,) = process.stderr.splitlines()
            assert re.fullmatch(r"\.bulkhead/\S+: No such file or directory", line), line
            assert not list((tmp_path / target / "app").rglob("*.pyc"))


def tools(folder: Path) -> Path:
    """Returns a folder with what the script needs, and no engine."""
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def images(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(IMAGES / "build")],
        env={"PATH": str(path), **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_without_an_engine_it_is_said_which_ones_would_do(tmp_path: Path) -> None:
    process = images(tools(tmp_path / "bin"))
    assert process.returncode == 1
    assert process.stderr == (
        "make images needs docker (and its daemon), podman or buildah; none of them answers\n"
    )


def test_an_engine_that_is_asked_for_and_does_not_answer_is_named(tmp_path: Path) -> None:
    process = images(tools(tmp_path / "bin"), ENGINE="podman")
    assert (process.returncode, process.stderr) == (1, "make images: podman does not answer\n")


def test_the_engine_that_answers_is_told_to_build_every_target(tmp_path: Path) -> None:
    """Both engines are doubles: a docker without its daemon, and a podman that writes down."""
    path, told = tools(tmp_path / "bin"), tmp_path / "told"
    double(path / "docker", "exit 1")
    double(path / "podman", f'echo "$@" >> {told}')
    process = images(path, REGISTRY="registry.example/mesh", TAG="t1", BASE="python:other")
    assert process.returncode == 0, process.stderr
    builds = [line for line in told.read_text().splitlines() if line.startswith("build")]
    assert {re.findall(r"--target (\S+) --tag (\S+)", line)[0] for line in builds} == {
        (name, f"registry.example/mesh/{name.replace('_', '-')}:t1") for name in SERVICES
    }
    assert all("--build-arg BASE=python:other" in line for line in builds)


def double(file: Path, does: str) -> None:
    file.write_text(f"#!/bin/sh\n{does}\n")
    file.chmod(0o700)
