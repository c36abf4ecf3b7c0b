"""The sandbox's registry on the older releases of Python 3.11."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from factory_agents.sandbox.registry import _unpack


def test_it_is_unpacked_by_a_python_without_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quarkus-run.jar").write_bytes(b"jar")
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "quarkus-run.jar", "quarkus-run.jar")
    extractall = tarfile.TarFile.extractall
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path: extractall(self, path))  # as in 3.11.2
    monkeypatch.delattr(tarfile, "data_filter")
    _unpack(tmp_path / "all.tar.gz", tmp_path / "into")
    assert (tmp_path / "into" / "quarkus-run.jar").read_bytes() == b"jar"
