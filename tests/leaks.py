"""A pytest plugin: no test may pass whose output holds a canary, whoever wrote it.

What a test's process and the processes that it starts write to standard output and standard error,
fixtures and background tasks included, is in the test's report: pytest takes it at the descriptors.
What servers write to log files of their own is looked through when they have ended.
"""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.canaries import leaked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: "pytest.CallInfo[None]"
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails the last report of a test, which has all that was captured, if a canary is in it."""
    report = yield
    if report.when == "teardown":
        found = [title for title, text in report.sections if leaked(text)]
        if found:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: a planted secret is in: {', '.join(found)}"
    return report


def leaking_logs(folder: Path) -> list[str]:
    """Returns the log files below `folder` that hold a canary."""
    return [str(file) for file in _logs(folder) if leaked(file.read_bytes().decode("latin-1"))]


def _logs(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        if "PG_VERSION" in files:
            # A database's own files, a thousand to each server: of its folders one has logs.
            folders[:] = [name for name in folders if name == "log"]
        logs = (Path(parent, name) for name in files if ".log" in name)
        yield from (log for log in logs if log.is_file())
