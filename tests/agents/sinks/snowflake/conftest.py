"""What the tests of Snowflake's sink share.

They run on an emulator (fakesnow, which has DuckDB inside). Where it deviates from Snowflake and that changes an assertion, the test says
so beside it. What it cannot show at all is in ``docs/snowflake.md``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.snowflake import Bench, SnowflakeSchema

ALWAYS = (
    "test_replaced_shrunk_and_emptied",
    "test_a_table_that_was_emptied_or_dropped_is_filled_again[drop]",
    "test_what_is_no_row_is_rejected_and_the_rest_lands",
    "test_hostile_texts_come_back_as_they_were",
    "test_three_shards_planned_again_as_two_replace_all_when_the_last_one_is_there",
    "test_a_zombie_is_fenced_before_and_after_its_successor_lands",
    "test_of_many_claims_at_once_one_lands",
    "test_a_record_without_a_value_removes_its_keys_row",
    "test_within_a_window_the_records_order_counts",
    "test_shards_planned_again_take_their_deletes_along",
    "test_any_history_with_deletes_leaves_what_the_rules_say",
)
"""Of the suite for all sinks, which takes minutes on the emulator: a dead publisher's transaction is waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_conformance.py" and item.path.parent.name == "snowflake" and item.name not in ALWAYS:
            item.add_marker(pytest.mark.soak)


@pytest.fixture
def bench(snowflake: SnowflakeSchema) -> Iterator[Bench]:
    bench = Bench(snowflake)
    yield bench
    bench.close()
