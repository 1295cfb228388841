"""A pytest plugin: no test may pass whose output holds a canary, whoever wrote it.

What a test's process and the processes that it starts write to standard output and standard error,
fixtures and background tasks included, is in the test's report: pytest takes it at the descriptors.
"""

from collections.abc import Generator

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
