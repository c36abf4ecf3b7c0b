"""Who may write a shard, and whose rows are whose."""

from __future__ import annotations

import random
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from factory_agents import failpoints
from factory_agents.errors import FencedError, SinkError
from factory_agents.protocol import Shard
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim, SinkOutcome
from factory_agents.sinks.postgres.ledger import Acquired, Ledger
from tests.support.sink_bench import CONTRACT, W1, W2, WHOLE, Bench, at, event, record, write_and_commit
from tests.support.waiting import wait_for


class TestShards:
    def test_shards_in_parallel_all_land(self, bench: Bench) -> None:
        def one(i: int) -> SinkOutcome:
            sink = build({"table": bench.name, "contract": CONTRACT})
            try:
                sink.claim(Claim(bench.pipeline, "publish", W1, Shard(i, 8), "plan", "f", 1, 1))
                keys = [f"k{n}" for n in range(300)]
                random.Random(i).shuffle(keys)
                sink.write([record(event(k, str(i)), i, n) for n, k in enumerate(keys)])
                return sink.commit(rejected=0)
            finally:
                sink.close()

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(one, range(8)))
        assert all(o.rows == o.written + o.duplicates + o.older == 300 for o in outcomes)
        assert set(bench.rows().values()) == {"7"}
        assert len(bench.rows()) == 300

    @pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2), (2, 4)])
    def test_another_number_of_shards_replaces_all_when_its_last_one_is_there(self, bench: Bench, before: int, after: int) -> None:
        for i in range(before):
            bench.publish(at([event(f"k{i}"), event(f"gone{i}")], partition=i), shard=Shard(i, before), plan="one")
        removed = []
        for i in range(after):
            rows = at([event(f"k{n}") for n in range(before) if n % after == i], partition=i)
            removed.append(bench.publish(rows, shard=Shard(i, after), plan="two", input_generation=2).removed)
            assert {f"k{i}" for i in range(before)} <= set(bench.rows()), "no reader misses a row on its way between shards"
        assert removed == [0] * (after - 1) + [before]
        assert set(bench.rows()) == {f"k{i}" for i in range(before)}

    def test_one_shard_done_again_removes_its_own_at_once(self, bench: Bench) -> None:
        for i in range(3):
            bench.publish(at([event(f"a{i}"), event(f"b{i}")], partition=i), shard=Shard(i, 3))
        assert bench.publish(at([event("a1")], partition=1), shard=Shard(1, 3)).removed == 1
        assert set(bench.rows()) == {"a0", "b0", "a1", "a2", "b2"}

    def test_the_last_two_shards_at_once_sweep_all_the_same(self, bench: Bench) -> None:
        bench.publish(at([event("a"), event("gone")]))
        sinks = [bench.sink(), bench.sink()]
        for i, sink in enumerate(sinks):
            sink.claim(bench.claim(shard=Shard(i, 2), plan="two", input_generation=2))
            sink.write(at([event("a" if i == 0 else "b")], partition=i))
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda s: s.commit(rejected=0), sinks))
        assert sum(o.removed for o in outcomes) == 1
        assert set(bench.rows()) == {"a", "b"}

    def test_two_stages_of_one_pipeline_keep_each_others_rows(self, bench: Bench) -> None:
        for stage in ("clicks", "views", "clicks", "views"):
            sink = bench.sink()
            sink.claim(Claim(bench.pipeline, stage, W1, Shard(), "plan", secrets.token_hex(4), 1, 1))
            sink.write(at([event(stage)]))
            sink.commit(rejected=0)
        assert set(bench.rows()) == {"clicks", "views"}


class TestFencing:
    def test_a_zombie_is_fenced_at_its_commit(self, bench: Bench) -> None:
        zombie, newer = bench.sink(), bench.sink()
        zombie.claim(bench.claim(fingerprint="old"))
        zombie.write(at([event("a", "zombie"), event("b", "zombie")]))
        newer.claim(bench.claim(fingerprint="new"))
        newer.write(at([event("a", "newer")]))
        with pytest.raises(FencedError, match="newer attempt took over"):
            zombie.commit(rejected=0)
        newer.commit(rejected=0)
        assert bench.rows() == {"a": "newer"}
        with pytest.raises(SinkError):
            zombie.commit(rejected=0)

    def test_a_zombie_after_the_newer_ones_commit_is_fenced_too(self, bench: Bench) -> None:
        zombie = bench.sink()
        zombie.claim(bench.claim(fingerprint="old"))
        zombie.write(at([event("z")]))
        bench.publish(at([event("a")]))
        with pytest.raises(FencedError):
            zombie.commit(rejected=0)
        assert list(bench.rows()) == ["a"]

    def test_a_zombie_of_another_shard_count_is_fenced(self, bench: Bench) -> None:
        zombie = bench.sink()
        zombie.claim(bench.claim(shard=Shard(3, 4), plan="four"))
        zombie.write(at([event("z")], partition=3))
        bench.publish(at([event("a")]), plan="one", input_generation=2)
        with pytest.raises(FencedError):
            zombie.commit(rejected=0)
        assert list(bench.rows()) == ["a"]

    def test_two_publishers_of_one_window_leave_one_whole_publication(self, bench: Bench) -> None:
        bench.publish([])
        started = threading.Barrier(4)

        def one(i: int) -> str:
            sink = build({"table": bench.name, "contract": CONTRACT})
            try:
                started.wait()
                sink.claim(Claim(bench.pipeline, "publish", W1, Shard(), "plan", f"mine {i}", 1, 100 + i))
                sink.write(at([event(f"k{n}", str(i)) for n in range(50)]))
                sink.commit(rejected=0)
                return "committed"
            except FencedError:
                return "fenced"
            finally:
                sink.close()

        with ThreadPoolExecutor(4) as pool:
            ends = list(pool.map(one, range(4)))
        assert "committed" in ends
        assert len(set(bench.rows().values())) == 1
        assert len(bench.rows()) == 50

    def test_a_zombie_holds_no_key_against_its_successor(self, bench: Bench) -> None:
        zombie, newer = bench.sink(), bench.sink(lock_timeout=5)
        zombie.claim(bench.claim(fingerprint="old"))
        for key in "abc":
            zombie.write(at([event(key, "zombie")]))
        newer.claim(bench.claim(fingerprint="new"))
        newer.write(at([event("a", "newer"), event("b", "newer")]))
        newer.commit(rejected=0)
        with pytest.raises(FencedError, match="newer attempt took over"):
            write_and_commit(zombie, at([event("d", "zombie")]))
        assert bench.rows() == {"a": "newer", "b": "newer"}

    def test_a_zombie_that_stands_still_before_its_commit_is_ended(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        zombie, arrived, go = bench.sink(), threading.Event(), threading.Event()
        zombie.claim(bench.claim(fingerprint="old"))
        zombie.write(at([event("a", "zombie")]))

        def hit(name: str) -> None:
            if name == "postgres.before-commit" and not arrived.is_set():
                arrived.set()
                assert go.wait(20)

        monkeypatch.setattr(failpoints, "hit", hit)
        with ThreadPoolExecutor(1) as pool:
            end = pool.submit(zombie.commit, rejected=0)
            assert arrived.wait(20)
            bench.publish(at([event("a", "newer")]))
            go.set()
            with pytest.raises(FencedError, match="newer attempt took over"):
                end.result()
        assert bench.rows() == {"a": "newer"}

    def test_a_session_that_a_claim_under_way_has_ended_waits_to_be_told_so(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        zombie, newer = bench.sink(), bench.sink()
        zombie.claim(bench.claim(fingerprint="old"))
        zombie.write(at([event("a", "zombie")]))
        acquire, acquired, go = Ledger.acquire, threading.Event(), threading.Event()

        def slowly(ledger: Ledger) -> Acquired:
            outcome = acquire(ledger)
            acquired.set()
            assert go.wait(30)
            return outcome

        monkeypatch.setattr(Ledger, "acquire", slowly)
        with ThreadPoolExecutor(2) as pool:
            claiming = pool.submit(newer.claim, bench.claim(fingerprint="new"))
            assert acquired.wait(30)
            ending = pool.submit(zombie.commit, rejected=0)
            wait_for(bench.waits_for_lock, "a session to wait for a lock")
            go.set()
            with pytest.raises(FencedError):
                ending.result()
            assert claiming.result() is None

    def test_another_windows_publisher_is_left_alone(self, bench: Bench) -> None:
        sinks = [(bench.sink(), w, s) for w, s in ((W1, Shard(0, 2)), (W1, Shard(1, 2)), (W2, WHOLE))]
        for i, (sink, window, shard) in enumerate(sinks):
            sink.claim(bench.claim(window, shard))
            sink.write(at([event(f"k{i}")], partition=shard.index))
        assert [sink.commit(rejected=0).written for sink, _, _ in sinks] == [1, 1, 1]


TWO = [event("a", "1"), event("b", "2")]
EMPTYINGS = {
    "dropped": "DROP TABLE {t}",
    "dropped and created again": "CREATE TABLE copy_{t} (LIKE {t} INCLUDING ALL); DROP TABLE {t}; ALTER TABLE copy_{t} RENAME TO {t}",
    "truncated": "TRUNCATE {t}",
    "emptied": "DELETE FROM {t}",
    "renamed": "ALTER TABLE {t} RENAME TO old_{t}",
    "restored": "CREATE TABLE b_{t} AS TABLE {t} WITH NO DATA; TRUNCATE {t}; INSERT INTO {t} SELECT * FROM b_{t}",
}


class TestATableThatIsNoLongerTheOne:
    """The ledger says what was committed, and of which table: never a success over rows that are gone."""

    def run(self, bench: Bench, statements: str) -> None:
        for statement in statements.replace("{t}", bench.name).split("; "):
            bench.admin.execute(statement)  # type: ignore[arg-type]

    @pytest.mark.parametrize("how", EMPTYINGS)
    @pytest.mark.parametrize("tracked", [True, False], ids=["ours", "theirs"])
    def test_is_published_to_again(self, bench: Bench, how: str, tracked: bool) -> None:
        if not tracked:
            bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, value text, version int8, at timestamptz)")
        bench.publish(at(TWO), fingerprint="f")
        self.run(bench, EMPTYINGS[how])
        outcome = bench.publish(at(TWO), fingerprint="f")
        assert (outcome.reused, outcome.written, outcome.removed) == (False, 2, 0)
        assert bench.rows() == {"a": "1", "b": "2"}
        assert bench.publish(at(TWO), fingerprint="f").reused

    @pytest.mark.parametrize("rename", [False, True], ids=["dropped", "renamed"])
    def test_by_a_column_that_was_made_again(self, bench: Bench, rename: bool) -> None:
        bench.publish(at(TWO), fingerprint="f")
        self.run(bench, "ALTER TABLE {t} ADD COLUMN theirs text; ALTER TABLE {t} DROP COLUMN theirs")
        assert bench.publish(at(TWO), fingerprint="f").reused
        self.run(bench, f"ALTER TABLE {{t}} {'RENAME value TO former' if rename else 'DROP value'}; ALTER TABLE {{t}} ADD value text")
        outcome = bench.publish(at(TWO), fingerprint="f")
        assert (outcome.reused, outcome.written, outcome.removed) == (False, 2, 0)
        assert bench.rows() == {"a": "1", "b": "2"}
        assert bench.publish(at(TWO), fingerprint="f").reused

    def test_by_a_column_that_was_added_where_the_table_says_what_is_written(self, bench: Bench) -> None:
        bench.admin.execute(f"CREATE TABLE {bench.name} (id text PRIMARY KEY, version int8)")
        bench.contract = None
        bench.publish(at(TWO), fingerprint="f")
        self.run(bench, "ALTER TABLE {t} ADD value text")
        assert bench.publish(at(TWO), fingerprint="f").written == 2
        assert bench.rows() == {"a": "1", "b": "2"}
        assert bench.publish(at(TWO), fingerprint="f").reused

    def test_nor_by_rows_of_other_windows(self, bench: Bench) -> None:
        bench.publish(at(TWO), window=W1, fingerprint="f")
        bench.publish(at([event("c")]), window=W2, fingerprint="f")
        self.run(bench, "TRUNCATE {t}")
        bench.publish(at([event("c")]), window=W2, fingerprint="f")
        assert not bench.publish(at(TWO), window=W1, fingerprint="f").reused
        assert set(bench.rows()) == {"a", "b", "c"}

    def test_each_shard_is_published_again(self, bench: Bench) -> None:
        for empty in ("TRUNCATE {t}", "SELECT 1"):
            for i in range(2):
                outcome = bench.publish(at([event(f"k{i}")], partition=i), shard=Shard(i, 2), fingerprint="f")
                assert not outcome.reused
            assert set(bench.rows()) == {"k0", "k1"}
            self.run(bench, empty)
            if empty == "SELECT 1":
                break

    def test_by_a_partition_that_was_detached(self, bench: Bench) -> None:
        bench.admin.execute(
            f"CREATE TABLE {bench.name} (id text PRIMARY KEY, value text, version int8, at timestamptz) PARTITION BY LIST (id)"
        )
        for key in ("a", "b", "c"):
            bench.admin.execute(f"CREATE TABLE {bench.name}_{key} PARTITION OF {bench.name} FOR VALUES IN ('{key}')")
        bench.publish(at(TWO), fingerprint="f")
        self.run(bench, "CREATE TABLE {t}_d PARTITION OF {t} FOR VALUES IN ('d')")
        assert bench.publish(at(TWO), fingerprint="f").reused
        self.run(bench, "ALTER TABLE {t} DETACH PARTITION {t}_b; CREATE TABLE {t}_b2 PARTITION OF {t} FOR VALUES IN ('b')")
        assert bench.publish(at(TWO), fingerprint="f").written == 2
        assert bench.rows() == {"a": "1", "b": "2"}

    def test_of_another_schema_has_a_ledger_of_its_own(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.publish(at(TWO), fingerprint="f")
        bench.admin.execute(f"CREATE SCHEMA s_{bench.name}")
        monkeypatch.setenv("DATABASE_URL", f"{bench.url}?options=-csearch_path%3Ds_{bench.name}")
        outcome = bench.publish(at(TWO), fingerprint="f")
        assert (outcome.reused, outcome.table) == (False, f"s_{bench.name}.{bench.name}")

    def test_an_empty_window_is_reused_whatever_became_of_the_table(self, bench: Bench) -> None:
        bench.publish([], fingerprint="f")
        assert bench.publish([], fingerprint="f").reused

    def test_an_entry_that_does_not_know_its_table_is_judged_by_its_rows(self, bench: Bench) -> None:
        """As earlier releases wrote them."""
        bench.publish(at(TWO), fingerprint="f")
        bench.admin.execute("UPDATE factory_publishes SET relations = NULL WHERE table_name = %s", [bench.name])
        assert bench.publish(at(TWO), fingerprint="f").reused
        self.run(bench, "TRUNCATE {t}")
        assert bench.publish(at(TWO), fingerprint="f").written == 2

    def test_made_by_an_earlier_release_is_brought_up_to_date(self, bench: Bench) -> None:
        bench.publish(at([event("a", "old")]))
        bench.admin.execute(f"ALTER TABLE {bench.name} DROP COLUMN _factory_timestamp")
        bench.admin.execute("ALTER TABLE factory_publishes DROP COLUMN relations")
        bench.publish([record(event("a", "new"), 0, 0, timestamp=1), record(event("b"), 0, 1)], window=W2)
        assert bench.rows() == {"a": "new", "b": "x"}
