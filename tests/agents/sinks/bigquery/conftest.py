"""What the tests of BigQuery's sink share.

They run on an emulator (local-bigquery, which has DuckDB inside). Where it deviates from BigQuery and that changes an assertion, the test
says so beside it. What it cannot show at all stands in ``docs/bigquery.md``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bigquery import Bench, Emulator


@pytest.fixture
def bench(emulator: Emulator) -> Iterator[Bench]:
    bench = Bench(emulator)
    yield bench
    bench.close()
