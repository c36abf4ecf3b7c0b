"""Versions of a live agent: partitions go from one to another exactly, whoever dies meanwhile."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions

from factory_agents.contracts import load_contract
from factory_agents.errors import ConfigurationError
from factory_agents.kafka.control import Control, Member
from factory_agents.kafka.lag import topic_lag
from factory_agents.kafka.routes import Limits, rolled_back, shifted, started
from factory_agents.kafka.version_group import VersionReader
from factory_agents.kafka.writer import TransactionalWriter
from factory_agents.rollouts import Rollouts
from factory_agents.runtime import versions
from factory_agents.runtime.agents import AgentFunction, agent
from factory_agents.runtime.dead_letters import LetterTopic, Selection
from factory_agents.runtime.dependencies import Dependency
from factory_agents.runtime.exact_sink import ExactSink
from factory_agents.runtime.live import LiveSettings
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from factory_agents.runtime.versions import check_unversioned, run_version
from tests.support.live_work import LiveWork, ending
from tests.support.runs import Runs, events
from tests.support.sqlite_sink import DocumentedSink
from tests.support.topics import recreate
from tests.support.waiting import wait_for


@contextmanager
def version(runs: Runs, source: str, out: str, name: str, function: Callable[..., Any] | None = None, **more: Any) -> Iterator[LiveWork]:
    """A member of one version, in a thread of its own."""

    def handle(event: dict[str, Any]) -> dict[str, Any]:
        return event | {"by": name}

    function = function or handle
    transform = (function if isinstance(function, AgentFunction) else agent(version="1")(function)).bind({})
    settings = LiveSettings(source, out, group=f"{runs.prefix}.group", prefix=runs.prefix, **more)
    with ending(LiveWork(lambda stop: run_version(RunContext(runs.config, stop=stop), transform, name, settings))) as running:
        yield running


@contextmanager
def control_of(runs: Runs) -> Iterator[Control]:
    control = Control(runs.config, runs.cluster, prefix=runs.prefix, group=f"{runs.prefix}.group")
    try:
        yield control
    finally:
        control.close()


def by_version(runs: Runs, out: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in runs.everything(out):
        counts[record.event["by"]] = counts.get(record.event["by"], 0) + 1
    return counts


def test_partitions_go_to_a_new_version_and_back_and_each_event_is_handled_once(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.produce(source, [*events(100), b"no event"])

    with version(runs, source, out, "v1") as one, version(runs, source, out, "v2") as two, control_of(runs) as control:
        wait_for(lambda: len(runs.everything(out)) == 100, "the first events")
        first = by_version(runs, out)
        assert len(first) == 1  # whichever came first
        new = "v2" if "v1" in first else "v1"
        control.order(lambda r: started(r, new, (0.5,), hold=0, limits=Limits()) if r else r)
        wait_for(lambda: (runs.produce(source, events(4, 1000)) or True) and by_version(runs, out).get(new, 0) > 0, "the new version's")
        control.order(lambda r: shifted(r, 1.0) if r else r)
        control.order(lambda r: rolled_back(r, "as a test") if r else r)
        runs.produce(source, events(100, 100))
        wait_for(lambda: {r.id for r in runs.everything(out)} >= set(range(200)), "all events")
        one.end()
        two.end()
    assert sorted(r.id for r in runs.everything(out) if r.id < 1000) == list(range(200))
    (letter,) = LetterTopic(runs.config, f"{out}.dead", prefix=runs.prefix).select(Selection())
    assert (letter.value, letter.attempt) == (b"no event", "live")


def test_partitions_with_calls_in_flight_go_at_once_and_their_outputs_here_are_dropped(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.produce(source, events(80))
    begun, go_on = list[int](), threading.Event()

    @agent(version="1", concurrency=16)
    def one_hangs(event: dict[str, Any]) -> dict[str, Any]:
        begun.append(event["event_id"])
        if event["event_id"] == 40:  # in the middle of a partition
            go_on.wait(60)
        return event | {"by": "v1"}

    with version(runs, source, out, "v1", one_hangs) as one:
        wait_for(lambda: len(runs.everything(out)) == 70, "all but one, and those behind it")
        assert len(begun) == 80
        with version(runs, source, out, "v2"):
            wait_members(runs, "v2")
            rollouts(runs).start("v2")
            wait_for(lambda: len(runs.everything(out)) == 80, "the rest, by the new version")
            go_on.set()
            assert one.end().consumed == 70
    assert by_version(runs, out) == {"v1": 70, "v2": 10}
    assert sorted(r.id for r in runs.everything(out)) == list(range(80))


def test_a_rollback_drops_what_is_not_committed_and_ends_no_member(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    with version(runs, source, out, "v1") as one, control_of(runs) as control:
        with feeding(runs, source) as sent:  # there is always something that isn't committed
            wait_for(lambda: runs.everything(out), "the first events")
            with version(runs, source, out, "v2") as two:
                wait_members(runs, "v2")
                for _ in range(3):
                    seen = by_version(runs, out).get("v2", 0)
                    control.order(lambda r: started(r, "v2", (1.0,), hold=0, limits=Limits()) if r else r)
                    wait_for(lambda seen=seen: by_version(runs, out).get("v2", 0) > seen, "the new version's")
                    control.order(lambda r: rolled_back(r, "as a test") if r else r)
                    rollouts(runs).wait(30, until=lambda s: s.is_settled)
                two.end()
        wait_for(lambda: len(runs.everything(out)) >= len(sent), "all events")
        one.end()
    assert sorted(r.id for r in runs.everything(out)) == sent
    assert "chunk aborted" not in caplog.text


def rollouts(runs: Runs) -> Rollouts:
    return Rollouts(runs.config, f"{runs.prefix}.group", prefix=runs.prefix)


@contextmanager
def feeding(runs: Runs, source: str, pause: float = 0.01) -> Iterator[list[int]]:
    """Events with growing ids to all partitions, all the time; the list's length is how many there are."""
    ended, sent = threading.Event(), list[int]()
    producer = Producer({"bootstrap.servers": runs.bootstrap, "linger.ms": 1, "log_level": 0})

    def feed() -> None:
        while not ended.is_set():
            for p in range(4):
                producer.produce(source, events(1, len(sent))[0], partition=p)
                sent.append(len(sent))
            producer.poll(0)
            ended.wait(pause)
        producer.flush(60)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield sent
    finally:
        ended.set()
        thread.join()


def hostile(share: int, raised: list[float]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """An agent that raises for one event of so many, and notes when."""

    def handle(event: dict[str, Any]) -> dict[str, Any]:
        if event["event_id"] % share == 0:
            raised.append(time.time())
            raise KeyError("segment")
        return event | {"by": "v2"}

    return handle


@pytest.mark.parametrize("share", [1, 5])
def test_a_version_that_raises_errors_is_rolled_back_before_they_are_committed(runs: Runs, share: int) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    runs.topic("out.dead")
    raised: list[float] = []
    with version(runs, source, out, "v1") as one:
        with feeding(runs, source, 0.02) as sent:
            wait_for(lambda: runs.everything(out), "the first events")
            with version(runs, source, out, "v2", hostile(share, raised)):
                wait_members(runs, "v2")
                rollouts(runs).start("v2")
                status = rollouts(runs).wait(30, until=lambda s: s.verdict == "rolled back" and s.is_settled)
            with control_of(runs) as control:
                route = control.catch_up(time.monotonic() + 30)
        letters = runs.everything(f"{out}.dead")
        wait_for(lambda: len(runs.everything(out)) + len(letters) >= len(sent), "the old version to handle the rest")
        one.end()
    assert "raised errors for" in status.reason
    assert route is not None
    took = route.at - raised[9]
    print(f"rolled back {took:.2f} s after the tenth error")
    assert took < 5  # until when it would be missed, if it said nothing any more
    assert len(letters) < 10  # of chunks before there were ten; those of the chunk that was refused are not there
    assert sorted([r.id for r in runs.everything(out)] + [r.id for r in letters]) == sent


def test_a_version_that_is_ten_times_slower_is_rolled_back(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")

    def takes(seconds: float, name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def handle(event: dict[str, Any]) -> dict[str, Any]:
            time.sleep(seconds)
            return event | {"by": name}

        return handle

    with version(runs, source, out, "v1", takes(0.002, "v1")) as one:
        with feeding(runs, source, 0.05) as sent:
            wait_for(lambda: len(runs.everything(out)) > 50, "the old version's pace")
            with version(runs, source, out, "v2", takes(0.02, "v2")):
                wait_members(runs, "v2")
                rollouts(runs).start("v2")
                began = time.monotonic()
                status = rollouts(runs).wait(30, until=lambda s: s.verdict == "rolled back" and s.is_settled)
                print(f"rolled back after {time.monotonic() - began:.1f} s")
        wait_for(lambda: len(runs.everything(out)) >= len(sent), "all events")
        one.end()
    assert re.search(r"it takes \d+\.\d ms an event, the version before it \d\.\d ms", status.reason)
    assert sorted(r.id for r in runs.everything(out)) == sent


def test_a_version_whose_first_call_takes_long_is_not_rolled_back_for_that(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    called: list[int] = []

    def handle(event: dict[str, Any]) -> dict[str, Any]:
        called.append(event["event_id"])
        if len(called) == 1:
            time.sleep(1.5)  # it imports what it needs
        return event | {"by": "v2"}

    with version(runs, source, out, "v1"), feeding(runs, source, 0.05):
        wait_for(lambda: len(runs.everything(out)) > 50, "the old version's pace")
        with version(runs, source, out, "v2", handle):
            wait_members(runs, "v2")
            rollouts(runs).start("v2")
            wait_for(lambda: len(called) > 100, "the new version's pace")
            assert rollouts(runs).wait(30).verdict == "rolled out"


def test_partitions_that_are_added_during_a_rollout_are_handled_too(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    with version(runs, source, out, "v1"):
        wait_members(runs, "v1")
        with version(runs, source, out, "v2"):
            wait_members(runs, "v2")
            rollouts(runs).start("v2")
            rollouts(runs).wait(30)
            runs.admin.create_partitions([NewPartitions(source, 6)])[source].result()
            wait_for(lambda: runs.cluster.topic(source).partitions == 6, "the new partitions")
            for p in range(6):
                runs.produce(source, events(1, p), partition=p)
            wait_for(lambda: len(runs.everything(out)) == 6, "the events of all partitions")
            assert by_version(runs, out) == {"v1": 2, "v2": 4}, "partitions that are added are the base version's"
            rollouts(runs).shift("100%")
            assert rollouts(runs).wait(30).held == 6


def wait_members(runs: Runs, name: str, count: int = 1) -> None:
    def there() -> bool:
        group = runs.cluster.group(f"{runs.prefix}.group~{name}")
        return group is not None and group.members >= count and len(group.assigned) == 4

    wait_for(there, f"members of {name}")

    def ordered() -> bool:
        with control_of(runs) as control:
            return control.exists and control.catch_up(time.monotonic() + 30) is not None and len(control.alive(name, 60)) >= count

    wait_for(ordered, "the first order, and signs of life")


def test_a_rollout_in_steps_goes_on_by_itself_and_is_finished(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    with version(runs, source, out, "v1") as one, version(runs, source, out, "v2"):
        with feeding(runs, source, 0.02) as sent:
            wait_members(runs, "v1")
            wait_members(runs, "v2")
            base = rollouts(runs).status().base
            new = "v2" if base == "v1" else "v1"
            first = rollouts(runs).start(new, steps=["1", "50%", "100%"], hold=0.5)
            assert [p.owner for p in first.partitions] == [new, base, base, base]
            assert rollouts(runs).start(new).epoch >= first.epoch  # a retry changes nothing
            with pytest.raises(ConfigurationError, match="is being rolled out"):
                rollouts(runs).start("v3", force=True)
            rollouts(runs).wait(30, until=lambda s: s.verdict == "rolled out")
            done = rollouts(runs).finish()
            assert (done.verdict, done.base) == ("steady", new)
            if base == "v1":
                one.end()
            with pytest.raises(ConfigurationError, match="there is no rollout"):
                rollouts(runs).roll_back("too late")
        wait_for(lambda: len(runs.everything(out)) >= len(sent), "all events")
        wait_for(lambda: rollouts(runs).status().lag == 0, "no lag")
        wait_for(lambda: keda_lag(runs, source) == 0, "no lag as KEDA computes it")
        assert list(topic_lag(runs.config, [source])) == [f"{runs.prefix}.group"]  # the versions' groups say nothing
    assert sorted(r.id for r in runs.everything(out)) == sent


def keda_lag(runs: Runs, topic: str) -> int:
    """The sum of log end minus committed offset, markers included, as KEDA's scaler has it."""
    ends = runs.cluster.high_watermark(topic, range(4))
    stands = runs.cluster.committed(f"{runs.prefix}.group", [topic])
    return sum(end - stands.get((topic, p), 0) for p, end in ends.items())


def test_what_nobody_has_started_is_not_rolled_out(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    with pytest.raises(ConfigurationError, match="no version of an agent has run in it yet"):
        rollouts(runs).status()
    with version(runs, source, out, "v1"):
        wait_members(runs, "v1")
        with pytest.raises(ConfigurationError, match="version 'v2' has no members"):
            rollouts(runs).start("v2")
        with pytest.raises(ConfigurationError, match="its partitions are handled by versions"):
            check_unversioned(runs.config, f"{runs.prefix}.group", runs.prefix)

        def other(event: dict[str, Any]) -> dict[str, Any]:
            return event

        with version(runs, source, out, "v1", agent(version="9")(other)) as twin:
            twin.wait()
        assert isinstance(twin.error, ConfigurationError)
        assert "runs with other code" in str(twin.error)


def test_of_two_orders_at_once_one_is_refused(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    with version(runs, source, out, "v1"), version(runs, source, out, "v2"), version(runs, source, out, "v3"):
        for name in ("v1", "v2", "v3"):
            wait_members(runs, name)
        base = rollouts(runs).status().base
        others = sorted({"v1", "v2", "v3"} - {base})
        outcomes: list[str] = []

        def give(name: str) -> None:
            try:
                outcomes.append(rollouts(runs).start(name).new)
            except ConfigurationError as error:
                outcomes.append(f"refused: {error}")

        threads = [threading.Thread(target=give, args=(name,)) for name in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        status = rollouts(runs).wait(30)
        (winner,) = (o for o in outcomes if not o.startswith("refused"))
        assert status.new == winner
        assert {p.holder for p in status.partitions} == {winner}
        assert sum(o.startswith("refused") for o in outcomes) == 1


def test_a_control_topic_that_is_deleted_takes_nothing_from_anybody(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    with version(runs, source, out, "v1"), feeding(runs, source) as sent, version(runs, source, out, "v2"):
        wait_members(runs, "v1")
        wait_members(runs, "v2")
        base = rollouts(runs).status().base
        new = "v2" if base == "v1" else "v1"
        rollouts(runs).start(new, steps=["50%"])
        before = rollouts(runs).wait(30)
        recreate(runs.admin, f"{runs.prefix}.control", 12, cleanup_policy="compact")

        def known() -> bool:
            try:
                return rollouts(runs).status().epoch == before.epoch
            except ConfigurationError:
                return False

        wait_for(known, "the order to be written again")
        rollouts(runs).shift("100%")
        after = rollouts(runs).wait(30)
        assert {p.holder for p in after.partitions} == {new}
        count = len(sent)
        wait_for(lambda: len(runs.everything(out)) >= count, "all events until now")
    found = [r.id for r in runs.everything(out)]
    assert len(found) == len(set(found))


BY_VERSION = {"name": "events", "id": "event_id", "columns": {"event_id": "bigint", "by": "text"}}


def table(runs: Runs, topic: str, file: Path) -> list[tuple[Any, ...]]:
    """What a table holds after a window over all of the topic was published to it."""
    run = runs.run(runs.window(topic), name="publish", stage="publish")
    run_sink(RunContext(runs.config), run, lambda: ExactSink(DocumentedSink(str(file)), load_contract(BY_VERSION).table(), {}))
    with closing(sqlite3.connect(file)) as database:
        return database.execute("SELECT event_id, by FROM events ORDER BY 1").fetchall()


def test_repair_hands_out_exactly_what_a_version_had_and_makes_the_table_the_old_versions(runs: Runs, tmp_path: Path) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    with version(runs, source, out, "v1"), feeding(runs, source) as sent:
        wait_for(lambda: runs.everything(out), "the first events")
        with version(runs, source, out, "v2"):
            wait_members(runs, "v2")
            rollouts(runs).start("v2", steps=["50%"])
            rollouts(runs).wait(30)
            wait_for(lambda: by_version(runs, out).get("v2", 0) > 20, "the new version's")
            rollouts(runs).shift("100%")
            rollouts(runs).wait(30)
            rollouts(runs).roll_back("wrong segments")
            rollouts(runs).wait(30)
    window = rollouts(runs).handled()
    handled = [r.id for part in window.ranges for r in runs.read(source, part.partition, part.start, part.end)]
    assert sorted(handled) == sorted(r.id for r in runs.everything(out) if r.event["by"] == "v2")
    before = table(runs, out, tmp_path / "before.sqlite")
    assert {by for _, by in before} == {"v1", "v2"}
    result = runs.transform(runs.run(window, out), lambda event: event | {"by": "v1"})
    assert result.counts.consumed == len(handled)
    assert len(sent) >= len(handled) > 20
    assert table(runs, out, tmp_path / "after.sqlite") == [(id_, "v1") for id_, _ in before]


def test_a_call_that_hangs_rolls_its_version_back_and_its_events_are_handled_by_the_other(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    hung = threading.Event()

    def hang(event: dict[str, Any]) -> dict[str, Any]:
        hung.wait(60)
        return event | {"by": "v2"}

    with version(runs, source, out, "v1"):
        wait_members(runs, "v1")
        with version(runs, source, out, "v2", hang):
            wait_members(runs, "v2")
            rollouts(runs).start("v2", limits=Limits(hang=0.5))
            rollouts(runs).wait(30)
            runs.produce(source, events(20))
            began = time.monotonic()
            status = rollouts(runs).wait(30, until=lambda s: s.verdict == "rolled back" and s.is_settled)
            print(f"taken back {time.monotonic() - began - 0.5:.2f} s after the longest that a call may take")
            assert "it has been at one call for" in status.reason
            wait_for(lambda: len(runs.everything(out)) == 20, "the old version to handle them, while the call hangs")
            hung.set()
    assert by_version(runs, out) == {"v1": 20}


def test_a_service_that_hangs_for_both_versions_rolls_nothing_back(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    hangs, at_it, answers = threading.Event(), set[str](), threading.Event()

    def calls(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def handle(event: dict[str, Any]) -> dict[str, Any]:
            if hangs.is_set():
                at_it.add(name)
                answers.wait(60)
            return event | {"by": name}

        return handle

    with version(runs, source, out, "v1", calls("v1")):
        wait_members(runs, "v1")
        with version(runs, source, out, "v2", calls("v2")), feeding(runs, source, 0.05) as sent:
            wait_members(runs, "v2")
            rollouts(runs).start("v2", steps=["50%"], limits=Limits(hang=4.0))
            rollouts(runs).wait(30)
            wait_for(lambda: by_version(runs, out).get("v2", 0) > 20, "the new version's pace")
            hangs.set()
            wait_for(lambda: at_it == {"v1", "v2"}, "both to hang")
            wait_for(lambda: all(m.busy > 6 for m in rollouts(runs).status().members), "both to hang for longer than one may")
            assert rollouts(runs).status().verdict == "rolling"
            hangs.clear()
            answers.set()
            count = len(sent)
            wait_for(lambda: len(runs.everything(out)) >= count, "all events until now")
            assert rollouts(runs).status().verdict == "rolling"
    found = [r.id for r in runs.everything(out)]
    assert len(found) == len(set(found))


def test_a_member_that_died_without_a_word_is_forgotten_in_the_end(runs: Runs) -> None:
    with control_of(runs) as control:
        control.ensure()
        control.tell(Member(control.group, "v1", "dead"))
        control.tell(Member(control.group, "v1", "alive"))
        wait_for(lambda: (control.tail() and False) or len(control.members) == 2, "both")
        control._heard["dead"] -= 3601
        control.forget_silent(3600)
    with control_of(runs) as later:
        wait_for(lambda: later.catch_up(time.monotonic() + 30) or set(later.members) == {"alive"}, "one to be left")


def test_positions_of_partitions_where_nothing_happens_are_committed_again(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much happens on others: Kafka forgets each by its own age."""
    source, out = runs.topic("in"), runs.topic("out")
    for p in range(4):
        runs.produce(source, events(2, 2 * p), partition=p)
    committed: list[set[int]] = []
    send = VersionReader.send

    def noted(self: VersionReader, writer: TransactionalWriter, positions: Mapping[int, int], passing: Mapping[int, str]) -> Any:
        committed.append(set(positions))
        return send(self, writer, positions, passing)

    def all_are() -> bool:
        runs.produce(source, events(1, 100), partition=0)
        return {0, 1, 2, 3} in committed

    with version(runs, source, out, "v1") as one:
        wait_for(lambda: len(runs.everything(out)) == 8, "the first events")
        monkeypatch.setattr(VersionReader, "send", noted)
        monkeypatch.setattr(versions, "_KEEP_SECONDS", 1.0)
        wait_for(all_are, "all positions")
        one.end()
    assert {0} in committed


def test_a_service_that_is_down_for_both_versions_rolls_nothing_back_and_is_seen(runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    crm = Dependency(runs.prefix, retries=0, open_seconds=0.2, longest_open_seconds=0.2)
    down = threading.Event()

    def handle(event: dict[str, Any]) -> dict[str, Any]:
        with crm:
            if down.is_set():
                raise ConnectionError("refused")
        return event | {"by": "either"}

    with version(runs, source, out, "v1", handle), version(runs, source, out, "v2", handle):
        wait_members(runs, "v1")
        wait_members(runs, "v2")
        base = rollouts(runs).status().base
        rollouts(runs).start("v2" if base == "v1" else "v1", steps=["50%"])
        rollouts(runs).wait(30)
        down.set()
        runs.produce(source, events(80))

        def seen() -> bool:
            return {m.version for m in rollouts(runs).status().members if m.breakers} == {"v1", "v2"}

        wait_for(seen, "both to say that the service is not called")
        assert rollouts(runs).status().verdict == "rolling"
        rollouts(runs).shift("100%")  # what waits is passed on, too
        rollouts(runs).wait(30)
        down.clear()
        wait_for(lambda: len(runs.everything(out)) == 80, "all events")
    assert sorted(r.id for r in runs.everything(out)) == list(range(80))
