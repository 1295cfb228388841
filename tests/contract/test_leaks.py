"""That logs which hold a canary are found, wherever servers put them."""

from pathlib import Path

import pytest

from tests.canaries import MARK
from tests.leaks import leaking_logs


@pytest.mark.parametrize(
    "log", ["service.log", "stack0/logs/edge.log.1", "data/start.log", "data/log/postgresql.log"]
)
def test_a_log_with_a_canary_is_found(tmp_path: Path, log: str) -> None:
    for folder in ("stack0/logs", "data/log", "data/base/1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "PG_VERSION").touch()
    (tmp_path / "other.log").write_text("nothing to see")
    assert leaking_logs(tmp_path) == []
    (tmp_path / log).write_text(f"before {MARK} after")
    try:
        assert leaking_logs(tmp_path) == [str(tmp_path / log)]
    finally:
        # All logs of a run are looked through at its end, this one too.
        (tmp_path / log).unlink()
