"""Windows of changes published: the copy is the source, row for row, after each of them."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from factory_agents.protocol import AgentRef, AgentResult, AgentRun
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from factory_agents.stage_plan import stage_input
from tests.support.replication import CONTRACT, Source
from tests.support.runs import ROOT


def publish(source: Source, result: AgentResult, **more: Any) -> AgentResult:
    """Land a window in the table ``copy`` of the same database."""
    given = stage_input(msgspec.to_builtins(result), None)
    run = AgentRun(
        source.runs.prefix,
        "publish",
        AgentRef("publish"),
        window=given.window,
        shard=given.shard,
        plan=given.plan,
        params={"table": "copy", "contract": CONTRACT},
        prefix=source.runs.prefix,
        max_rejected="0",
    )
    return execute(RunContext(source.runs.config), msgspec.structs.replace(run, **more))


def disturb(source: Source, chance: random.Random) -> None:
    """Whatever an application does to a table."""
    for _ in range(8):
        low = chance.randrange(1, 180)
        with source.connection.transaction(force_rollback=chance.random() < 0.1):
            source.run(f"INSERT INTO {{}} SELECT g, g, 'v{low}' FROM generate_series({low}, {low + 30}) g ON CONFLICT DO NOTHING")
            source.run(f"UPDATE {{}} SET a = coalesce(a, 0) + 1, b = nullif(b, 'v3') WHERE id % {chance.randrange(2, 9)} = 0")
            source.run(f"DELETE FROM {{}} WHERE id BETWEEN {low} AND {low + chance.randrange(20)}")
            source.run(f"UPDATE {{}} SET id = id + {chance.randrange(1000, 9000)} WHERE id = {low + 25}")


@pytest.mark.parametrize("seed", range(3))
def test_the_copy_is_the_source_after_each_window(replicated: Source, seed: int) -> None:
    chance = random.Random(seed)
    replicated.run("INSERT INTO {} SELECT g, g, 'before' FROM generate_series(1, 100) g")
    for _ in range(3):
        result = replicated.replicate(replicated.window(chunk_records=50))
        landed = publish(replicated, result)
        assert landed.counts.rejected == 0
        assert replicated.checksum("copy") == replicated.checksum()
        disturb(replicated, chance)


def test_a_window_that_is_published_again_changes_nothing(replicated: Source) -> None:
    chance = random.Random(7)
    results = []
    for _ in range(3):
        disturb(replicated, chance)
        results.append(replicated.replicate())
        publish(replicated, results[-1])
    wanted = replicated.checksum()
    for result in (results[2], results[0], results[1]):
        publish(replicated, result, rerun="redo", run_id="again")
        assert replicated.checksum("copy") == wanted


def test_the_shipped_contract_takes_the_shipped_table(replicated: Source) -> None:
    replicated.run("DROP TABLE {}")
    replicated.create("id bigint PRIMARY KEY, customer text, total numeric(10, 2), at timestamptz")
    replicated.run("INSERT INTO {} VALUES (1, 'ada', 9.90, now()), (2, 'bob', NULL, '2026-11-01 04:00+02')")
    params = {"table": "copy", "contract": str(ROOT / "include/contracts/orders.yaml")}
    assert publish(replicated, replicated.replicate(), params=params).counts.rejected == 0
    replicated.run("UPDATE {} SET total = 12345678.91 WHERE id = 2")
    assert publish(replicated, replicated.replicate(), params=params).counts.rejected == 0
    copied = replicated.connection.execute("SELECT id, customer, total, at FROM copy ORDER BY id").fetchall()
    assert copied == replicated.run("SELECT * FROM {} ORDER BY id")
