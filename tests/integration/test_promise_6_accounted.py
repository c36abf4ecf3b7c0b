"""Promise 6: consumed = forwarded + filtered + rejected, in every result, whatever happened on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import pytest

from factory_agents.errors import AccountingError, AgentError, TooManyRejectedError, UnavailableError
from factory_agents.kafka.messages import Message
from factory_agents.protocol import Counts
from factory_agents.runtime.agents import Output
from tests.support.agents import judge
from tests.support.runs import Runs

EVENTS = 200
FORWARDED = [n for n in range(EVENTS) if n % 10 not in (3, 5, 7)]
EXPECTED = Counts(consumed=EVENTS, forwarded=140, filtered=20, rejected=40, produced=160)


def check(runs: Runs, result: Any) -> None:
    assert result.counts == EXPECTED
    produced = [r.id for r in runs.manifest(result.manifest)]
    assert len(produced) == EXPECTED.produced
    assert {int(str(i).split("-")[0]) for i in produced} == set(FORWARDED)
    assert len(set(produced)) == len(produced)
    assert sorted(r.id for r in runs.manifest(result.dead_letters)) == [n for n in range(EVENTS) if n % 10 in (5, 7)]


def test_every_consumed_event_was_forwarded_filtered_or_rejected(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), "tests.support.agents:judge")
    check(runs, runs.transform(run, judge))


@pytest.mark.parametrize("point", ["chunk.before-commit=kill@2", "chunk.after-commit=kill@3", "chunk.after-produce=kill@9"])
def test_the_counts_are_of_the_whole_window_after_a_resume(runs: Runs, point: str) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), "tests.support.agents:judge", chunk_records=50)
    runs.killed(run, point)
    check(runs, runs.transform(run, judge))


def test_an_aborted_chunk_is_counted_once(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out", max_message_bytes=20_000), "tests.support.agents:judge", chunk_records=50)

    def one_too_large(event: dict[str, Any]) -> Any:
        outcome = judge(event)
        return event | {"pad": _incompressible(40_000)} if event["event_id"] == 88 else outcome

    result = runs.transform(run, one_too_large)
    assert result.counts == msgspec.structs.replace(EXPECTED, forwarded=139, rejected=41, produced=159)
    assert len(runs.manifest(result.manifest)) == 159
    assert len(runs.manifest(result.dead_letters)) == 41


def _incompressible(size: int) -> str:
    import random

    return random.Random(1).randbytes(size // 2).hex()


def test_records_of_other_writers_in_the_range_are_skipped_and_not_consumed(runs: Runs) -> None:
    window = runs.filled(10, partitions=1)
    theirs = msgspec.structs.replace(window, writers=("stage/x/1",))
    result = runs.transform(runs.run(theirs, runs.topic("out")))
    assert (result.counts.consumed, result.counts.skipped) == (0, 10)


class _Broken:
    """A transform that gives fewer outputs than it was shown records."""

    name, version, stateful, at_once = "broken", "1", False, 1
    identity: ClassVar[dict[str, Any]] = {}

    def process(self, messages: Sequence[Message]) -> list[Output]:
        return [b"{}"] * (len(messages) - 1)

    def compare(self, earlier: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        return None

    def finish(self, counts: Counts) -> None:
        return None

    def close(self) -> None:
        return None


def test_a_transform_that_loses_records_fails_the_run_and_commits_nothing(runs: Runs) -> None:
    run = runs.run(runs.filled(10), runs.topic("out"))
    with pytest.raises(AgentError, match="gave 0 outputs"):
        runs.transform(run, _Broken)
    assert runs.everything(run.output_topic) == []


def test_counts_that_do_not_add_up_fail_the_run(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory_agents.runtime.outputs import Outputs

    put = Outputs.put

    def forgetful(self: Outputs, messages: Any, outputs: Any, counts: Counts, **more: bool) -> None:
        put(self, messages, outputs, counts, **more)
        counts.consumed += 1

    monkeypatch.setattr(Outputs, "put", forgetful)
    run = runs.run(runs.filled(10), runs.topic("out"))
    with pytest.raises(AccountingError):
        runs.transform(run)
    assert runs.everything(run.output_topic) == []


def test_too_many_rejected_fail_the_stage_and_can_be_looked_at(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), "tests.support.agents:judge", max_rejected="10 %")
    with pytest.raises(
        TooManyRejectedError, match=r"40 of 200 .*; most often \(20×\) (five|agent-error): .* \(first at .*-\d@\d+\); see them: "
    ) as error:
        runs.transform(run, judge)
    assert not error.value.retriable
    assert len(runs.everything(f"{run.output_topic}.dead")) == 40
    with pytest.raises(TooManyRejectedError):
        runs.transform(run, judge)
    assert len(runs.everything(f"{run.output_topic}.dead")) == 40
    # tolerated after all: nothing is done twice
    check(runs, runs.transform(msgspec.structs.replace(run, max_rejected="30 %"), judge))


def test_too_many_rejected_are_noticed_on_the_way(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), "tests.support.agents:judge", max_rejected="15", chunk_records=50)
    with pytest.raises(TooManyRejectedError, match=r"20 of 100"):
        runs.transform(run, judge)


def test_a_dry_run_counts_and_shows_and_writes_nothing(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), "tests.support.agents:judge", dry_run=True, chunk_records=50)
    shown: list[str] = []
    result = runs.transform(run, judge, show=lambda topic, _key, _value: shown.append(topic))
    assert result.counts == EXPECTED
    assert (result.manifest, result.dead_letters, result.dry_run) == (None, None, True)
    assert shown == [run.output_topic] * EXPECTED.produced
    assert [(r.rule, r.count, len(r.examples)) for r in result.reasons] == [("five", 20, 3), ("agent-error", 20, 3)]
    assert runs.everything(run.output_topic) == []
    assert runs.cluster.find(f"{run.output_topic}.dead") is None
    assert runs.cluster.find(f"{run.prefix}.ledger") is None


class _Summing:
    """A stateful transform: its report is right only if it saw every record once."""

    name, version, stateful, at_once = "summing", "1", True, 1
    identity: ClassVar[dict[str, Any]] = {}
    break_at = -1

    def __init__(self) -> None:
        self.seen: list[int] = []

    def process(self, messages: Sequence[Message]) -> list[Output]:
        for m in messages:
            event = msgspec.json.decode(m.value() or b"")
            if event["event_id"] == type(self).break_at:
                type(self).break_at = -1
                raise UnavailableError("away")
            self.seen.append(event["event_id"])
        return [m.value() for m in messages]

    def compare(self, earlier: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        return None

    def finish(self, counts: Counts) -> dict[str, Any]:
        return {"sum": sum(self.seen), "seen": len(self.seen), "consumed": counts.consumed}

    def close(self) -> None:
        return None


def test_a_stateful_transform_is_shown_the_committed_records_again_on_a_resume(runs: Runs) -> None:
    run = runs.run(runs.filled(100, partitions=2), runs.topic("out"), chunk_records=10)
    _Summing.break_at = 55
    with pytest.raises(UnavailableError):
        runs.transform(run, _Summing)
    result = runs.transform(run, _Summing)
    assert result.resumed
    assert result.report == {"sum": sum(range(100)), "seen": 100, "consumed": 100}
    assert len(runs.manifest(result.manifest)) == 100


def test_a_stateful_transform_is_built_again_after_an_abort(runs: Runs) -> None:
    class Large(_Summing):
        def process(self, messages: Sequence[Message]) -> list[Output]:
            outputs = super().process(messages)
            return [
                msgspec.json.encode({"event_id": 60, "pad": _incompressible(40_000)}) if b'"event_id": 60,' in (m.value() or b"") else o
                for m, o in zip(messages, outputs, strict=True)
            ]

    run = runs.run(runs.filled(100, partitions=2), runs.topic("out", max_message_bytes=20_000), chunk_records=10)
    result = runs.transform(run, Large)
    assert result.report == {"sum": sum(range(100)), "seen": 100, "consumed": 100}
    assert (result.counts.forwarded, result.counts.rejected) == (99, 1)


def test_an_error_in_the_report_fails_the_run_with_one_line(runs: Runs) -> None:
    class Failing(_Summing):
        def finish(self, counts: Counts) -> dict[str, Any]:
            raise ZeroDivisionError("no rows")

    with pytest.raises(AgentError, match="report of the window raised ZeroDivisionError: no rows"):
        runs.transform(runs.run(runs.filled(10), runs.topic("out")), Failing)
