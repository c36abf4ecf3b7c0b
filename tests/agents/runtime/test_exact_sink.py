"""The runtime over a user's sink: what it asks when answers get lost, and sinks without transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from factory_agents import Figures, LedgerSink, failpoints
from factory_agents.contracts import load_contract
from factory_agents.errors import SinkError, UnavailableError, WindowError
from factory_agents.kafka.records import ALWAYS, MarkRecord, microseconds
from factory_agents.protocol import AgentRun, Order
from factory_agents.runtime import exact_sink
from factory_agents.runtime.agents import Claim
from factory_agents.runtime.exact_sink import ExactSink, exact
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from factory_agents.runtime.sink_ledger import key_text
from tests.support.runs import Runs, events
from tests.support.sink_bench import CONTRACT, W1, WHOLE, at, event, record
from tests.support.sqlite_sink import CONTRACT as BY_ID
from tests.support.sqlite_sink import DocumentedSink
from tests.support.upserting_sink import Upserting

ASKED = ("open", "read", "change", "stage", "land")


def claim(**changes: Any) -> Claim:
    values: dict[str, Any] = {"plan": "p", "fingerprint": "f", "input_generation": 1, "generation": 1} | changes
    return Claim("p", "publish", W1, WHOLE, **values)


class Flaky:
    """A sink of which the ``nth`` call fails, before or after it did what was asked."""

    def __new__(cls, path: Path, nth: int, *, done: bool, error: Exception) -> Any:
        calls: list[str] = []
        busy: list[str] = []

        class Sink(DocumentedSink):  # type: ignore[misc]
            pass

        def wrap(name: str) -> Any:
            method = getattr(DocumentedSink, name)

            def wrapped(self: Any, *arguments: Any) -> Any:
                if busy:  # it asks itself
                    return method(self, *arguments)
                calls.append(name)
                fails = len(calls) == nth
                if fails and not done:
                    raise error
                busy.append(name)
                try:
                    answer = method(self, *arguments)
                finally:
                    busy.clear()
                if fails:
                    raise error
                return answer

            return wrapped

        for name in ASKED:
            setattr(Sink, name, wrap(name))
        sink = Sink(str(path))
        sink.calls = calls
        return sink


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "db")
    yield connection
    connection.close()


def published(database: sqlite3.Connection) -> dict[str, str]:
    return dict(database.execute("SELECT id, value FROM events").fetchall())


def publish(sink: Any, rows: list[Any], **changes: Any) -> Any:
    try:
        outcome = sink.claim(claim(**changes))
        if outcome is None:
            assert sink.write(rows) == {}
            outcome = sink.commit(rejected=0)
        return outcome
    finally:
        sink.close()


@pytest.mark.parametrize("unasked", [UnavailableError("no answer"), sqlite3.OperationalError("locked")], ids=["ours", "theirs"])
def test_why_a_landing_failed_is_told_though_the_ledger_cannot_be_asked_then(tmp_path: Path, unasked: Exception) -> None:
    class Sink(DocumentedSink):  # type: ignore[misc]
        failed = False

        def land(self, landing: Any) -> Figures:
            self.failed = True
            raise SinkError("no such column")

        def read(self, key: str) -> str | None:
            if self.failed:
                raise unasked
            found: str | None = super().read(key)
            return found

    with pytest.raises(UnavailableError, match=r"no such column; and then the ledger could not be asked .*(no answer|locked)"):
        publish(exact(Sink(str(tmp_path / "db")), load_contract(CONTRACT)), at([event("a")]))


@pytest.mark.parametrize("done", [False, True], ids=["request lost", "answer lost"])
@pytest.mark.parametrize("error", [UnavailableError("gone"), sqlite3.OperationalError("locked")], ids=["ours", "theirs"])
def test_whatever_call_fails_the_rows_are_there_once(tmp_path: Path, database: sqlite3.Connection, done: bool, error: Exception) -> None:
    """What fails in the attempt is completed by the next one; a change and a landing whose answers are lost succeed."""
    contract = load_contract(CONTRACT)
    publish(exact(DocumentedSink(str(tmp_path / "db")), contract), at([event("a", "0"), event("stale")]), fingerprint="first")
    nth, asked = 0, ""
    while nth == 0 or len(asked) >= nth:
        nth += 1
        rows = at([event("a", str(nth)), event(f"only {nth}")])
        changes = {"fingerprint": f"f{nth}", "input_generation": 1 + nth}
        flaky = Flaky(tmp_path / "db", nth, done=done, error=error)
        sink = exact(flaky, contract)
        try:
            outcome = publish(sink, rows, **changes)
        except (UnavailableError, exact_sink.RaisedError):
            assert flaky.calls[nth - 1] not in ("change", "land") or not done
        else:
            assert (outcome.written, outcome.removed, outcome.reused) == (2, 1, False)
        asked = flaky.calls
        outcome = publish(exact(DocumentedSink(str(tmp_path / "db")), contract), rows, **changes)
        assert (outcome.written, outcome.removed) == (2, 1)
        assert published(database) == {"a": str(nth), f"only {nth}": "x"}
    assert nth > len(ASKED)


def test_a_refusal_of_the_sinks_own_is_not_tried_again(tmp_path: Path) -> None:
    tries: list[int] = []

    class Refusing(DocumentedSink):  # type: ignore[misc]
        def land(self, landing: Any) -> Any:
            tries.append(1)
            raise SinkError("no such table")

    with pytest.raises(SinkError, match="no such table"):
        publish(exact(Refusing(str(tmp_path / "db")), load_contract(CONTRACT)), at([event("a")]))
    assert tries == [1]


def test_a_sink_that_lands_nothing_and_says_it_did_is_found_out(tmp_path: Path) -> None:
    class Liar(DocumentedSink):  # type: ignore[misc]
        def land(self, landing: Any) -> Any:
            return Figures(1, 1)

    with pytest.raises(SinkError, match="publishing to events: it says that it landed, and its ledger doesn't"):
        publish(exact(Liar(str(tmp_path / "db")), load_contract(CONTRACT)), at([event("a")]))


def test_others_who_keep_changing_the_entry_are_waited_for_until_the_time_is_over(tmp_path: Path) -> None:
    class Beaten(DocumentedSink):  # type: ignore[misc]
        def change(self, key: str, old: str | None, new: str) -> bool:
            return False

    sink = ExactSink(Beaten(str(tmp_path / "db")), load_contract(CONTRACT).table(), {}, timeout=0.3)
    with pytest.raises(UnavailableError, match="others keep changing the ledger's entry of window"):
        sink.claim(claim())
    sink.close()


def test_a_large_window_goes_in_parts(tmp_path: Path, database: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_sink, "_PART_BYTES", 100)
    parts: list[Any] = []

    class Counting(DocumentedSink):  # type: ignore[misc]
        def stage(self, part: Any, rows: Any) -> None:
            parts.append(part)
            super().stage(part, rows)

    sink = exact(Counting(str(tmp_path / "db")), load_contract(CONTRACT))
    assert sink.claim(claim()) is None
    for n in range(5):
        sink.write([record(event(str(n % 2), str(n)), 0, n)])
    assert sink.commit(rejected=0).duplicates == 3
    sink.close()
    assert [part.number for part in parts] == list(range(5))
    assert len({part.name for part in parts}) == 5
    assert published(database) == {"0": "4", "1": "3"}


class TestASinkWithoutTransactions:
    @pytest.fixture
    def run(self, runs: Runs) -> AgentRun:
        topic = runs.topic("in", partitions=2)
        runs.produce(topic, [*events(50), b"{broken"])
        return runs.run(runs.window(topic), name="publish", stage="publish", dead_letter_topic=f"{topic}.dead")

    def test_lands_again_after_a_lost_answer_and_is_reused_by_kafkas_ledger(self, runs: Runs, run: AgentRun) -> None:
        import msgspec

        sink = Upserting()

        def go(run: AgentRun) -> Any:
            return run_sink(RunContext(runs.config), run, lambda: exact(sink, load_contract(BY_ID)))

        sink.failures = [UnavailableError("no answer")]
        result = go(run)
        assert (result.counts.consumed, result.counts.written, result.counts.rejected) == (51, 50, 1)
        assert len(sink.landed) == 2
        assert len(set(sink.landed)) == 1
        assert go(run).reused
        assert len(sink.landed) == 2
        result = go(msgspec.structs.replace(run, order=Order("task", 1, again=True)))
        assert (result.reused, result.counts.written) == (False, 50)
        assert len(set(sink.landed)) == 2
        assert len(sink.column("event_id")) == 50

    def test_a_zombie_that_lands_late_leaves_the_rows_of_its_successor(self) -> None:
        store = Upserting()
        zombie, newer = (exact(store, load_contract(CONTRACT)) for _ in range(2))
        zombie.claim(claim(generation=1))
        newer.claim(claim(generation=2, fingerprint="new code"))
        assert newer.write(at([event("a", "newer", 1)])) == {}
        assert newer.commit(rejected=0).written == 1
        assert zombie.write(at([event("a", "zombie", 1)])) == {}
        outcome = zombie.commit(rejected=0)
        assert (outcome.written, outcome.older) == (0, 1)
        assert store.column("value") == ["newer"]

    def test_one_that_fails_is_completed_by_the_retry(self, runs: Runs, run: AgentRun) -> None:
        sink = Upserting()
        sink.failures = [OSError("cut")]
        with pytest.raises(exact_sink.RaisedError, match=r"sink store: OSError: cut \(.*upserting_sink.py:\d+\)"):
            run_sink(RunContext(runs.config), run, lambda: exact(sink, load_contract(BY_ID)))
        result = run_sink(RunContext(runs.config), run, lambda: exact(sink, load_contract(BY_ID)))
        assert result.counts.written == 50
        assert len(set(sink.landed)) == 1  # an endpoint may know by it that it did this before


class Killed(BaseException):
    """The process is gone."""


def test_a_prune_that_dies_is_gone_on_with_the_next_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the horizon and the deletion, at every step of it."""
    contract = load_contract(CONTRACT)
    mark = MarkRecord("p", "raw", spans=((ALWAYS, microseconds(datetime(2026, 3, 1, 2, tzinfo=UTC))),))
    days = 0

    def publish(hour: int) -> ExactSink:
        sink = exact(DocumentedSink(str(tmp_path / "db")), contract)
        window = f"2026-03-01T0{hour}:00:00.000Z/2026-03-01T0{hour + 1}:00:00.000Z p raw"
        assert sink.claim(replace(claim(reuse=False), window=window, origin="raw")) is None
        assert sink.write(at([event(f"h{hour}")])) == {}
        sink.commit(rejected=0)
        return sink

    def die(name: str) -> None:
        seen.append(name)
        if len(seen) > step:
            raise Killed

    for hour in range(3):
        publish(hour).close()
    step, died = 0, True
    while died:
        days += 1
        now = 1.8e9 + days * 24 * 3600.0
        monkeypatch.setattr(exact_sink.time, "time", lambda now=now: now)
        sink, seen, died = publish(3 + days % 2), [], False
        with monkeypatch.context() as patch:
            patch.setattr(failpoints, "hit", die)
            try:
                sink.prune(lambda: mark)
            except Killed:
                died = True
        sink.close()
        step += 1
    with sqlite3.connect(tmp_path / "db") as database:
        keys = {key[:13] for (key,) in database.execute("SELECT key FROM factory_ledger")}
    assert keys == {"2026-03-01T02", "2026-03-01T03", "2026-03-01T04", key_text("", "p", "publish", "horizon")[:13]}
    with pytest.raises(WindowError, match="was pruned"):
        publish(1)


def test_a_sink_that_cannot_forget_keeps_every_window_and_is_not_asked(tmp_path: Path) -> None:
    class Keeping(DocumentedSink):  # type: ignore[misc]
        entries, forget = LedgerSink.entries, LedgerSink.forget

    sink = exact(Keeping(str(tmp_path / "db")), load_contract(CONTRACT))
    assert sink.claim(replace(claim(), origin="raw")) is None
    sink.commit(rejected=0)
    assert sink.prune(lambda: pytest.fail("nobody needs the mark")) == 0
    sink.close()
