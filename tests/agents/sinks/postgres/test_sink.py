"""Publishing one window, and what happens when the database doesn't play along."""

from __future__ import annotations

import contextlib
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar

import psycopg
import pytest
from psycopg import sql

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, FactoryError, SinkError, UnavailableError
from factory_agents.protocol import Shard
from factory_agents.runtime.agents import RowsRefused
from tests.support.sink_bench import W1, W2, Bench, CuttingProxy, SmallDisk, at, event, holding_proxy, write_and_commit
from tests.support.waiting import wait_for


class TestOneWindow:
    def test_rows_are_there_once_they_are_committed_and_not_before(self, bench: Bench) -> None:
        sink = bench.sink()
        assert sink.claim(bench.claim()) is None
        sink.write(at([event("a", "1"), event("b", "2")]))
        assert bench.rows() == {}
        outcome = sink.commit(rejected=3)
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older, outcome.removed, outcome.rejected) == (2, 2, 0, 0, 0, 3)
        assert bench.rows() == {"a": "1", "b": "2"}

    def test_the_same_again_is_answered_from_the_ledger(self, bench: Bench) -> None:
        first = bench.publish(at([event("a")]), fingerprint="f")
        again = bench.sink().claim(bench.claim(fingerprint="f"))
        assert again == replace(first, reused=True)

    def test_a_redo_or_a_later_epoch_or_another_fingerprint_is_done_again_and_changes_nothing_visible(self, bench: Bench) -> None:
        rows = at([event("a", "1", 1, "2026-11-01T00:00:00Z"), event("b", "2")])
        bench.publish(rows, fingerprint="f")
        before = bench.content()
        for changes in ({"reuse": False}, {"epoch": 1}, {"fingerprint": "g"}):
            outcome = bench.publish(rows, **({"fingerprint": "f"} | changes))
            assert (outcome.reused, outcome.written, outcome.removed) == (False, 2, 0), changes
            assert bench.content() == before
        assert bench.sink().claim(bench.claim(fingerprint="g", epoch=0)).reused

    def test_a_new_generation_removes_what_the_window_no_longer_produces(self, bench: Bench) -> None:
        bench.publish(at([event("a", "1"), event("b", "2")]))
        bench.publish(at([event("c", "3")]), window=W2)
        outcome = bench.publish(at([event("a", "changed")]), input_generation=2)
        assert (outcome.written, outcome.removed) == (1, 1)
        assert bench.rows() == {"a": "changed", "c": "3"}

    def test_an_older_manifest_is_refused_by_both_generations(self, bench: Bench) -> None:
        bench.publish(at([event("a", "new")]), input_generation=7)
        for shard in (Shard(), Shard(1, 3)):
            with pytest.raises(SinkError, match=r"generation 7.*older generation 5"):
                bench.publish(at([event("a", "old")]), input_generation=5, shard=shard, plan="other")
        assert bench.rows() == {"a": "new"}

    def test_an_empty_window_is_committed_and_empties_what_it_had(self, bench: Bench) -> None:
        assert bench.publish([]).rows == 0
        bench.publish(at([event("a")]))
        assert bench.publish([]).removed == 1
        assert bench.rows() == {}

    def test_a_claim_may_be_made_again_by_the_same_sink(self, bench: Bench) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("lost")]))
        sink.claim(bench.claim())
        sink.write(at([event("kept")]))
        sink.commit(rejected=0)
        assert list(bench.rows()) == ["kept"]

    def test_without_a_claim_nothing_is_written(self, bench: Bench) -> None:
        with pytest.raises(SinkError, match="claim first"):
            bench.sink().write(at([event("a")]))


class TestTheDatabaseFails:
    @pytest.mark.parametrize("step", ["claimed", "copying", "written", "changing-over", "before-merge", "before-commit"])
    def test_a_connection_dropped_before_the_commit_leaves_nothing_and_a_retry_succeeds(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        bench.publish(at([event("before")]), window=W2)
        monkeypatch.setattr(failpoints, "hit", lambda name: bench.terminate() if name == f"postgres.{step}" else None)
        sink = bench.sink()

        def publish() -> None:
            sink.claim(bench.claim())
            sink.write(at([event("a"), event("b")]))
            sink.write(at([event("c")]))
            if step == "changing-over":
                sink.write(at([event("before", "again")]))
            if step == "written":
                bench.terminate()
            sink.commit(rejected=0)

        with pytest.raises(UnavailableError) as caught:
            publish()
        assert caught.value.retriable
        assert list(bench.rows()) == ["before"]
        monkeypatch.undo()
        monkeypatch.setenv("DATABASE_URL", bench.url)
        assert bench.publish(at([event("a"), event("b")])).written == 2
        assert set(bench.rows()) == {"a", "b", "before"}

    @pytest.mark.parametrize("before_it", [True, False], ids=["not sent", "not answered"])
    def test_a_connection_lost_at_anything_that_is_sent_is_made_good_by_the_next_attempt(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, before_it: bool
    ) -> None:
        bench.publish(at([event("k", "old"), event("stale")]))
        place, lost = 0, True
        while lost:
            place += 1
            rows = at([event("k", str(place)), event(f"only {place}"), event("k", "last")])
            same: dict[str, Any] = {"fingerprint": f"place {place}", "input_generation": 2 + place}
            proxy = CuttingProxy(bench.url, place, before_it=before_it)
            monkeypatch.setenv("DATABASE_URL", proxy.url)
            with contextlib.suppress(UnavailableError):
                bench.publish(rows, **same)
            lost = proxy.sent >= place
            proxy.close()
            monkeypatch.setenv("DATABASE_URL", bench.url)
            outcome = bench.publish(rows, **same)
            assert (outcome.rows, outcome.written, outcome.duplicates, outcome.removed) == (3, 2, 1, 1), place
            assert bench.rows() == {"k": "last", f"only {place}": "x"}, place
        assert place > 30

    @pytest.mark.parametrize("made", [True, False])
    def test_a_lost_answer_to_the_commit_is_asked_of_the_ledger(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        real = psycopg.Connection.commit

        def commit(connection: psycopg.Connection[Any]) -> None:
            if made:
                real(connection)
            monkeypatch.undo()
            monkeypatch.setenv("DATABASE_URL", bench.url)
            bench.terminate()
            connection.execute("SELECT 1")

        monkeypatch.setattr(psycopg.Connection, "commit", commit)
        if made:
            assert sink.commit(rejected=0).written == 1
            assert list(bench.rows()) == ["a"]
        else:
            with pytest.raises(UnavailableError, match="was not made"):
                sink.commit(rejected=0)
            assert bench.rows() == {}

    def test_an_answer_held_on_its_way_is_given_up_and_asked_for_again(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        with holding_proxy(bench.url) as (url, hold):
            monkeypatch.setenv("DATABASE_URL", url)
            monkeypatch.setattr("factory_agents.sinks.postgres.sink._ON_THE_WAY", 0.2)
            monkeypatch.setattr(failpoints, "hit", lambda name: hold.set() if name == "postgres.before-commit" else None)
            sink = bench.sink(statement_timeout=0.2)
            sink.claim(bench.claim())
            sink.write(at([event("a")]))
            assert sink.commit(rejected=0).written == 1
        assert list(bench.rows()) == ["a"]

    def test_a_deadlock_ends_whoever_is_chosen_and_the_publication_lands(self, bench: Bench) -> None:
        bench.publish(at([event("a", "0"), event("b", "0")]), window=W1)
        sink = bench.sink()
        sink.claim(bench.claim(window=W2))
        sink.write(at([event("a", "1"), event("b", "1")]))
        table = sql.Identifier(bench.name)
        with psycopg.connect(bench.url) as other, ThreadPoolExecutor(1) as pool:
            other.execute(sql.SQL("UPDATE {} SET value = 'other' WHERE id = 'b'").format(table))
            committing = pool.submit(sink.commit, rejected=0)
            wait_for(bench.waits_for_lock, "a session to wait for a lock")
            with contextlib.suppress(psycopg.errors.DeadlockDetected):  # mostly the publisher, which waits longer, gives way
                other.execute(sql.SQL("UPDATE {} SET value = 'other' WHERE id = 'a'").format(table))
            other.rollback()
            assert committing.result().written == 2
        assert bench.rows() == {"a": "1", "b": "1"}

    @pytest.mark.parametrize("code", ["40001", "40P01"])
    @pytest.mark.parametrize("again", [False, True], ids=["straight in", "merged"])
    def test_a_transaction_that_the_server_gives_up_is_tried_again(self, bench: Bench, code: str, again: bool) -> None:
        bench.publish(at([event("a", "before")]) if again else [])
        bench.admin.execute(f"""
            CREATE SEQUENCE {bench.name}_tries;
            CREATE FUNCTION {bench.name}_fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('{bench.name}_tries') <= 2 THEN RAISE 'in the way' USING ERRCODE = '{code}'; END IF;
                RETURN new;
            END $$;
            CREATE TRIGGER t BEFORE INSERT ON {bench.name} FOR EACH ROW EXECUTE FUNCTION {bench.name}_fail();
        """)
        assert bench.publish(at([event("a", "1"), event("b", "2")]), window=W1 if again else W2).written == 2
        assert bench.rows() == {"a": "1", "b": "2"}

    def test_a_full_disk_says_so_and_a_retry_after_it_lands_all(self, bench: Bench, small_disk: SmallDisk) -> None:
        columns = f"id text PRIMARY KEY USING INDEX TABLESPACE {small_disk.name}, value text, version int8, at timestamptz"
        bench.admin.execute(f"CREATE TABLE {bench.name} ({columns}) TABLESPACE {small_disk.name}")
        rows = at([event(f"k{i}", secrets.token_hex(2000)) for i in range(1000)])
        sink = bench.sink()
        sink.claim(bench.claim())
        with pytest.raises(UnavailableError, match="disk is full") as caught:
            write_and_commit(sink, rows)
        assert caught.value.retriable
        assert bench.rows() == {}
        small_disk.grow()
        sink.claim(bench.claim())
        assert write_and_commit(sink, rows).written == 1000

    def test_a_table_locked_for_a_while_is_waited_for(self, bench: Bench) -> None:
        bench.publish(at([event("a")]))
        table = sql.Identifier(bench.name)
        for window, key in ((W1, "a"), (W2, "b")):
            sink = bench.sink()
            sink.claim(bench.claim(window))
            with psycopg.connect(bench.url) as other, ThreadPoolExecutor(1) as pool:
                other.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(table))
                end = pool.submit(write_and_commit, sink, at([event(key, window)]))
                wait_for(bench.waits_for_lock, "a session to wait for a lock")
                other.rollback()
                assert end.result().written == 1
        assert bench.rows() == {"a": W1, "b": W2}

    def test_a_lock_held_by_another_is_named_with_its_holder(self, bench: Bench) -> None:
        bench.publish(at([event("a")]))
        sink = bench.sink(lock_timeout=0.1)
        sink.claim(bench.claim())
        sink.write(at([event("b")]))
        with psycopg.connect(bench.url, application_name="nightly vacuum") as other:
            other.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(sql.Identifier(bench.name)))
            with pytest.raises(UnavailableError, match=rf"'{bench.name}'.*locked for 0.1 s.*nightly vacuum"):
                sink.commit(rejected=0)
        assert list(bench.rows()) == ["a"]

    def test_a_statement_that_takes_too_long_names_the_setting(self, bench: Bench) -> None:
        bench.publish(at([event("a")]))
        sink = bench.sink(statement_timeout=0.1)
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        with psycopg.connect(bench.url) as other:
            other.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(sql.Identifier(bench.name)))
            with pytest.raises(UnavailableError, match="statement_timeout"):
                sink.commit(rejected=0)

    def test_a_wrong_password_is_configuration_and_stays_secret(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        url = re.sub(r"//(\w+)(:[^@]*)?@", r"//\1:hunter2-secret@", bench.url)
        monkeypatch.setenv("DATABASE_URL", url)
        with pytest.raises(ConfigurationError, match="refuses") as caught:
            bench.sink().claim(bench.claim())
        assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)
        assert "hunter2" not in repr(bench.sink().target)

    def test_an_unreachable_database_is_named_without_credentials(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://someone:hunter2-secret@127.0.0.1:1/sales")
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1/sales does not answer") as caught:
            bench.sink().claim(bench.claim())
        assert "hunter2" not in str(caught.value)
        assert "someone" not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["postgresql://u:hunter2@h:port:5/x", "hunter2 is no url", "mysql://u:hunter2@h/x", "postgresql://u:hunter2@h/x?nonsense=1"]
    )
    def test_a_malformed_url_is_not_shown(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        monkeypatch.setenv("DATABASE_URL", url)
        with pytest.raises(FactoryError) as caught:
            bench.sink().claim(bench.claim())
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    def test_a_missing_database_is_configuration(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", re.sub(r"/[^/]+$", "/no_such_database", bench.url))
        with pytest.raises(ConfigurationError, match="does not exist"):
            bench.sink().claim(bench.claim())

    def test_an_unset_variable_is_named(self, bench: Bench) -> None:
        with pytest.raises(ConfigurationError, match="WAREHOUSE_URL is not set"):
            bench.sink(database_url_env="WAREHOUSE_URL")


class TestATableThatIsAlteredAfterItWasClaimed:
    """The claim has ended its transaction, and the rows' own locks nothing until the first is written."""

    DROPS = "BEGIN IF NEW.value = 'drop' THEN RETURN NULL; END IF; RETURN NEW; END"
    CASES: ClassVar = {
        "a trigger": (
            "CREATE FUNCTION f_{n}() RETURNS trigger LANGUAGE plpgsql AS $$ " + DROPS + " $$;"
            "CREATE TRIGGER t BEFORE INSERT ON {n} FOR EACH ROW EXECUTE FUNCTION f_{n}()"
        ),
        "a type": "ALTER TABLE {n} ALTER version TYPE double precision",
        "no column": "ALTER TABLE {n} DROP COLUMN value",
        "to be filled": "DELETE FROM {n}; ALTER TABLE {n} ADD more text NOT NULL",
        "made again": "CREATE TABLE new_{n} (LIKE {n} INCLUDING ALL); DROP TABLE {n}; ALTER TABLE new_{n} RENAME TO {n}",
    }
    AFTER: ClassVar = {
        "a trigger": None,
        "a type": r"column 'version': expected bigint, found double precision",
        "no column": r"column 'value': expected text, found no such column",
        "to be filled": r"column 'more': NOT NULL without a default, and no event has it",
        "made again": None,
    }

    def publish(self, sink: Any, rows: Any) -> None:
        try:
            write_and_commit(sink, rows)
        except RowsRefused as refused:  # each by itself, as the database has it
            sink.commit(rejected=len(refused.rows))

    @pytest.mark.parametrize("merged", [False, True], ids=["straight in", "merged"])
    @pytest.mark.parametrize("case", CASES)
    def test_takes_nothing_and_a_retry_goes_by_what_it_is_then(self, bench: Bench, case: str, merged: bool) -> None:
        bench.publish(at([event("z", "old")]) if merged else [], W1 if merged else W2)
        rows = at([event("a", "keep"), event("b", "drop")])
        sink = bench.sink()
        assert sink.claim(bench.claim(fingerprint="next")) is None
        bench.admin.execute(self.CASES[case].format(n=bench.name))
        with pytest.raises(UnavailableError, match=r"table public\.t_\w+ was altered .* while it was published to; nothing was published"):
            self.publish(sink, rows)
        if (says := self.AFTER[case]) is not None:
            with pytest.raises(SinkError, match=says):
                bench.publish(rows)
            return
        outcome = bench.publish(rows)
        dropped = int(case == "a trigger")
        assert (outcome.written, outcome.dropped, outcome.older) == (2 - dropped, dropped, 0)
        assert set(bench.rows()) == ({"a"} if dropped else {"a", "b"})

    def test_by_somebody_whose_trigger_is_wrong_is_not_what_failed(self, bench: Bench) -> None:
        bench.publish([])
        body = "BEGIN NEW.none := 1; RETURN NEW; END"
        bench.admin.execute(f"CREATE FUNCTION f_{bench.name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")  # type: ignore[arg-type]
        bench.admin.execute(f"CREATE TRIGGER t BEFORE INSERT ON {bench.name} FOR EACH ROW EXECUTE FUNCTION f_{bench.name}()")  # type: ignore[arg-type]
        with pytest.raises(SinkError, match='record "new" has no field "none"'):
            bench.publish(at([event("a")]))
