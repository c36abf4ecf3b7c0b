"""Grafana's own grammar of LogQL, by npm where that is there: Loki itself is not."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from factory_agents.sandbox import private
from tests.support.shared_sandbox import HOME

_PACKAGES = ("@grafana/lezer-logql@0.3.0", "@lezer/lr@1.4.2", "@lezer/common@1.2.3")
_FOLDER = HOME.parent / "cache" / "lezer-logql"
_ERRORS = """
const {parser} = require("@grafana/lezer-logql");
const errors = JSON.parse(require("fs").readFileSync(0)).map(query => {
  let found = 0;
  parser.parse(query).iterate({enter: node => { found += node.type.isError ? 1 : 0; }});
  return found;
});
console.log(JSON.stringify(errors));
"""


def errors_in(queries: list[str]) -> list[int]:
    """How many errors the grammar finds in each query; skips the test where it cannot be had."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("no node and npm: LogQL is not checked by its grammar")
    private.folder(_FOLDER.parent)
    with (_FOLDER.parent / "lezer-logql.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install(_FOLDER)
    done = subprocess.run(["node", "-e", _ERRORS], cwd=_FOLDER, input=json.dumps(queries), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def _install(folder: Path) -> None:
    if (folder / "installed").exists():
        return
    folder.mkdir(exist_ok=True)
    command = ["npm", "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), *_PACKAGES]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("npm does not answer: LogQL is not checked by its grammar")
    if done.returncode:
        pytest.skip(f"npm cannot install LogQL's grammar: {done.stderr.strip().splitlines()[-1:]}")
    (folder / "installed").touch()
