"""``factory rollout``, ``factory live status`` and ``factory agent diff`` as a person runs them."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support.commands import PROGRAM, ROOT, Command, Live
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for


def member(factory: Command, runs: Runs, version: str, agent: str, source: str, out: str) -> Live:
    return factory.start(
        "agent", "run", f"tests.support.agents:{agent}", "--in-topic", source, "--out-topic", out,
        "--group", f"{runs.prefix}.group", "--live-version", version, program=PROGRAM,
    )  # fmt: skip


@pytest.mark.slow
def test_a_version_is_brought_in_taken_back_and_its_records_are_repaired(factory: Command, runs: Runs) -> None:
    source, out, group = runs.topic("in"), runs.topic("out"), f"{runs.prefix}.group"
    factory.environment["PYTHONPATH"] = ":".join([*filter(None, [factory.environment.get("PYTHONPATH", "")]), str(ROOT)])
    runs.produce(source, events(40))
    assert "no version of an agent has run in it yet" in factory("rollout", "status", group).error
    member(factory, runs, "v1", "mark", source, out)
    wait_for(lambda: len(runs.everything(out)) == 40, "the first events", 60)
    assert f"no version of an agent has run in it yet; did you mean {group!r}?" in factory("rollout", "status", f"{group[:-1]}s").error
    assert "version 'v2' has no members; start it first" in factory("rollout", "start", group, "v2").error
    member(factory, runs, "v2", "mark_again", source, out)
    wait_for(lambda: (found := runs.cluster.group(f"{group}~v2")) is not None and found.members, "the new version's member", 60)
    killed = factory("rollout", "start", group, "v2", FACTORY_FAILPOINTS="order.before-commit=kill")
    assert killed.code == -signal.SIGKILL  # what it left open holds nobody up
    assert factory.ok("rollout", "start", group, "v2", "--steps", "1,100%", "--hold", "1 h").data["held"] == 1
    shifted = factory.ok("rollout", "shift", group, "100%").data
    assert (shifted["verdict"], shifted["held"]) == ("rolled out", 4)
    runs.produce(source, events(40, 40))
    wait_for(lambda: len(runs.everything(out)) == 80, "the new version's events")
    back = factory.ok("rollout", "rollback", group, "--reason", "wrong segments").data
    assert (back["verdict"], back["reason"], back["settled"]) == ("rolled back", "wrong segments", True)
    status = factory.ok("live", "status", group).data
    assert status["lag"] == 0
    assert {m["version"] for m in status["members"]} == {"v1", "v2"}
    window = factory.ok("rollout", "repair", group).data
    assert sum(end - start for _, start, end, *_ in window["ranges"]) == 40
    repaired = factory.ok("rollout", "repair", group, "--agent", "tests.support.agents:mark", "--out-topic", out).data
    assert repaired["counts"]["produced"] == 40
    assert sorted(r.id for r in runs.everything(out) if r.event["seen"] is True) == list(range(80))
    again = factory.ok("rollout", "repair", group, "--agent", "tests.support.agents:mark", "--out-topic", out).data
    assert again["reused"]
    diff = factory("agent", "diff", "--old", "tests.support.agents:mark", "--new", "tests.support.agents:mark_again", "--in-topic", source)
    assert diff.code == 2
    assert json.loads(diff.out) | {"examples": []} == {
        "records": 80, "same": 0, "kinds": {"changed": 80}, "fields": {"seen": 80}, "examples": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("rollout", "start", "g", "a b"), "expected up to 63 letters"),
        (("rollout", "start", "g", "v2", "--hold", "soon"), "expected a time such as '5 min'"),
        (("agent", "diff", "--old", "a:b", "--new", "a:c"), "no topic to read"),
        (("agent", "run", "publish", "--in-topic", "t", "--live-version", "v1"), "--live-version is for agents that write to a topic"),
        (("agent", "run", "publish", "--in-topic", "t", "--shadow", "v1"), "--shadow is for agents that write to a topic"),
        (("agent", "run", "enrich", "--in-topic", "t", "--shadow", "a b"), "expected up to 63 letters"),
        (("agent", "run", "enrich", "--in-topic", "t", "--shadow", "v2", "--live-version", "v2"), "leave one out"),
        (("agent", "run", "enrich", "--in-topic", "t"), "agent 'enrich': no topic to write to; give --out-topic"),
    ],
)
def test_what_is_mistyped_is_told_in_one_line(offline: Command, arguments: tuple[str, ...], error: str) -> None:
    assert error in offline(*arguments).error
