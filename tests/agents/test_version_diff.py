"""Two versions of an agent over the same records: every difference is found and counted, and the counts add up."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from factory_agents.reject import Reject
from factory_agents.runtime.agents import agent
from factory_agents.trial import lines_of
from factory_agents.version_diff import VersionDiff, compare

EVENTS, PLANTED = 100_000, 137


def lines(tmp_path: Path, count: int) -> Any:
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(json.dumps({"event_id": n, "amount": n % 7}) for n in range(count)))
    return lines_of(str(file))


def diff(old: Any, new: Any, batches: Any, **more: Any) -> VersionDiff:
    return compare(agent(version="1")(old).bind({}), agent(version="2")(new).bind({}), batches, **more)


def test_every_planted_difference_is_found_by_its_kind_and_field(tmp_path: Path) -> None:
    chosen = random.Random(7).sample(range(EVENTS), PLANTED)
    kinds = {n: ("amount", "both", "filtered", "rejected", "type")[i % 5] for i, n in enumerate(chosen)}

    def old(event: dict[str, Any]) -> dict[str, Any]:
        return event | {"segment": "a"}

    def new(event: dict[str, Any]) -> dict[str, Any] | None:
        kind = kinds.get(event["event_id"], "")
        if kind == "filtered":
            return None
        if kind == "rejected":
            raise Reject("no", rule="new")
        changed = {"": {}, "amount": {"amount": -1}, "both": {"amount": -1, "segment": "b"}, "type": {"amount": str(event["amount"])}}[kind]
        return event | {"segment": "a"} | changed

    found = diff(old, new, lines(tmp_path, EVENTS))
    by_kind = {kind: list(kinds.values()).count(kind) for kind in set(kinds.values())}
    changed = by_kind["amount"] + by_kind["both"] + by_kind["type"]
    assert found.different == PLANTED
    assert found.kinds == {
        "changed": changed,
        "forwarded → filtered": by_kind["filtered"],
        "forwarded → rejected": by_kind["rejected"],
    }
    assert found.fields == {"amount": changed, "segment": by_kind["both"]}
    assert found.same + found.different == found.records == EVENTS
    assert len(found.examples) == 20
    assert all("events.jsonl-0@" in example.where for example in found.examples)


def test_fields_that_may_differ_and_the_order_of_keys_are_no_difference(tmp_path: Path) -> None:
    def old(event: dict[str, Any]) -> dict[str, Any]:
        return {"at": 1, **event}

    def new(event: dict[str, Any]) -> dict[str, Any]:
        return {**event, "at": 2}

    assert diff(old, new, lines(tmp_path, 10), ignore=["at"]).same == 10
    assert diff(old, old, lines(tmp_path, 0)).records == 0


def test_other_numbers_of_outputs_and_other_rules_are_differences(tmp_path: Path) -> None:
    def old(event: dict[str, Any]) -> list[dict[str, Any]]:
        if event["event_id"] == 1:
            raise Reject("x", rule="one")
        return [event]

    def new(event: dict[str, Any]) -> list[dict[str, Any]]:
        if event["event_id"] == 1:
            raise Reject("x", rule="other")
        return [event, event]

    found = diff(old, new, lines(tmp_path, 2))
    assert found.fields == {"(number of outputs)": 1, "(rule)": 1}
