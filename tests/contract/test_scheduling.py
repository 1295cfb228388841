"""The order of the tests names what there is."""

from tests.contracts import ROOT
from tests.scheduling import named_files


def test_every_file_that_is_named_exists() -> None:
    assert [file for file in named_files() if not (ROOT / file).is_file()] == []
