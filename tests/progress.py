"""With ``--progress``: how far the tests are, in a line for every tenth of them.

In place of a character a test: of thousands one cannot see which it was, nor how long it takes.
"""

from __future__ import annotations

import time
from typing import Any

import pytest


class Progress:
    """Counts finished tests and says so; failures are said at once, by name."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._began = time.monotonic()
        self._done = 0
        self._said = 0
        self._failed: set[str] = set()

    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """Count as pytest does, and print no character."""
        if report.passed and hasattr(report, "wasxfail"):
            return ("xpassed", "", "XPASS")
        if report.failed:
            category = "failed" if report.when == "call" else "error"
            return (category, "", category.upper())
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        counted = report.when == "call" or report.skipped
        return (outcome if counted else "", "", "")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Name a failure when it happens, not after all the others."""
        if report.failed and report.nodeid not in self._failed:
            self._failed.add(report.nodeid)
            self._say(f"FAILED {report.nodeid}")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Say how far it is, at every tenth."""
        self._done += 1
        total = self._total()
        if total and self._done * 10 // total > self._said:
            self._said = self._done * 10 // total
            seconds = time.monotonic() - self._began
            failed = f", {len(self._failed)} failed" if self._failed else ""
            self._say(
                f"{100 * self._done // total:3d} %  {self._done} of {total} tests, "
                f"{seconds:.0f} s{failed}"
            )

    def _total(self) -> int:
        session = self._terminal()._session
        return session.testscollected if session is not None else 0

    def _terminal(self) -> Any:
        return self._config.pluginmanager.get_plugin("terminalreporter")

    def _say(self, line: str) -> None:
        terminal = self._terminal()
        terminal.ensure_newline()
        terminal.write_line(line)
