"""What the tests of BigQuery's sink share.

They run on an emulator (local-bigquery, which has DuckDB inside). Where it deviates from BigQuery and that changes an assertion, the test
says so beside it. What it cannot show at all is in ``docs/bigquery.md``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bigquery import Bench, Emulator

ALWAYS = (
    "test_replaced_shrunk_and_emptied",
    "test_what_is_no_row_is_rejected_and_the_rest_lands",
    "test_three_shards_planned_again_as_two_replace_all_when_the_last_one_is_there",
    "test_a_zombie_is_fenced_before_and_after_its_successor_lands",
    "test_within_a_window_the_records_order_counts",
)
"""Of the suite for all sinks, which takes minutes on the emulator; a publisher that dies at any step is in tests/integration."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_conformance.py" and item.path.parent.name == "bigquery" and item.name not in ALWAYS:
            item.add_marker(pytest.mark.soak)


@pytest.fixture
def bench(emulator: Emulator) -> Iterator[Bench]:
    bench = Bench(emulator)
    yield bench
    bench.close()
