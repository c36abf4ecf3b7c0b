"""Catalogs of a test's own, and publishers to a table in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.iceberg import Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A table in a catalog in SQLite, its files local."""
    properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    monkeypatch.setenv("ICEBERG_CATALOG", json.dumps(properties))
    return Bench(properties)
