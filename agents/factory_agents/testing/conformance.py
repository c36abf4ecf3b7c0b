"""``SinkConformance``: tries whether a sink keeps promise 5 of the window contract, whoever wrote it."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any, ClassVar

import pytest

from factory_agents import failpoints
from factory_agents.contracts import load_contract
from factory_agents.errors import FencedError, SinkError, WindowError
from factory_agents.kafka.messages import Message
from factory_agents.kafka.records import ALWAYS, MarkRecord, microseconds
from factory_agents.protocol import Interval, Shard
from factory_agents.runtime.agents import Claim, Sink, SinkOutcome
from factory_agents.runtime.exact_sink import exact
from factory_agents.runtime.ledger_sink import LedgerSink
from factory_agents.testing.model import Model, random_history
from factory_agents.testing.records import CONTRACT, W1, W2, at, event, record

__all__ = ["SinkConformance", "SinkTarget"]

WHOLE = Shard()
APART = 5
"""Steps between two deaths in one test: each test makes every fifth of them."""


class SinkTarget(ABC):
    """A table of one test's own: makes publishers to it, and looks at it without them."""

    @abstractmethod
    def make(self) -> LedgerSink:
        """A new sink to the table, as another process would make it."""

    @abstractmethod
    def rows(self, *columns: str) -> Sequence[Sequence[Any]]:
        """What these columns of the table hold."""

    @abstractmethod
    def empty(self) -> None:
        """Delete every row, as somebody who knows nothing of us would."""

    @abstractmethod
    def drop(self) -> None:
        """Drop the table, likewise."""

    def sink(self, contract: dict[str, Any]) -> Sink:
        """A new publisher with this contract; a sink that isn't a ``LedgerSink`` makes its own here."""
        return exact(self.make(), load_contract(contract))

    def close(self) -> None:  # noqa: B027  # not every target holds something
        """When the test is over."""


class Died(BaseException):  # it is no error: nothing handles it
    """A publisher that is killed: nothing of it is done any more."""


class Publishers:
    """Publishers to a target: one for every attempt, each with a claim of its own."""

    def __init__(self, target: SinkTarget) -> None:
        self.target = target
        self.contract = CONTRACT
        self.generation = 0
        self._made: list[Sink] = []

    def close(self) -> None:
        for sink in self._made:
            sink.close()
        self.target.close()

    def sink(self) -> Any:
        sink = self.target.sink(self.contract)
        self._made.append(sink)
        return sink

    @contextmanager
    def attempt(self) -> Iterator[Any]:
        """A publisher, closed in the thread that made it."""
        sink = self.target.sink(self.contract)
        try:
            yield sink
        finally:
            sink.close()

    def claim(self, window: str = W1, shard: Shard = WHOLE, stage: str = "publish", **changes: Any) -> Claim:
        self.generation += 1
        values: dict[str, Any] = {"plan": "plan", "fingerprint": f"f{self.generation}", "input_generation": 1}
        return Claim("p", stage, window, shard, generation=self.generation, **values | changes)

    def publish(self, rows: Sequence[Message], window: str = W1, shard: Shard = WHOLE, **changes: Any) -> SinkOutcome:
        """All of an attempt; without another fingerprint each is a new one."""
        with self.attempt() as sink:
            outcome: SinkOutcome | None = sink.claim(self.claim(window, shard, **changes))
            if outcome is None:
                for start in range(0, len(rows), 3):
                    _write(sink, rows[start : start + 3])
                outcome = sink.commit(rejected=0)
            return outcome

    def rows(self) -> dict[Any, Any]:
        return {row[0]: row[1] for row in self.target.rows("id", "value")}


@contextmanager
def _hits(monkeypatch: pytest.MonkeyPatch, on_hit: Callable[[str], None]) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", on_hit)
        yield


def _write(sink: Any, rows: Sequence[Message]) -> None:
    assert sink.write(rows) == {}


def _write_and_commit(sink: Any, rows: Sequence[Message]) -> SinkOutcome:
    _write(sink, rows)
    outcome: SinkOutcome = sink.commit(rejected=0)
    return outcome


def dies(publishers: Publishers, monkeypatch: pytest.MonkeyPatch, step: int, rows: Sequence[Message], same: dict[str, Any]) -> bool:
    """Publish with a publisher that is killed after so many steps; whether it lived to see that one."""
    passed: list[str] = []

    def die(name: str) -> None:
        passed.append(name)
        if len(passed) > step:
            raise Died

    sink = publishers.sink()
    with _hits(monkeypatch, die):
        try:
            sink.claim(publishers.claim(**same))
            for start in range(0, len(rows), 3):
                _write(sink, rows[start : start + 3])
            sink.commit(rejected=0)
        except Died:
            return True
    return False


_START = datetime(2026, 3, 1, tzinfo=UTC)


def _interval(n: int) -> Interval:
    return Interval(_START + timedelta(hours=n), _START + timedelta(hours=n + 1))


def _hour(n: int) -> str:
    """An hour of the topic ``raw``, as claims name it."""
    return f"{_interval(n).key} p raw"


def _mark(n: int) -> MarkRecord:
    """What the pipeline's ledger says once it has forgotten the hours before this one."""
    return MarkRecord("p", "raw", spans=((ALWAYS, microseconds(_interval(n).start)),))


def _needs_forgetting(sink: Any) -> None:
    if not getattr(sink, "forgets", True):
        pytest.skip("keeps every window in its ledger: it has no entries() and forget()")


def _by_ledger(test: Callable[..., None]) -> Callable[..., None]:
    """Marks what only a sink with a ledger of its own can keep."""
    test.by_ledger = True  # type: ignore[attr-defined]
    return test


class SinkConformance:
    """Subclass it, with a fixture ``target`` that gives a ``SinkTarget`` over a table of the test's own."""

    IDEMPOTENT = False
    """A sink without transactions: what needs a ledger beside the rows is skipped."""
    VERSIONS: ClassVar[Sequence[tuple[str, Any, Any, Any]]] = (
        ("numeric", "9", 10, "10.5"),
        ("bigint", 9, 10, 11),
        ("double", 9.5, 10, 1e3),
        ("text", "1.10", "1.9", "2"),
        ("date", "2026-09-01", "2026-10-01", "2026-11-01"),
        ("boolean", None, False, True),
    )
    """Types of a version field, each with three values from the least to the greatest."""
    HISTORIES = 20
    """Random histories of publications that are compared with the model."""
    HOSTILE: ClassVar[Sequence[str]] = (
        *("'; DROP TABLE events; --", '"quoted"', "back\\slash\\N\\t", "tab\tand\nline\r\n", "{braces} %s ${x} :name @p ?", ""),
        *("\u202eturned", "é́ 𝔘 👩‍👩‍👧", "\x1b[31mred", "NULL", "x" * 100_000),
    )
    """Texts that come back as they were."""

    NAMES: ClassVar[Sequence[str]] = ("order", "select", "a, b", "it's", "n", "ünï cödé", "%s", ":x", "excluded", "staged")
    """Names that a column may have."""

    @pytest.fixture
    def publishers(self, target: SinkTarget, request: pytest.FixtureRequest) -> Iterator[Publishers]:
        """Publishers to the target."""
        if self.IDEMPOTENT and getattr(request.function, "by_ledger", False):
            pytest.skip("needs a ledger beside the rows")
        publishers = Publishers(target)
        yield publishers
        publishers.close()

    # One window

    def test_rows_are_there_once_they_are_committed_and_not_before(self, publishers: Publishers) -> None:
        publishers.publish([], W2)  # the table is there
        sink = publishers.sink()
        assert sink.claim(publishers.claim()) is None
        _write(sink, at([event("a"), event("b")]))
        assert publishers.rows() == {}
        outcome = sink.commit(rejected=3)
        assert (outcome.rows, outcome.written, outcome.rejected) == (2, 2, 3)
        assert publishers.rows() == {"a": "x", "b": "x"}

    @_by_ledger
    def test_the_same_again_is_answered_from_the_ledger(self, publishers: Publishers) -> None:
        first = publishers.publish(at([event("a"), event("a")]), fingerprint="same")
        again = publishers.publish(at([event("b")]), fingerprint="same")
        assert again.reused
        assert (again.rows, again.written, again.duplicates, again.table) == (first.rows, first.written, 1, first.table)
        assert publishers.rows() == {"a": "x"}

    @_by_ledger
    def test_a_redo_replaces_though_nothing_changed(self, publishers: Publishers) -> None:
        publishers.publish(at([event("a", "old"), event("gone")]), fingerprint="same")
        for changes in ({"reuse": False}, {"epoch": 1}):
            assert not publishers.publish(at([event("a", "new")]), fingerprint="same", **changes).reused
            assert publishers.rows() == {"a": "new"}

    @_by_ledger
    def test_replaced_shrunk_and_emptied(self, publishers: Publishers) -> None:
        assert publishers.publish([]).rows == 0
        publishers.publish(at([event("a"), event("b"), event("c")]))
        publishers.publish(at([event("z")]), W2)
        outcome = publishers.publish(at([event("b", "new"), event("d")]), input_generation=2)
        assert (outcome.written, outcome.removed) == (2, 2)
        assert publishers.rows() == {"b": "new", "d": "x", "z": "x"}
        outcome = publishers.publish(at([event("d", "last")]), input_generation=3)
        assert (outcome.written, outcome.removed) == (1, 1)
        assert publishers.publish([], input_generation=4).removed == 1
        assert publishers.rows() == {"z": "x"}

    @_by_ledger
    def test_an_older_manifest_is_refused(self, publishers: Publishers) -> None:
        publishers.publish(at([event("a")]), input_generation=2)
        with pytest.raises(SinkError, match="it holds generation 2 of its input, this manifest is of the older generation 1"):
            publishers.publish(at([event("b")]), input_generation=1)
        assert publishers.rows() == {"a": "x"}

    def test_without_a_claim_nothing_is_written(self, publishers: Publishers) -> None:
        sink = publishers.sink()
        with pytest.raises(SinkError, match="claim first"):
            sink.write(at([event("a")]))
        with pytest.raises(SinkError, match="claim first"):
            sink.commit(rejected=0)

    @pytest.mark.parametrize("how", ["empty", "drop"])
    def test_a_table_that_was_emptied_or_dropped_is_filled_again(self, publishers: Publishers, how: str) -> None:
        publishers.publish(at([event("a")]), fingerprint="same")
        getattr(publishers.target, how)()
        assert not publishers.publish(at([event("a")]), fingerprint="same").reused
        assert publishers.rows() == {"a": "x"}

    @_by_ledger
    def test_two_stages_of_one_pipeline_keep_each_others_rows(self, publishers: Publishers) -> None:
        publishers.publish(at([event("a")]), stage="one")
        publishers.publish(at([event("b")]), stage="two")
        publishers.publish([], stage="one", input_generation=2)
        assert publishers.rows() == {"b": "x"}

    # What records hold

    def test_what_is_no_row_is_rejected_and_the_rest_lands(self, publishers: Publishers) -> None:
        bad: list[Any] = [b"{broken", b"", b"[1]", b'"text"', b"\xff\xfe", None, {"value": "no key"}, {"id": None}, {"id": 5}]
        bad += [{"id": "v", "version": "one"}, {"id": "v", "version": 2**63}, {"id": "t", "at": "yesterday"}, {"id": {"a": 1}}]
        records = [each for i, e in enumerate(bad) for each in (event(f"good {i}"), e)]
        sink = publishers.sink()
        sink.claim(publishers.claim())
        rejected = sink.write(at(records))
        assert sorted(rejected) == list(range(1, len(records), 2))
        assert {i: r.rule for i, r in rejected.items() if i < 12} == dict.fromkeys(range(1, 12, 2), "decode")
        assert all(r.reason and "\n" not in r.reason for r in rejected.values())
        outcome = sink.commit(rejected=len(rejected))
        assert (outcome.rows, outcome.written, outcome.rejected) == (len(bad), len(bad), len(bad))
        assert publishers.rows().keys() == {f"good {i}" for i in range(len(bad))}

    def test_hostile_texts_come_back_as_they_were(self, publishers: Publishers) -> None:
        texts = list(self.HOSTILE)
        publishers.publish(at([event(f"k{i}", text) for i, text in enumerate(texts)]))
        assert publishers.rows() == {f"k{i}": text for i, text in enumerate(texts)}
        publishers.publish(at([event(text[:500], str(i)) for i, text in enumerate(texts)]), W2)  # as keys, twice
        outcome = publishers.publish(at([event(text[:500], str(i)) for i, text in enumerate(texts)]), W2, input_generation=2)
        assert (outcome.written, outcome.removed) == (len(texts), 0), "the same keys are written over"
        assert {k: v for k, v in publishers.rows().items() if k in {text[:500] for text in texts}} == {
            text[:500]: str(i) for i, text in enumerate(texts)
        }

    def test_strange_names_of_columns_are_written(self, publishers: Publishers) -> None:
        columns = {"id": "text", "value": "text"} | dict.fromkeys(self.NAMES, "bigint")
        publishers.contract = {"name": "n", "id": "id", "version_field": self.NAMES[0], "columns": columns}
        for version, value in ((2, "new"), (1, "old")):
            numbers = {name: version * 10 + i for i, name in enumerate(self.NAMES)}
            publishers.publish(at([{"id": "a", "value": value, **numbers}]), W1 if version == 2 else W2)
        assert publishers.rows() == {"a": "new"}

    # Which row wins

    def test_duplicates_in_a_window_go_by_version_then_time_then_record(self, publishers: Publishers) -> None:
        rows = [
            *at([event("v", "v1", 1, "2026-11-01T09:00:00Z"), event("v", "v2", 2, "2026-11-01T01:00:00Z"), event("v", "null", None, None)]),
            *at([event("t", "late", 1, "2026-11-01T09:00:00Z"), event("t", "early", 1, "2026-11-01T01:00:00Z"), event("t", "null", 1)]),
            *[record(event("c", "p1o0"), 1, 0), record(event("c", "p0o9"), 0, 9), record(event("c", "p1o1"), 1, 1)],
            *[record(event("r", "later"), 0, 3, 9), record(event("r", "earlier"), 1, 9, 8)],
        ]
        outcome = publishers.publish(rows)
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (11, 4, 7, 0)
        assert publishers.rows() == {"v": "v2", "t": "late", "c": "p1o1", "r": "later"}

    def test_what_the_table_has_newer_stays_and_is_counted(self, publishers: Publishers) -> None:
        publishers.publish(at([event("v", "kept", 2), event("t", "kept", 1, "2026-11-01T09:00:00Z"), event("w", "kept")]), W2)
        older = [event("v", "old", 1, "2027-01-01T00:00:00Z"), event("t", "old", 1, "2026-11-01T08:00:00Z")]
        older += [event("w", "old"), event("w", "old")]
        outcome = publishers.publish(at([*older, event("n", "new")]), W1)
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (5, 1, 1, 3)
        assert publishers.rows() == {"v": "kept", "t": "kept", "w": "kept", "n": "new"}

    @pytest.mark.parametrize("timestamps", [(0, 0), (9, 1)], ids=["equal", "a stage wrote again"])
    def test_with_all_equal_the_later_window_wins_whatever_came_first(self, publishers: Publishers, timestamps: tuple[int, int]) -> None:
        for order in ((W1, W2), (W2, W1)):
            for window in order:
                publishers.publish([record(event("k", window), 0, 0, timestamps[window == W2])], window)
            assert publishers.rows() == {"k": W2}

    @pytest.mark.parametrize("windows", [(W1, W1), ("run-b p", "run-a p"), ("live-2 p", "live-1 p")], ids=["one", "since_last", "live"])
    @pytest.mark.parametrize("turned", [False, True], ids=["in order", "out of order"])
    def test_without_version_or_time_the_later_record_wins_whatever_its_partition(
        self, publishers: Publishers, windows: tuple[str, str], turned: bool
    ) -> None:
        publishers.contract = {"name": "n", "id": "id", "columns": {"id": "text", "value": "text"}}
        earlier, later = (record(event("k", v), p, o, t) for v, p, o, t in (("earlier", 3, 7, 1000), ("later", 0, 2, 2000)))
        if windows[0] == windows[1]:
            assert publishers.publish([later, earlier] if turned else [earlier, later]).duplicates == 1
        else:
            publications = [([earlier], windows[0]), ([later], windows[1])]
            for rows, window in reversed(publications) if turned else publications:
                publishers.publish(rows, window)
        assert publishers.rows() == {"k": "later"}

    @pytest.mark.parametrize("timestamps", [(2, 1), (0, 0)], ids=["by the record's time", "by the partition"])
    def test_between_shards_the_later_record_wins_whoever_commits_last(self, publishers: Publishers, timestamps: tuple[int, int]) -> None:
        for order in ((0, 1), (1, 0)):
            for i in order:
                publishers.publish([record(event("k", f"partition {i}"), i, 0, timestamps[i])], shard=Shard(i, 2))
            assert publishers.rows() == {"k": "partition 0" if timestamps[0] > timestamps[1] else "partition 1"}

    def test_a_version_is_compared_as_its_column_is(self, publishers: Publishers) -> None:
        for i, (type_, least, more, most) in enumerate(self.VERSIONS):
            if i:
                publishers.target.drop()
            publishers.contract = {"name": "n", "id": "id", "version_field": "v", "columns": {"id": "text", "value": "text", "v": type_}}
            publishers.publish(at([{"id": "a", "v": more, "value": "more"}, {"id": "a", "v": least, "value": "least"}]), W2)
            assert publishers.publish(at([{"id": "a", "v": least, "value": "least"}]), W1).older == 1, type_
            assert publishers.rows() == {"a": "more"}, type_
            publishers.publish(at([{"id": "a", "v": most, "value": "most"}]), W1)
            assert publishers.rows() == {"a": "most"}, type_

    def test_a_key_of_several_columns_is_compared_as_they_are(self, publishers: Publishers) -> None:
        publishers.contract = {"name": "n", "key": ["n", "id"], "columns": {"n": "numeric", "id": "text", "value": "text"}}
        outcome = publishers.publish(at([{"n": "1.0", "id": "", "value": "first"}, {"n": 1, "id": "", "value": "second"}]))
        assert (outcome.written, outcome.duplicates) == (1, 1)
        assert publishers.rows() == {"": "second"}

    @_by_ledger
    def test_a_new_generation_of_the_window_replaces_even_by_a_lower_version(self, publishers: Publishers) -> None:
        publishers.publish(at([event("k", "first", 9)]))
        publishers.publish(at([event("k", "second", 1)]), input_generation=2)
        assert publishers.rows() == {"k": "second"}

    @_by_ledger
    def test_any_history_of_publications_leaves_what_the_rules_say(self, publishers: Publishers) -> None:
        for seed in range(self.HISTORIES):
            if seed:
                publishers.target.drop()
            publishers.generation, model = 0, Model()
            pipeline = f"p{seed}"
            for window, (index, of), input_generation, events in random_history(random.Random(seed)):
                window = window.replace(" p", f" {pipeline}")
                rows = [(e, index + of * p, offset, timestamp) for offset, (e, p, timestamp) in enumerate(events)]
                expected = model.publish(window, (index, of), input_generation, publishers.generation + 1, rows)
                changes: dict[str, Any] = {"plan": f"{input_generation}/{of}", "input_generation": input_generation}
                records = [record(*row) for row in rows]
                if expected is None:
                    with pytest.raises(SinkError, match="older generation"):
                        publishers.publish(records, window, Shard(index, of), **changes)
                    continue
                outcome = publishers.publish(records, window, Shard(index, of), **changes)
                assert (outcome.written, outcome.duplicates, outcome.older, outcome.removed) == expected, f"history {seed}"
                found = sorted(tuple(row) for row in publishers.target.rows("id", "value", "version"))
                wanted = [(k, r["event"]["value"], r["event"]["version"]) for k, r in sorted(model.table.items())]
                assert found == wanted, f"history {seed}"

    # Several at once

    def test_shards_at_once_all_land(self, publishers: Publishers) -> None:
        publishers.publish([], W2)  # the table is there
        shards = [Shard(i, 3) for i in range(3)]
        with ThreadPoolExecutor(3) as pool:
            outcomes = list(pool.map(lambda s: publishers.publish(at([event(f"{s.index}"), event("k")], s.index), shard=s), shards))
        assert sum(o.written for o in outcomes) + sum(o.older for o in outcomes) == 6
        assert publishers.rows().keys() == {"0", "1", "2", "k"}

    @_by_ledger
    def test_three_shards_planned_again_as_two_replace_all_when_the_last_one_is_there(self, publishers: Publishers) -> None:
        for i in range(3):
            publishers.publish(at([event(f"old{i}"), event(f"k{i}", "old")], i), shard=Shard(i, 3), plan="three")
        first = publishers.publish(at([event("k0", "new")], 0), shard=Shard(0, 2), plan="two", input_generation=2)
        assert first.removed == 0
        second = publishers.publish(at([event("k1", "new")], 1), shard=Shard(1, 2), plan="two", input_generation=2)
        assert second.removed == 4
        assert publishers.rows() == {"k0": "new", "k1": "new"}

    @_by_ledger
    def test_a_zombie_is_fenced_before_and_after_its_successor_lands(self, publishers: Publishers) -> None:
        zombies, newer = [publishers.sink() for _ in range(2)], publishers.sink()
        for zombie in zombies:
            zombie.claim(publishers.claim())
        newer.claim(publishers.claim())
        with pytest.raises(FencedError, match=r"shard 0of1: a newer attempt took over; this one stops and publishes nothing"):
            _write_and_commit(zombies[0], at([event("a", "zombie"), event("z")]))
        _write_and_commit(newer, at([event("a", "newer")]))
        with pytest.raises(FencedError):
            _write_and_commit(zombies[1], at([event("a", "zombie"), event("z")]))
        assert publishers.rows() == {"a": "newer"}

    @_by_ledger
    def test_a_zombie_of_another_shard_count_is_fenced(self, publishers: Publishers) -> None:
        zombie = publishers.sink()
        zombie.claim(publishers.claim(shard=Shard(1, 2), plan="two"))
        publishers.publish(at([event("a")]), plan="one")
        with pytest.raises(FencedError):
            _write_and_commit(zombie, at([event("z")]))
        assert publishers.rows() == {"a": "x"}

    @_by_ledger
    def test_of_many_claims_at_once_one_lands(self, publishers: Publishers) -> None:
        """The first claims of a window, of which the ledger knows nothing: one of them is the last, and it alone lands."""
        publishers.publish([], W2)
        claims = [publishers.claim() for _ in range(4)]

        def attempt(i: int) -> str:
            with publishers.attempt() as sink:
                try:
                    sink.claim(claims[i])
                    _write_and_commit(sink, at([event("a", str(i)), event(f"only {i}")]))
                except FencedError:
                    return "fenced"
                return "landed"

        with ThreadPoolExecutor(4) as pool:
            ends = list(pool.map(attempt, range(4)))
        rows = publishers.rows()
        whole = [i for i in range(4) if rows == {"a": str(i), f"only {i}": "x"}]
        assert [ends[i] for i in whole] == ["landed"], (ends, rows)

    def test_two_windows_that_hold_each_others_keys_both_land(self, publishers: Publishers) -> None:
        publishers.publish([], W1, stage="before")
        claims = {"w1": publishers.claim(W1), "w2": publishers.claim(W2)}
        claimed = Barrier(2)

        def attempt(name: str) -> SinkOutcome:
            with publishers.attempt() as sink:
                sink.claim(claims[name])
                claimed.wait(60)
                return _write_and_commit(sink, at([event("a", name), event("b", name)]))

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(attempt, claims))
        assert [o.written + o.older for o in outcomes] == [2, 2]
        assert publishers.rows() == {"a": "w2", "b": "w2"}

    # What the ledger forgets

    @_by_ledger
    def test_windows_below_the_mark_are_forgotten_refused_and_keep_their_rows(self, publishers: Publishers) -> None:
        for n in range(3):
            publishers.publish(at([event(f"h{n}", "old"), event(f"only {n}")]), _hour(n), origin="raw")
        publishers.publish(at([event("other")]), f"{_interval(0).key} p other", origin="other")
        with publishers.attempt() as sink:
            _needs_forgetting(sink)
            sink.claim(publishers.claim(_hour(3), origin="raw"))
            sink.commit(rejected=0)
            assert sink.prune(lambda: _mark(2)) == 2
            assert sink.prune(lambda: _mark(3)) == 0  # once a day
        rows = publishers.rows()
        for n in range(2):
            with pytest.raises(WindowError, match="was pruned"):
                publishers.publish(at([event(f"h{n}", "new")]), _hour(n), origin="raw")
        assert publishers.rows() == rows
        assert publishers.publish(at([event("h2", "new")]), _hour(2), origin="raw").removed == 1  # "only 2", which it no longer has
        publishers.publish(at([event("other", "new")]), f"{_interval(0).key} p other", origin="other")
        publishers.publish(at([event("h0", "new")]), _hour(0), origin="raw", stage="again")
        assert publishers.rows() == {"h0": "new", "only 0": "x", "h1": "old", "only 1": "x", "h2": "new", "other": "new"}

    @_by_ledger
    def test_who_claimed_a_window_that_is_forgotten_is_fenced(self, publishers: Publishers) -> None:
        publishers.publish(at([event("a")]), _hour(0), origin="raw")
        zombies = [publishers.sink() for _ in range(2)]
        for n, zombie in enumerate(zombies):  # of a window that was landed, and of one that was not
            _needs_forgetting(zombie)
            assert zombie.claim(publishers.claim(_hour(n), origin="raw")) is None
            _write(zombie, at([event("late")]))
        with publishers.attempt() as sink:
            sink.claim(publishers.claim(_hour(2), origin="raw"))
            _write_and_commit(sink, at([event("b")]))
            assert sink.prune(lambda: _mark(2)) == 2
        for zombie in zombies:
            with pytest.raises(FencedError):
                zombie.commit(rejected=0)
        assert publishers.rows() == {"a": "x", "b": "x"}

    # Whoever dies

    @_by_ledger
    @pytest.mark.parametrize("first", range(APART))
    def test_a_publisher_that_dies_at_any_step_is_completed_by_the_next_one(
        self, publishers: Publishers, monkeypatch: pytest.MonkeyPatch, first: int
    ) -> None:
        """A window replaced again and again, each time by a publisher that dies some steps later, and by the one after it."""
        publishers.publish(at([event("k", "old"), event("stale")]))
        step, died = first, True
        while died:
            rows = at([event("k", str(step)), event(f"only {step}"), event("k", "last")] * 2)
            same: dict[str, Any] = {"fingerprint": f"step {step}", "input_generation": 2 + step}
            died = dies(publishers, monkeypatch, step, rows, same)
            landed = f"only {step}" in publishers.rows()
            outcome = publishers.publish(rows, **same)
            # What was under way may land after we looked, until the next claim; that it did, the rows below say.
            assert outcome.reused or not landed, f"step {step}"
            assert (outcome.rows, outcome.written, outcome.duplicates, outcome.removed) == (6, 2, 4, 1), f"step {step}"
            assert publishers.rows() == {"k": "last", f"only {step}": "x"}, f"step {step}"
            step += APART
