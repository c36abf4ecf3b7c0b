"""What the tests of the suite for sinks share."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the suite skips for sinks without transactions: here it is known, and no test that did not run."""
    items[:] = [item for item in items if not (_of(item, "IDEMPOTENT", "cls") and _of(item, "by_ledger", "function"))]


def _of(item: pytest.Item, name: str, owner: str) -> bool:
    return bool(getattr(getattr(item, owner, None), name, False))
