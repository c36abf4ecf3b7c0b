"""Ten thousand rejected events go through a mended contract into a table, however often the replay is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from factory_agents.protocol import AgentResult, AgentRun
from factory_agents.run import execute
from factory_agents.runtime.dead_letters import LetterTopic
from factory_agents.runtime.letter_states import letter_stats, purge_letters
from factory_agents.runtime.session import RunContext
from tests.support.commands import Command
from tests.support.runs import Runs

EVENTS = 10_000
STILL_BAD = 7  # of a hundred


def contract(least: int) -> dict[str, Any]:
    return {
        "name": "mended",
        "schema": {
            "type": "object",
            "required": ["event_id", "amount"],
            "properties": {"event_id": {"type": "integer"}, "amount": {"type": "integer", "minimum": least}},
        },
        "columns": {"event_id": "bigint", "amount": "bigint"},
    }


def run(runs: Runs, told: AgentRun) -> AgentResult:
    return execute(RunContext(runs.config), told)


def test_letters_through_a_mended_contract_killed_five_times_make_the_table_exact(
    runs: Runs, factory: Command, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    source, valid, mended = (runs.topic(name, partitions=2) for name in ("in", "valid", "mended"))
    amounts = {n: 0 if n % 100 < STILL_BAD else n % 50 + 1 for n in range(EVENTS)}
    runs.produce(source, [json.dumps({"event_id": n, "amount": amount}).encode() for n, amount in amounts.items()])
    told = runs.run(runs.window(source), valid, "validate", params={"contract": contract(1000)}, max_rejected="100 %")
    assert run(runs, told).counts.rejected == EVENTS
    dead = f"{valid}.dead"
    file = tmp_path / "mended.yaml"
    file.write_text(json.dumps(contract(1)))
    replay = ("dead-letters", "replay", dead, "--to", mended, "--through", "validate", "-p", f"contract={file}", "--json")
    for n, point in enumerate(["before", "after", "before", "after", "before"]):
        assert factory(*replay, FACTORY_FAILPOINTS=f"chunk.{point}-commit=kill@{n % 3 + 1}").code == -9
    done = factory.ok(*replay).data
    good = {n: amount for n, amount in amounts.items() if amount}
    assert (done["replayed"] + done["before"], done["returned"]) == (len(good), EVENTS - len(good))
    assert 0 < done["before"] < len(good)
    params = {"contract": contract(1), "table": f"t_{runs.prefix}"}
    published = run(runs, runs.run(runs.window(mended), "", "publish", params=params, stage="publish"))
    assert (published.counts.written, published.counts.duplicates) == (len(good), 0)
    with psycopg.connect(database_url) as connection:
        assert dict(connection.execute(f'SELECT event_id, amount FROM "t_{runs.prefix}"').fetchall()) == good
    letters = LetterTopic(runs.config, dead, prefix=runs.prefix)
    stats = letter_stats(letters)
    assert (stats.replayed, stats.waiting) == (len(good), EVENTS - len(good))
    assert purge_letters(letters, waiting=True).deleted == EVENTS
