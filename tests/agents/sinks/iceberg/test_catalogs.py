"""Catalogs and storage that aren't SQLite and local files: the same promises on PostgreSQL, and on Glue and S3."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from factory_agents.errors import FencedError
from factory_agents.protocol import Shard
from factory_agents.testing.records import W2, at, event
from tests.support.iceberg import Bench


@pytest.fixture(params=["in_postgres", pytest.param("in_aws", marks=pytest.mark.slow)])
def bench(request: pytest.FixtureRequest) -> Bench:
    found: Bench = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_window_lands_is_replaced_and_fences(bench: Bench, mode: str) -> None:
    bench.params = {"mode": mode, "partition_by": ["bucket(2, id)"]}
    assert bench.publish([event("a"), event("b")]).written == 2
    zombie = bench.sink()
    zombie.claim(bench.claim())
    zombie.write(at([event("zombie")]))
    outcome = bench.publish([event("b", "new"), event("c")])
    assert (outcome.written, outcome.removed) == (2, 1)
    with pytest.raises(FencedError):
        zombie.commit(rejected=0)
    zombie.close()
    assert bench.rows("id", "value") == [("b", "new"), ("c", "x")]
    assert bench.publish([], input_generation=9, fingerprint="same").removed == 2
    assert bench.publish([event("d")], input_generation=9, fingerprint="same").reused


def test_shards_and_windows_at_once_all_land(in_postgres: Bench) -> None:
    """Not on moto: its Glue takes an update of a table whatever version it names, and so loses one of two at once."""
    bench = in_postgres
    bench.publish([], W2)
    claims = [bench.claim(shard=Shard(i, 3), input_generation=1) for i in range(3)]

    def publish(i: int) -> Any:
        sink = bench.sink()
        try:
            sink.claim(claims[i])
            sink.write(at([event(f"k{i}")], i))
            return sink.commit(rejected=0).written
        finally:
            sink.close()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(publish, range(3))) == [1, 1, 1]
    assert bench.rows("id") == [("k0",), ("k1",), ("k2",)]
