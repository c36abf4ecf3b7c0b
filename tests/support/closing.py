"""The suite's closing lines: what did not run and why, and what third parties did by chance, so that neither passes in silence."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

THIRD_PARTY = {
    "airflow-busy": "Airflow's API server answers 5xx while it is busy (a database session of its own timed out); a client asks again",
    "kafka-lost-marker": "a lone broker that is killed in a commit may lose its markers (Kafka 4.3.1): a transaction stays open for ever",
}
"""What others do at random, and what the tests do about it. The only place where a test may put up with something."""

NOT_RUN_FILE = "FACTORY_NOT_RUN"
"""The environment's name for a file that collects, over several sessions, what did not run."""

_MET: Counter[str] = Counter()


def met(name: str) -> None:
    """Count one occurrence of something in ``THIRD_PARTY``."""
    if name not in THIRD_PARTY:
        raise KeyError(f"{name!r} is not in THIRD_PARTY; found: {', '.join(THIRD_PARTY)}")
    _MET[name] += 1


class ClosingLines:
    """Gathers skips and third parties' doings over all workers, and says them last."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.met: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        self.met.update(getattr(node, "workeroutput", {}).get("third_party", {}))

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or config.option.collectonly:
            return
        for line in lines(self.met + _MET, self.skipped):
            reporter.write_line(line)
        if self.skipped and (path := os.environ.get(NOT_RUN_FILE)):
            with Path(path).open("a") as file:
                file.writelines(f"{_times(reason, count)}\n" for reason, count in sorted(self.skipped.items()))


def lines(met_: Counter[str], skipped: Counter[str]) -> Iterable[str]:
    """The closing lines; the last one always says what did not run."""
    yield from (f"third party, {count} times: {THIRD_PARTY[name]}" for name, count in sorted(met_.items()))
    yield "did not run: " + ("; ".join(_times(reason, count) for reason, count in sorted(skipped.items())) or "nothing, all did")


def _times(reason: str, count: int) -> str:
    return f"{count} × {reason}"


def pytest_configure(config: pytest.Config) -> None:
    """Register with the session; a worker hands its figures to it at its end."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(ClosingLines(), "factory-closing-lines")


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["third_party"] = dict(_MET)
