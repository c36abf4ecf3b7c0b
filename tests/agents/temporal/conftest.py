"""Pipelines as workflows, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.runs import Runs
from tests.support.temporal import Pipelines


@pytest.fixture
def pipelines(
    temporal_address: str, bootstrap: str, prefix: str, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pipelines]:
    """Workers and workflows of this test's own, over topics of ``runs``."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP", bootstrap)
    own = Pipelines(temporal_address, bootstrap, prefix, tmp_path)
    yield own
    own.close()
