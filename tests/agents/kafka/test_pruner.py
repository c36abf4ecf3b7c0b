"""A ledger is pruned beside planners and agents, and by prunes that die on the way: nothing that was forgotten is done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.kafka import pruner
from factory_agents.kafka.cuts import plan_source, plan_window
from factory_agents.kafka.ledger import CutRecord, Ledger, LedgerRecord, LedgerView, MarkRecord, PlanRecord, StageRecord
from factory_agents.kafka.pruner import Pruned, keep_seconds, pipelines_of, prune_pipeline, retention_of
from factory_agents.kafka.records import AlertRecord, encode_record
from factory_agents.kafka.windows import read_windows
from factory_agents.protocol import AgentRun, Interval, Window, Work
from tests.support.commands import ROOT, Command
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

    from tests.conftest import TopicFactory

DAY0 = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=2)


def hour(n: int) -> Interval:
    return Interval(DAY0 + timedelta(hours=n), DAY0 + timedelta(hours=n + 1))


class Hourly:
    """A topic with two events an hour, and a pipeline over it of this test's own."""

    def __init__(self, runs: Runs, hours: int = 6) -> None:
        self.runs = runs
        self.topic = runs.topic("in", partitions=2)
        self.out = runs.topic("out", partitions=2)
        for n in range(hours):
            at = int(hour(n).start.timestamp() * 1000) + 1000
            runs.produce(self.topic, events(2, 2 * n), timestamp=at)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.runs.config, self.runs.cluster, prefix=self.runs.prefix, pipeline=self.runs.prefix)

    def write(self, record: LedgerRecord) -> None:
        producer = self.runs.config.plain_producer()
        producer.produce(self.ledger.topic, encode_record(record), record.key().encode(), partition=self.ledger.partition)
        assert producer.flush(60) == 0

    def view(self) -> LedgerView:
        return self.ledger.read(deadline=time.monotonic() + 30)

    def plan(self, n: int, **more: object) -> Window:
        return plan_window(
            self.runs.config,
            pipeline=self.runs.prefix,
            topic=self.topic,
            interval=hour(n),
            prefix=self.runs.prefix,
            **more,  # type: ignore[arg-type]
        )

    def run(self, window: Window, **more: Any) -> AgentRun:
        return self.runs.run(window, self.out, origin=self.topic, **more)

    def done(self, hours: int) -> list[Window]:
        windows = [self.plan(n) for n in range(hours)]
        for window in windows:
            self.runs.transform(self.run(window))
        return windows

    def prune(self, n: int, **more: Any) -> Pruned:
        """Windows that end by the beginning of an hour."""
        return prune_pipeline(self.runs.config, self.runs.prefix, prefix=self.runs.prefix, before=hour(n).start, **more)

    def left(self) -> tuple[set[str], set[str], int]:
        view = self.view()
        return {p.window for p in view.of(PlanRecord)}, {s.window for s in view.of(StageRecord)}, len(view.of(CutRecord))


@pytest.fixture
def runs(bootstrap: str, prefix: str, topic: TopicFactory, admin: AdminClient) -> Iterator[Runs]:
    own = Runs(bootstrap, prefix, topic, admin)
    yield own
    own.close()


@pytest.fixture
def hourly(runs: Runs) -> Hourly:
    return Hourly(runs)


class TestAPrune:
    def test_forgets_what_was_planned_and_done_and_leaves_what_the_next_window_needs(self, hourly: Hourly) -> None:
        hourly.done(4)
        now = int(time.time() * 1000)
        for at in (now - 31 * 24 * 3600 * 1000, now):  # a window that nobody repaired, of which nothing else was ever told
            hourly.write(AlertRecord(pipeline=hourly.runs.prefix, window=hour(0).key, id=str(at), what="late", at=at))
        found = hourly.prune(3)
        assert (found.windows, found.first, found.last) == (3, hour(0).key, hour(2).key)
        assert [alert.at for alert in hourly.view().of(AlertRecord)] == [now]
        assert hourly.left() == ({hour(2).key, hour(3).key}, {hour(3).key}, 3)
        assert [k.window for k in found.kept] == [hour(3).key]
        assert [(r.partition, r.end - r.start) for r in hourly.plan(4).ranges] == [(0, 1), (1, 1)]

    def test_is_refused_to_planners_and_to_agents_in_one_line(self, hourly: Hourly) -> None:
        windows = hourly.done(4)
        hourly.prune(3)
        for again in (lambda: hourly.plan(1), lambda: hourly.runs.transform(hourly.run(windows[1]))):
            with pytest.raises(WindowError, match=rf"window {hour(1).key} was pruned from the ledger") as caught:
                again()
            assert "\n" not in str(caught.value)
            assert not caught.value.retriable
        assert hourly.runs.transform(hourly.run(windows[3])).reused

    def test_that_is_dry_says_the_same_and_changes_nothing(self, hourly: Hourly) -> None:
        hourly.done(3)
        before = hourly.left()
        dry = hourly.prune(3, dry_run=True)
        assert hourly.left() == before
        found = hourly.prune(3)
        assert (dry.windows, dry.records, dry.kept) == (found.windows, found.records, found.kept)
        assert found.records > 0

    def test_done_again_finds_nothing(self, hourly: Hourly) -> None:
        hourly.done(3)
        hourly.prune(3)
        left = hourly.left()
        again = hourly.prune(3)
        assert (again.windows, again.records) == (0, 0)
        assert hourly.left() == left

    def test_in_rounds_forgets_the_same(self, hourly: Hourly, monkeypatch: pytest.MonkeyPatch) -> None:
        """The ledger may be larger than memory: the oldest windows go first."""
        monkeypatch.setattr(pruner, "_ROOM", 3)
        hourly.done(5)
        dry = hourly.prune(4, dry_run=True)
        assert (dry.windows, dry.more, dry.notes) == (1, True, ["newer windows, which were not looked at yet"])
        found = hourly.prune(4)
        assert (found.windows, found.first, found.last, found.more) == (4, hour(0).key, hour(3).key, False)
        assert hourly.left() == ({hour(3).key, hour(4).key}, {hour(4).key}, 3)
        assert [k.window for k in found.kept] == [hour(4).key]

    def test_that_has_no_time_for_another_round_says_so_and_is_continued(self, hourly: Hourly, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pruner, "_ROOM", 3)
        hourly.done(3)
        for left in (True, True, False):
            found = hourly.prune(3, go_on=0)
            assert (found.windows, found.more) == (1, left)
        assert hourly.left()[1] == set()

    def test_stops_at_what_isnt_finished_unless_it_is_told_not_to(self, hourly: Hourly) -> None:
        hourly.done(2)
        hourly.plan(2)
        found = hourly.prune(5)
        assert (found.windows, [(k.window, k.why) for k in found.kept]) == (
            2,
            [(hour(2).key, "it isn't finished; --before with --unfinished prunes it too")],
        )
        assert hourly.prune(5, unfinished=True).unfinished == (hour(2).key,)

    def test_is_no_more_shown(self, hourly: Hourly) -> None:
        hourly.done(4)
        hourly.prune(3)
        assert [w.window for w in read_windows(hourly.runs.config, prefix=hourly.runs.prefix)] == [hour(3).key]

    def test_of_a_ledger_that_isnt_there_is_nothing(self, runs: Runs) -> None:
        assert prune_pipeline(runs.config, "p", prefix=runs.prefix).windows == 0
        assert pipelines_of(runs.config, prefix=runs.prefix) == []

    def test_of_an_ingest_refuses_what_was_read(self, runs: Runs) -> None:
        work = Work(runs.prefix, "ingest", hour(1).key)
        Ledger(runs.config, runs.cluster, prefix=runs.prefix, pipeline=runs.prefix).ensure()
        plan_source(runs.config, work, hour(1), prefix=runs.prefix)
        run = runs.run(None, runs.topic("raw"), "ingest", stage="ingest", interval=hour(1), params={"source": "x.jsonl", "time_field": "t"})
        hourly = Hourly(runs)
        result = hourly.runs.transform(runs.run(runs.window(hourly.topic, name=hour(1).key), hourly.out, stage="ingest"))
        assert result.key == hour(1).key
        prune_pipeline(runs.config, runs.prefix, prefix=runs.prefix, before=hour(3).start)
        with pytest.raises(WindowError, match="was pruned"):
            plan_source(runs.config, work, hour(1), prefix=runs.prefix)
        assert runs.attempt(run).wait() != 0
        plan_source(runs.config, Work(runs.prefix, "ingest", hour(0).key), hour(0), prefix=runs.prefix)


class TestAKilledPrune:
    @pytest.mark.parametrize("point", ["prune.before-marks", "prune.after-marks", "prune.before-deletions", "prune.after-deletions"])
    def test_is_completed_by_the_next_and_harms_no_planner(self, hourly: Hourly, point: str) -> None:
        windows = hourly.done(4)
        code = (
            "import sys; from datetime import datetime; from factory_agents.kafka import pruner; from factory_agents.kafka.config import "
            "KafkaConfig; pruner._CHUNK, pruner._ROOM = 2, 4; pruner.prune_pipeline(KafkaConfig(sys.argv[1]), sys.argv[2], "
            "prefix=sys.argv[2], before=datetime.fromisoformat(sys.argv[3]))"
        )
        arguments = [hourly.runs.bootstrap, hourly.runs.prefix, hour(3).start.isoformat()]
        environment = os.environ | {"FACTORY_FAILPOINTS": f"{point}=kill"}
        killed = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, cwd=ROOT, check=False)
        assert killed.returncode == -signal.SIGKILL
        marked = point != "prune.before-marks"
        assert [(r.partition, r.end - r.start) for r in hourly.plan(4).ranges] == [(0, 1), (1, 1)]
        if marked:
            with pytest.raises(WindowError, match="was pruned"):
                hourly.runs.transform(hourly.run(windows[1]))
        else:
            assert hourly.runs.transform(hourly.run(windows[1])).reused
        hourly.prune(3)
        assert hourly.left() == ({hour(2).key, hour(3).key, hour(4).key}, {hour(3).key}, 4)


class TestBesideOthers:
    def test_an_attempt_that_was_under_way_goes_on_and_its_retry_is_refused(self, hourly: Hourly) -> None:
        windows = hourly.done(3)
        run = hourly.run(windows[0], rerun="redo", run_id="again")
        attempt = hourly.runs.attempt(run, "chunk.before-ledger=stop")
        attempt.wait_stopped()
        assert hourly.prune(2).windows == 2
        attempt.signal(signal.SIGCONT)
        assert attempt.wait() == 0, attempt.log
        assert len(hourly.runs.manifest(attempt.result.manifest)) == 2
        with pytest.raises(WindowError, match="was pruned"):
            hourly.runs.transform(run)
        hourly.prune(2)
        assert hour(0).key not in hourly.left()[1], "what it wrote below the mark is taken by the next prune"

    def test_an_attempt_that_begins_while_marks_are_written_waits_for_them(self, hourly: Hourly) -> None:
        windows = hourly.done(3)
        arguments = [hourly.runs.bootstrap, hourly.runs.prefix, hour(2).start.isoformat()]
        code = (
            "import sys; from datetime import datetime; from factory_agents.kafka.pruner import prune_pipeline; from "
            "factory_agents.kafka.config import KafkaConfig; prune_pipeline(KafkaConfig(sys.argv[1]), sys.argv[2], prefix=sys.argv[2], "
            "before=datetime.fromisoformat(sys.argv[3]))"
        )
        environment = os.environ | {"FACTORY_FAILPOINTS": "prune.before-marks=stop"}
        pruner = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, cwd=ROOT)
        try:
            wait_for(lambda: Path(f"/proc/{pruner.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "the prune to stop")
            with ThreadPoolExecutor() as pool:
                asked = pool.submit(lambda: hourly.runs.transform(hourly.run(windows[0])))
                wait_for(lambda: asked.running(), "the attempt to begin")
                pruner.send_signal(signal.SIGCONT)
                with pytest.raises(WindowError, match="was pruned"):
                    asked.result(60)
        finally:
            if pruner.poll() is None:
                pruner.kill()
            pruner.wait()

    def test_planners_and_prunes_at_once_tile(self, hourly: Hourly) -> None:
        hourly.done(1)

        def plan(n: int) -> Window | WindowError:
            try:
                return hourly.plan(n)
            except WindowError as error:
                return error

        with ThreadPoolExecutor(6) as pool:
            planned = [pool.submit(plan, n) for n in (1, 2, 3, 4)]
            prunes = [pool.submit(hourly.prune, 3, unfinished=True) for _ in range(2)]
            windows = [f.result(120) for f in planned]
            assert sum(f.result(120).windows for f in prunes) >= 1
        seen = [(r.partition, o) for w in windows if isinstance(w, Window) for r in w.ranges for o in range(r.start, r.end)]
        assert len(seen) == len(set(seen))
        for n, window in zip((1, 2, 3, 4), windows, strict=True):
            if isinstance(window, Window):
                assert [(r.start, r.end) for r in window.ranges] == [(n, n + 1)] * 2
            else:
                assert "was pruned" in str(window)


class TestAPlanner:
    def test_prunes_what_is_older_than_it_has_to_remember(self, hourly: Hourly) -> None:
        hourly.done(2)
        until = time.time() + 1.3
        wait_for(lambda: time.time() > until, "the windows to be older")
        hourly.plan(2, keep="1 s")
        plans, stages, _ = hourly.left()
        assert hour(0).key not in plans
        assert stages == set()
        with pytest.raises(WindowError, match="was pruned"):
            hourly.plan(0)
        assert hourly.plan(2).size == 2

    def test_whose_prune_dies_is_not_followed_into_it_by_each_later_one(self, hourly: Hourly) -> None:
        """As where the ledger can't be read in time: what a planner is about to do, it says first."""
        hourly.done(2)
        until = time.time() + 1.3
        wait_for(lambda: time.time() > until, "the windows to be older")
        code = (
            "import sys; from datetime import datetime; from factory_agents.kafka.cuts import plan_window; from "
            "factory_agents.kafka.config import KafkaConfig; from factory_agents.protocol import Interval; "
            "plan_window(KafkaConfig(sys.argv[1]), pipeline=sys.argv[2], prefix=sys.argv[2], topic=sys.argv[3], "
            "interval=Interval(*map(datetime.fromisoformat, sys.argv[4:])), keep='1 s')"
        )
        span = [hour(2).start.isoformat(), hour(2).end.isoformat()]
        environment = os.environ | {"FACTORY_FAILPOINTS": "prune.after-claim=kill"}
        arguments = [hourly.runs.bootstrap, hourly.runs.prefix, hourly.topic, *span]
        killed = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, cwd=ROOT, check=False)
        assert killed.returncode == -signal.SIGKILL
        (mark,) = hourly.view().of(MarkRecord)
        assert (mark.origin, mark.spans, mark.at > 0) == (hourly.topic, (), True)
        hourly.plan(2, keep="1 d")
        assert hourly.view().of(MarkRecord) == [mark]
        assert hourly.plan(0).size == 2, "a claim forgets nothing"

    def test_remembers_everything_where_a_topic_keeps_its_records_for_ever(self, hourly: Hourly, runs: Runs) -> None:
        hourly.done(1)
        found = prune_pipeline(runs.config, runs.prefix, prefix=runs.prefix)
        forever = retention_of(runs.cluster.settings(hourly.topic)) is None
        assert (found.before is None) == forever

    def test_that_is_told_nonsense_says_so_first(self, hourly: Hourly) -> None:
        with pytest.raises(ConfigurationError, match="keep_windows: expected a time such as '45 d'"):
            hourly.plan(0, keep="soon")
        assert keep_seconds("36 h") == 36 * 3600


def test_retention_has_a_margin_and_no_end_where_it_is_compacted_alone() -> None:
    day = 86_400_000
    assert retention_of({"retention.ms": str(day), "segment.ms": str(day), "cleanup.policy": "delete"}) == 3 * day
    assert retention_of({"retention.ms": "-1", "cleanup.policy": "delete"}) is None
    assert retention_of({"retention.ms": str(day), "cleanup.policy": "compact"}) is None


class TestTheCommand:
    def test_says_what_goes_and_what_stays(self, hourly: Hourly, factory: Command) -> None:
        hourly.done(3)
        before = f"{hour(2).start:%Y-%m-%dT%H:%M}"
        dry = factory.ok("windows", "prune", "--before", before, "--dry-run").data
        assert [(d["pipeline"], d["windows"], d["dry_run"]) for d in dry] == [(hourly.runs.prefix, 2, True)]
        done = factory.ok("windows", "prune", "--before", before, "--pipeline", hourly.runs.prefix).data
        assert [d["windows"] for d in done] == [2]
        assert done[0]["kept"][0]["why"] == "it is newer"
        assert [w["window"] for w in factory.ok("windows").data] == [hour(2).key]

    def test_refuses_an_option_that_would_be_passed_over(self, factory: Command) -> None:
        assert "--pipeline: put it behind 'prune'" in factory("windows", "--pipeline", "p", "prune").error


def test_marks_are_read_by_whoever_begins_at_a_windows_plan(hourly: Hourly) -> None:
    """An agent reads its pipeline's ledger from where its window was planned: the mark lies behind that."""
    windows = hourly.done(3)
    hourly.prune(2)
    view = hourly.ledger.read(start=windows[1].ledger_offset, deadline=time.monotonic() + 20)
    (mark,) = view.of(MarkRecord)
    assert mark.covers(hour(1))
