"""A source of each test's own, in a database of its own: slots belong to a database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.databases import own_database
from tests.support.replication import Source, source
from tests.support.runs import Runs


@pytest.fixture
def replicated(runs: Runs, sandbox_info: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """A table ``(id, a, b)`` whose log is read."""
    with own_database(sandbox_info.database_url, "replicated") as url:  # type: ignore[attr-defined]
        monkeypatch.setenv("DATABASE_URL", url)
        with source(runs, url) as own:
            own.create()
            yield own
