"""What the tests of the suite for sinks share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documented import documented


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the suite skips for sinks without transactions: here it is known, and no test that did not run."""
    items[:] = [item for item in items if not (_of(item, "IDEMPOTENT", "cls") and _of(item, "by_ledger", "function"))]


def _of(item: pytest.Item, name: str, owner: str) -> bool:
    return bool(getattr(getattr(item, owner, None), name, False))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The other sinks of the documents, as modules."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("duck_sink.py", "duck_sink_with_deletes.py", "http_sink.py"):
        (folder / name).write_text(documented("own-sink.md", name))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
