"""Publishing to BigQuery on its emulator: every promise of the sink, and what it does when BigQuery doesn't play along.

The emulator (local-bigquery) deviates from BigQuery; where that changes an assertion, it says so. What it can't show at all stands in
``docs/bigquery.md``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from factory_agents.errors import SinkError
from tests.support.bigquery import W2, Bench, Emulator, at, event


@pytest.fixture
def bench(emulator: Emulator) -> Iterator[Bench]:
    bench = Bench(emulator)
    yield bench
    bench.close()


class TestOneWindow:
    def test_rows_are_there_once_they_are_committed_and_not_before(self, bench: Bench) -> None:
        sink = bench.sink()
        assert sink.claim(bench.claim()) is None
        assert sink.write(at([event("a"), event("b")])) == {}
        assert bench.rows() == {}
        outcome = sink.commit(rejected=3)
        assert (outcome.rows, outcome.written, outcome.rejected) == (2, 2, 3)
        assert outcome.table == f"local.{bench.table}"
        assert bench.rows() == {"a": "x", "b": "x"}

    def test_the_same_again_is_answered_from_the_ledger(self, bench: Bench) -> None:
        first = bench.publish(at([event("a")]), fingerprint="same")
        again = bench.publish(at([event("b")]), fingerprint="same")
        assert again.reused
        assert again.written == first.written
        assert bench.rows() == {"a": "x"}

    def test_a_new_generation_removes_what_the_window_no_longer_produces(self, bench: Bench) -> None:
        bench.publish(at([event("a"), event("b"), event("c")]))
        bench.publish(at([event("z")]), W2)
        outcome = bench.publish(at([event("b", "new"), event("d")]), input_generation=2)
        assert (outcome.written, outcome.removed) == (2, 2)
        assert bench.rows() == {"b": "new", "d": "x", "z": "x"}

    def test_an_older_manifest_is_refused(self, bench: Bench) -> None:
        bench.publish(at([event("a")]), input_generation=2)
        with pytest.raises(SinkError, match="it holds generation 2 of its input, this manifest is of the older generation 1"):
            bench.publish(at([event("b")]), input_generation=1)
        assert bench.rows() == {"a": "x"}

    def test_an_empty_window_is_landed_and_empties_what_it_had(self, bench: Bench) -> None:
        assert bench.publish([]).rows == 0
        bench.publish(at([event("a")]))
        assert bench.publish([]).removed == 1
        assert bench.rows() == {}
