from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.deploy.rendered import (
    COMPONENTS,
    KUBERNETES,
    NEEDS,
    OVERLAYS,
    Rendered,
    build,
    composed,
)


@pytest.fixture(scope="session")
def overlays() -> Mapping[str, Rendered]:
    """Every overlay, as it is applied."""
    folders = [KUBERNETES / "overlays" / name for name in OVERLAYS]
    with ThreadPoolExecutor() as pool:
        return dict(zip(OVERLAYS, pool.map(build, folders), strict=True))


@pytest.fixture(scope="session")
def base() -> Rendered:
    return build(KUBERNETES / "base")


@pytest.fixture(scope="session")
def components(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Rendered]:
    """The base with each component alone, or with what the component stands on."""
    home = tmp_path_factory.mktemp("components")
    wanted = [(*NEEDS.get(name, ()), name) for name in COMPONENTS]
    folders = [home / name for name in COMPONENTS]
    with ThreadPoolExecutor() as pool:
        return dict(zip(COMPONENTS, pool.map(composed, folders, wanted), strict=True))
