"""A real Prometheus of a test's own, where it is installed."""

from __future__ import annotations

import json
import shutil
import signal
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from factory_agents.sandbox.processes import alive, free_port, last_line, spawn, stop, wait_until

PROGRAM, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")


class Prometheus:
    """One that runs."""

    def __init__(self, address: str) -> None:
        self.address = address

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The samples of an instant query."""
        data = self._get("query", query=expression)
        return [(row["metric"], float(row["value"][1])) for row in data["result"]]

    def firing(self) -> list[dict[str, str]]:
        """The labels of alerts that fire."""
        return [alert["labels"] for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"]

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, what: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, str], rules: str) -> Iterator[Prometheus]:
    """One that scrapes these addresses (by job) each second and evaluates rules as often."""
    assert PROGRAM is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yaml").write_text(rules)
    scrapes = [{"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in targets.items()]
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump({"global": every, "rule_files": ["rules.yaml"], "scrape_configs": scrapes}))
    address, log = f"127.0.0.1:{free_port('127.0.0.1')}", folder / "prometheus.log"
    process = spawn(
        [
            PROGRAM,
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ],
        log=log,
    )
    own = Prometheus(address)
    try:
        assert wait_until(lambda: own.ready() or not alive(process), 30), last_line(log)
        assert alive(process), last_line(log)
        yield own
    finally:
        stop(process, (signal.SIGTERM, 10), (signal.SIGKILL, 5))
