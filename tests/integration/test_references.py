"""References of a contract while attempts are killed and the data change between them: one run goes by one state of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factory_agents.protocol import AgentRun
from tests.support.runs import Runs

CONTRACT = {
    "name": "orders",
    "schema": {
        "type": "object",
        "required": ["event_id", "shop"],
        "properties": {"event_id": {"type": "integer"}, "shop": {"type": "string"}},
    },
    "references": {"shop": {"file": "shops.csv", "column": "code"}},
}
EVENTS = [{"event_id": n, "shop": "abc"[n % 3]} for n in range(9)]


def killed(runs: Runs, folder: Path) -> AgentRun:
    """A validation by the file's values, of which two chunks of three are committed."""
    (folder / "orders.json").write_text(json.dumps(CONTRACT))
    (folder / "shops.csv").write_text("code\na\nb\n")
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, [json.dumps(event).encode() for event in EVENTS])
    params = {"contract": str(folder / "orders.json")}
    told = runs.run(runs.window(source), out, "validate", params=params, chunk_records=3, max_rejected="100 %")
    attempt = runs.attempt(told, "chunk.before-ledger=kill@3")
    assert attempt.wait() < 0, attempt.log
    return told


def finished(runs: Runs, told: AgentRun) -> tuple[bool, dict[str, Any], list[int], list[int]]:
    attempt = runs.attempt(told)
    assert attempt.wait() == 0, attempt.log
    result = attempt.result
    valid, letters = (sorted(r.id for r in runs.manifest(m)) for m in (result.manifest, result.dead_letters))
    return result.resumed, result.report or {}, valid, letters


@pytest.mark.parametrize("text", ["code\na\nb\n", "code\nb\na\nb\nb\n"])
def test_an_attempt_that_was_killed_is_resumed_where_the_values_are_the_same(runs: Runs, tmp_path: Path, text: str) -> None:
    told = killed(runs, tmp_path)
    (tmp_path / "shops.csv").write_text(text)
    resumed, report, valid, letters = finished(runs, told)
    assert (resumed, report["rows"], report["rules"]) == (True, 9, {"reference:shop": 3})
    assert (valid, letters) == ([0, 1, 3, 4, 6, 7], [2, 5, 8])


def test_after_a_change_all_of_it_is_done_again_by_the_new_values(runs: Runs, tmp_path: Path) -> None:
    told = killed(runs, tmp_path)
    (tmp_path / "shops.csv").write_text("code\nc\n")
    resumed, report, valid, letters = finished(runs, told)
    assert (resumed, report["rows"], report["rules"]) == (False, 9, {"reference:shop": 6})
    assert (valid, letters) == ([2, 5, 8], [0, 1, 3, 4, 6, 7])
