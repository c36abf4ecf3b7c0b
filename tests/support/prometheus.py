"""A real Prometheus of a test's own, where it is installed."""

from __future__ import annotations

import json
import shutil
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from factory_agents.sandbox.processes import alive, free_port, last_line, spawn, stop, wait_until

PROGRAM, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
ALERTMANAGER, AMTOOL = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager"), shutil.which("amtool")


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

    def exemplars(self, series: str) -> list[dict[str, str]]:
        """The labels of all exemplars of a series."""
        data = self._get("query_exemplars", query=series, start="0", end=str(time.time() + 60))
        return [exemplar["labels"] for row in data for exemplar in row["exemplars"]]

    def rules(self) -> list[dict[str, Any]]:
        """Its groups of rules."""
        return list(self._get("rules")["groups"])

    def alertmanagers(self) -> list[dict[str, str]]:
        """Those that alerts go to."""
        return list(self._get("alertmanagers")["activeAlertmanagers"])

    def _get(self, what: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, str], rules: str, alerts: str = "") -> Iterator[Prometheus]:
    """One that scrapes these addresses (by job) each second and evaluates rules as often; alerts go to an Alertmanager's address."""
    assert PROGRAM is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yaml").write_text(rules)
    scrapes = [{"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in targets.items()]
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    alerting = {"alertmanagers": [{"static_configs": [{"targets": [alerts] if alerts else []}]}]}
    settings = {"global": every, "rule_files": ["rules.yaml"], "scrape_configs": scrapes, "alerting": alerting}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    flags = ["--enable-feature=exemplar-storage"]
    flags += [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with _running([PROGRAM, *flags], folder / "prometheus.log", address):
        yield Prometheus(address)


@contextmanager
def alertmanager(folder: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """An Alertmanager with these settings: its address."""
    assert ALERTMANAGER is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(dict(settings)))
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    flags = [f"--config.file={folder / 'alertmanager.yaml'}", f"--storage.path={folder / 'data'}", f"--web.listen-address={address}"]
    with _running([ALERTMANAGER, *flags, "--cluster.listen-address="], folder / "alertmanager.log", address):
        yield address


@contextmanager
def _running(command: Sequence[str], log: Path, address: str) -> Iterator[None]:
    process = spawn(list(command), log=log)
    try:
        assert wait_until(lambda: _ready(address) or not alive(process), 30), last_line(log)
        assert alive(process), last_line(log)
        yield
    finally:
        stop(process, (signal.SIGTERM, 10), (signal.SIGKILL, 5))


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
