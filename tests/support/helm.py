"""Helm on a test's cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.cluster import KUBECONFIG

HELM = os.environ.get("FACTORY_HELM") or shutil.which("helm")


class Release:
    """A chart as it is installed under a name in a namespace."""

    def __init__(self, name: str, chart: Path, namespace: str, folder: Path) -> None:
        self.name, self.namespace = name, namespace
        self._chart, self._values = chart, folder / f"{name}.yaml"

    def upgrade(self, values: dict[str, Any], *more: str) -> None:
        """Install it, or upgrade it, and wait until all of it is ready; ``more`` options of Helm."""
        self._values.write_text(yaml.safe_dump(values))
        self.helm("upgrade", "--install", self.name, str(self._chart), "--values", str(self._values), "--wait", "--timeout", "4m", *more)

    def render(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        """What it would consist of."""
        self._values.write_text(yaml.safe_dump(values))
        text = self.helm("template", self.name, str(self._chart), "--values", str(self._values))
        return [document for document in yaml.safe_load_all(text) if document]

    def rollback(self) -> None:
        """Go back to the revision before, and wait until all of it is ready."""
        self.helm("rollback", self.name, "--wait", "--timeout", "4m")

    def test(self) -> str:
        """Run the chart's own tests; their logs."""
        return self.helm("test", self.name, "--logs", "--timeout", "2m")

    def manifest(self) -> str:
        """What it consists of."""
        return self.helm("get", "manifest", self.name)

    def uninstall(self) -> None:
        """Remove it, if it is there."""
        self.helm("uninstall", self.name, "--ignore-not-found", "--wait", "--timeout", "2m")

    def helm(self, *arguments: str) -> str:
        """What Helm says; fails where it does."""
        environment = {**os.environ, "KUBECONFIG": KUBECONFIG}
        command = [str(HELM), *arguments, "--namespace", self.namespace]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout
