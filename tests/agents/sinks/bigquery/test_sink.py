"""Every promise of the sink: claims, landings, what wins, who is fenced, and what happens when BigQuery doesn't play along."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from google.api_core import exceptions as google
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, FactoryError, FencedError, SinkError, UnavailableError
from factory_agents.protocol import Shard
from factory_agents.sinks.bigquery import sink as sinks
from factory_agents.sinks.bigquery.warehouse import ConflictError, account_from_env, explain
from tests.support.bigquery import Bench
from tests.support.lossy_http import Loss, LossyHttp
from tests.support.publication_model import PUBLICATIONS, Model
from tests.support.sink_bench import W1, W2, at, event, record, write_and_commit


class TestOneWindow:
    def test_rows_are_there_once_they_are_committed_and_not_before(self, bench: Bench) -> None:
        sink = bench.sink()
        assert sink.claim(bench.claim()) is None
        assert sink.write(at([event("a"), event("b")])) == {}
        assert bench.rows() == {}
        outcome = sink.commit(rejected=3)
        assert (outcome.rows, outcome.written, outcome.rejected) == (2, 2, 3)
        assert outcome.table == f"local.{bench.table}"
        assert bench.rows() == {"a": "x", "b": "x"}
        assert bench.emulator.tables() == ["factory_publishes_t", "t"]  # nothing is left of the staging

    def test_the_same_again_is_answered_from_the_ledger(self, bench: Bench) -> None:
        first = bench.publish(at([event("a")]), fingerprint="same")
        again = bench.publish(at([event("b")]), fingerprint="same")
        assert again.reused
        assert again.written == first.written
        assert bench.rows() == {"a": "x"}

    def test_replaced_shrunk_and_emptied(self, bench: Bench) -> None:
        assert bench.publish([]).rows == 0
        bench.publish(at([event("a"), event("b"), event("c")]))
        bench.publish(at([event("z")]), W2)
        outcome = bench.publish(at([event("b", "new"), event("d")]), input_generation=2)
        assert (outcome.written, outcome.removed) == (2, 2)
        assert bench.rows() == {"b": "new", "d": "x", "z": "x"}
        outcome = bench.publish(at([event("d", "last")]), input_generation=3)
        assert (outcome.written, outcome.removed) == (1, 1)
        assert bench.publish([], input_generation=4).removed == 1
        assert bench.rows() == {"z": "x"}

    def test_an_older_manifest_is_refused(self, bench: Bench) -> None:
        bench.publish(at([event("a")]), input_generation=2)
        with pytest.raises(SinkError, match="it holds generation 2 of its input, this manifest is of the older generation 1"):
            bench.publish(at([event("b")]), input_generation=1)
        assert bench.rows() == {"a": "x"}

    def test_a_large_window_goes_in_parts(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sinks, "_PART_BYTES", 100)
        outcome = bench.publish(at([event(str(n % 5), str(n)) for n in range(12)]))
        assert (outcome.rows, outcome.written, outcome.duplicates) == (12, 5, 7)
        assert bench.rows() == {"0": "10", "1": "11", "2": "7", "3": "8", "4": "9"}
        monkeypatch.setattr(sinks, "_MOST_PARTS", 2)
        with pytest.raises(ConfigurationError, match=r"more than 2 parts of .* plan it in more shards"):
            bench.publish(at([event("a")] * 12), W2)

    def test_without_a_claim_nothing_is_written(self, bench: Bench) -> None:
        sink = bench.sink()
        with pytest.raises(SinkError, match="claim first"):
            sink.write(at([event("a")]))
        with pytest.raises(SinkError, match="claim first"):
            sink.commit(rejected=0)

    def test_a_table_that_was_made_again_is_filled_again(self, bench: Bench) -> None:
        bench.publish(at([event("a")]), fingerprint="same", input_generation=2)
        bench.emulator.client.delete_table(bench.table)
        assert not bench.publish(at([event("a")]), fingerprint="same").reused
        assert bench.rows() == {"a": "x"}

    def test_a_table_that_was_emptied_is_filled_again(self, bench: Bench) -> None:
        bench.publish(at([event("a")]), fingerprint="same")
        bench.emulator.query("DELETE FROM {d}.t WHERE TRUE")
        assert not bench.publish(at([event("a")]), fingerprint="same").reused
        assert bench.rows() == {"a": "x"}

    def test_rows_say_whose_they_are(self, bench: Bench) -> None:
        bench.publish([record(event("a"), 3, 17, 5)], W2)
        own = "CAST(_factory_window AS STRING), _factory_publication > 0, _factory_partition, _factory_offset, _factory_timestamp"
        assert bench.query(own) == [("2026-11-01 01:00:00+00", True, 3, 17, 5)]


class TestTheNewestWins:
    def test_duplicates_in_a_window_go_by_version_then_time_then_coordinates(self, bench: Bench) -> None:
        rows = [
            *at([event("v", "v1", 1, "2026-11-01T09:00:00Z"), event("v", "v2", 2, "2026-11-01T01:00:00Z"), event("v", "null", None, None)]),
            *at([event("t", "late", 1, "2026-11-01T09:00:00Z"), event("t", "early", 1, "2026-11-01T01:00:00Z"), event("t", "null", 1)]),
            *[record(event("c", "p1o0"), 1, 0), record(event("c", "p0o9"), 0, 9), record(event("c", "p1o1"), 1, 1)],
            *[record(event("r", "later"), 0, 3, 9), record(event("r", "earlier"), 1, 9, 8)],
        ]
        outcome = bench.publish(rows)
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (11, 4, 7, 0)
        assert bench.rows() == {"v": "v2", "t": "late", "c": "p1o1", "r": "later"}

    def test_what_the_table_has_newer_stays_and_is_counted(self, bench: Bench) -> None:
        bench.publish(at([event("v", "kept", 2), event("t", "kept", 1, "2026-11-01T09:00:00Z"), event("w", "kept")]), window=W2)
        older = [event("v", "old", 1, "2027-01-01T00:00:00Z"), event("t", "old", 1, "2026-11-01T08:00:00Z")]
        older += [event("w", "old"), event("w", "old")]
        outcome = bench.publish(at([*older, event("n", "new")]), window=W1)
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (5, 1, 1, 3)
        assert bench.rows() == {"v": "kept", "t": "kept", "w": "kept", "n": "new"}

    @pytest.mark.parametrize(
        ("type_", "least", "more", "most"),
        [
            ("numeric", "9", 10, "10.5"),
            ("text", "1.10", "1.9", "2"),
            ("boolean", None, False, True),
        ],
    )
    def test_a_version_is_compared_as_its_column_is(self, bench: Bench, type_: str, least: Any, more: Any, most: Any) -> None:
        bench.contract = {"name": "n", "id": "id", "version_field": "v", "columns": {"id": "text", "value": "text", "v": type_}}
        bench.publish(at([{"id": "a", "v": more, "value": "more"}, {"id": "a", "v": least, "value": "least"}]), window=W2)
        assert bench.publish(at([{"id": "a", "v": least, "value": "least"}]), window=W1).older == 1
        bench.publish(at([{"id": "a", "v": most, "value": "most"}]), window=W1)
        assert bench.rows() == {"a": "most"}

    def test_a_key_of_several_columns_is_compared_as_they_are(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "key": ["n", "id"], "columns": {"n": "numeric", "id": "text", "value": "text"}}
        outcome = bench.publish(at([{"n": "1.0", "id": "", "value": "first"}, {"n": 1, "id": "", "value": "second"}]))
        assert (outcome.written, outcome.duplicates) == (1, 1)
        assert bench.rows() == {"": "second"}

    def test_a_new_generation_of_the_window_replaces_even_by_a_lower_version(self, bench: Bench) -> None:
        bench.publish(at([event("k", "first", 9)]))
        bench.publish(at([event("k", "second", 1)]), input_generation=2)
        assert bench.rows() == {"k": "second"}

    @pytest.mark.soak
    @settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(history=st.lists(PUBLICATIONS, min_size=4, max_size=8))
    def test_any_history_of_publications_leaves_what_the_rules_say(self, bench: Bench, history: list[Any]) -> None:
        bench.name = f"m_{secrets.token_hex(4)}"
        model = Model()
        for generation, (window, (index, of), input_generation, events) in enumerate(history, 1):
            rows = [(e, index + of * p, offset, timestamp) for offset, (e, p, timestamp) in enumerate(events)]
            expected = model.publish(window, (index, of), input_generation, generation, rows)
            changes = {"plan": f"{input_generation}/{of}", "fingerprint": f"f{generation}", "input_generation": input_generation}
            records = [record(*row) for row in rows]
            if expected is None:
                with pytest.raises(SinkError, match="older generation"):
                    bench.publish(records, window, Shard(index, of), **changes)
                continue
            outcome = bench.publish(records, window, Shard(index, of), **changes)
            assert (outcome.written, outcome.duplicates, outcome.older, outcome.removed) == expected
        found = bench.query("id, value, version, FORMAT_TIMESTAMP('%Y-%m-%dT%H:%M:%SZ', at)", "ORDER BY id")
        assert found == [(k, r["event"]["value"], r["event"]["version"], r["event"]["at"]) for k, r in sorted(model.table.items())]


class TestShards:
    def test_shards_at_once_all_land(self, bench: Bench) -> None:
        bench.publish([], W2)  # the table is there
        shards = [Shard(i, 3) for i in range(3)]
        with ThreadPoolExecutor(3) as pool:
            outcomes = list(pool.map(lambda s: bench.publish(at([event(f"{s.index}"), event("k")], s.index), shard=s), shards))
        assert sum(o.written for o in outcomes) + sum(o.older for o in outcomes) == 6
        assert bench.rows().keys() == {"0", "1", "2", "k"}
        assert bench.query("_factory_partition", "WHERE id = 'k'") == [(2,)]  # whoever came last

    def test_three_shards_planned_again_as_two_replace_all_when_the_last_one_is_there(self, bench: Bench) -> None:
        for i in range(3):
            bench.publish(at([event(f"old{i}"), event(f"k{i}", "old")], i), shard=Shard(i, 3), plan="three")
        first = bench.publish(at([event("k0", "new")], 0), shard=Shard(0, 2), plan="two", input_generation=2)
        assert first.removed == 0
        second = bench.publish(at([event("k1", "new")], 1), shard=Shard(1, 2), plan="two", input_generation=2)
        assert second.removed == 4
        assert bench.rows() == {"k0": "new", "k1": "new"}

    def test_two_stages_of_one_pipeline_keep_each_others_rows(self, bench: Bench) -> None:
        bench.publish(at([event("a")]), stage="one")
        bench.publish(at([event("b")]), stage="two")
        bench.publish([], stage="one", input_generation=2)
        assert bench.rows() == {"b": "x"}


class TestFencing:
    def test_a_zombie_is_fenced_at_its_commit_before_and_after_the_newer_ones(self, bench: Bench) -> None:
        zombie, newer = bench.sink(), bench.sink()
        zombie.claim(bench.claim())
        assert zombie.write(at([event("a", "zombie")])) == {}
        newer.claim(bench.claim())
        with pytest.raises(FencedError, match=r"shard 0of1: a newer attempt took over; this one stops and publishes nothing"):
            zombie.commit(rejected=0)
        write_and_commit(newer, at([event("a", "newer")]))
        with pytest.raises(FencedError):
            zombie.commit(rejected=0)
        assert bench.rows() == {"a": "newer"}

    def test_a_zombie_of_another_shard_count_is_fenced(self, bench: Bench) -> None:
        zombie = bench.sink()
        zombie.claim(bench.claim(shard=Shard(1, 2), plan="two"))
        assert zombie.write(at([event("z")])) == {}
        bench.publish(at([event("a")]), plan="one")
        with pytest.raises(FencedError):
            zombie.commit(rejected=0)
        assert bench.rows() == {"a": "x"}

    def test_of_many_claims_at_once_one_lands(self, bench: Bench) -> None:
        """The first claims of a window, where there is no entry yet: one of them is the last, and it alone lands."""
        bench.publish([], W2)
        attempts = [bench.sink() for _ in range(4)]
        claims = [bench.claim() for _ in attempts]

        def attempt(i: int) -> str:
            attempts[i].claim(claims[i])
            try:
                write_and_commit(attempts[i], at([event("a", str(i)), event(f"only {i}")]))
            except FencedError:
                return "fenced"
            return "landed"

        with ThreadPoolExecutor(4) as pool:
            ends = list(pool.map(attempt, range(4)))
        last = max(i for i, end in enumerate(ends) if end == "landed")
        whole = [i for i in range(4) if bench.rows() == {"a": str(i), f"only {i}": "x"}]
        assert len(whole) == 1, (ends, bench.rows())
        assert ends[whole[0]] == "landed"
        assert last >= 0
        [(entries,)] = bench.emulator.query("SELECT COUNT(*) FROM {d}.factory_publishes_t WHERE window_key LIKE '2026-11-01T00%'")
        assert entries == 1

    def test_two_windows_that_hold_keys_of_each_other_both_land(self, bench: Bench) -> None:
        """One of the two transactions is refused, as both change the table; it is tried again."""
        one, two = bench.sink(), bench.sink()
        one.claim(bench.claim(W1))
        two.claim(bench.claim(W2))
        for sink, value in ((one, "w1"), (two, "w2")):
            assert sink.write(at([event("a", value), event("b", value)])) == {}
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda sink: sink.commit(rejected=0), (one, two)))
        assert [o.written + o.older for o in outcomes] == [2, 2]
        assert bench.rows() == {"a": "w2", "b": "w2"}


class Died(BaseException):
    """A publisher that is killed: nothing of it is done any more."""


@contextmanager
def hits(monkeypatch: pytest.MonkeyPatch, on_hit: Callable[[str], None]) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", on_hit)
        yield


POINTS = 31
"""Steps of one publication: each request before it is asked and after it was answered, and what lies between."""


@pytest.mark.slow
@pytest.mark.parametrize("group", [0, *(pytest.param(group, marks=pytest.mark.soak) for group in range(1, 5))])
def test_a_publisher_that_dies_at_any_step_is_completed_by_the_next_one(bench: Bench, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    """A window replaced again and again, each time by a publisher that dies one step later, and by the one after it."""
    monkeypatch.setattr(sinks, "_PART_BYTES", 100)
    bench.publish(at([event("k", "old"), event("stale")]))
    for step in range(group, POINTS + 1, 5):
        passed: list[str] = []

        def die(name: str, passed: list[str] = passed, step: int = step) -> None:
            passed.append(name)
            if len(passed) > step:
                raise Died

        rows = at([event("k", str(step)), event(f"only {step}"), event("k", "last")] * 2)
        fingerprint = {"fingerprint": f"step {step}", "input_generation": 2 + step}
        dead = bench.sink()
        with hits(monkeypatch, die):
            try:
                dead.claim(bench.claim(**fingerprint))
                write_and_commit(dead, rows)
            except Died:
                bench.sinks.remove(dead)  # nobody closes it
            else:
                assert step == POINTS, f"only {len(passed)} steps: {passed}"
        landed = f"only {step}" in bench.rows()
        outcome = bench.publish(rows, **fingerprint)
        assert outcome.reused == landed, passed
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.removed) == (6, 2, 4, 1), passed
        assert bench.rows() == {"k": "last", f"only {step}": "x"}, passed


class TestBigQueryFails:
    @pytest.mark.soak
    @pytest.mark.parametrize("what", ["request", "answer"])
    def test_every_request_or_answer_lost_once_changes_nothing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, what: Loss) -> None:
        turn: list[int] = []

        def lose(method: str, path: str) -> Loss:
            turn.append(1)
            return what if len(turn) % 2 else None

        bench.publish(at([event("a", "old"), event("stale")]))
        lossy = LossyHttp(bench.emulator.url, lose)
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", lossy.url)
        try:
            outcome = bench.publish(at([event("a", "new"), event("b")]), input_generation=2)
        finally:
            lossy.close()
        assert (outcome.written, outcome.removed) == (2, 1)
        assert bench.rows() == {"a": "new", "b": "x"}
        assert len(lossy.asked) > 15

    def test_a_landing_whose_answer_never_comes_is_found_in_the_ledger(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        assert sink.write(at([event("a")])) == {}
        run = sinks.Warehouse.run

        def lost(*args: Any, **kwargs: Any) -> int:
            run(*args, **kwargs)
            raise UnavailableError("the answer is lost")

        monkeypatch.setattr(sinks.Warehouse, "run", lost)
        assert sink.commit(rejected=0).written == 1
        assert bench.rows() == {"a": "x"}

    def test_a_landing_that_was_lost_is_made_again(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        run, lost = sinks.Warehouse.run, []

        def lose_first(*args: Any, **kwargs: Any) -> int:
            if not lost:
                lost.append(1)
                raise UnavailableError("it never arrived")
            return run(*args, **kwargs)

        monkeypatch.setattr(sinks.Warehouse, "run", lose_first)
        assert bench.publish(at([event("a")])).written == 1

    def test_what_is_refused_is_not_tried_again(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        tries: list[int] = []

        def refused(*args: Any, **kwargs: Any) -> int:
            tries.append(1)
            raise SinkError("no such function")

        monkeypatch.setattr(sinks.Warehouse, "run", refused)
        with pytest.raises(SinkError, match="no such function"):
            bench.publish(at([event("a")]))
        assert tries == [1]
        assert bench.rows() == {}

    def test_an_unreachable_bigquery_may_be_tried_again(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        from factory_agents.sinks.bigquery import warehouse

        monkeypatch.setattr(warehouse, "_PATIENCE", 0.1)
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:9")
        with pytest.raises(UnavailableError, match="BigQuery does not answer"):
            bench.publish(at([event("a")]))

    @pytest.mark.parametrize(
        ("error", "ours", "says"),
        [
            (google.BadRequest("Transaction is aborted due to concurrent update against table p:d.t"), ConflictError, "; retry"),
            (google.BadRequest("Could not serialize access to table p:d.t due to concurrent update"), ConflictError, "; retry"),
            (google.Forbidden("no", errors=[{"reason": "rateLimitExceeded", "message": "slow down"}]), UnavailableError, "less busy"),
            (google.Forbidden("no", errors=[{"reason": "quotaExceeded", "message": "too much"}]), UnavailableError, "quota"),
            (google.Forbidden("no", errors=[{"reason": "accessDenied", "message": "no"}]), ConfigurationError, "dataEditor"),
            (google.NotFound("Not found: Dataset p:d"), ConfigurationError, "create it, or correct the table's name"),
            (google.ServiceUnavailable("later"), UnavailableError, "less busy"),
            (google.RetryError("too long", google.ServiceUnavailable("later")), UnavailableError, "later"),
            (google.BadRequest("Syntax error"), SinkError, "Syntax error"),
            (ConnectionError("reset"), UnavailableError, "does not answer: reset"),
        ],
    )
    def test_each_of_its_errors_says_whether_a_retry_may_help(self, error: Exception, ours: type[FactoryError], says: str) -> None:
        explained = explain(error, "publishing")
        assert isinstance(explained, ours)
        assert str(explained).startswith("publishing: ")
        assert says in str(explained)


class TestAccount:
    def test_credentials_are_never_shown(self) -> None:
        account = account_from_env({"BIGQUERY_CREDENTIALS": '{"private_key": "s3cret"}', "GOOGLE_CLOUD_PROJECT": "mine"})
        assert "s3cret" not in repr(account)
        with pytest.raises(ConfigurationError) as raised:
            account.client()
        assert "s3cret" not in str(raised.value)
        assert "give a google connection in Airflow" in str(raised.value)

    @pytest.mark.parametrize("text", ["s3cret", "[1]", '"s3cret"'])
    def test_what_is_no_key_is_refused_unseen(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="BIGQUERY_CREDENTIALS: expected the JSON of a service account's key") as raised:
            account_from_env({"BIGQUERY_CREDENTIALS": text})
        assert "s3cret" not in str(raised.value)

    def test_a_chain_of_accounts_to_act_for(self) -> None:
        assert account_from_env({"BIGQUERY_IMPERSONATE": "a@x, b@x"}).impersonate == ("a@x", "b@x")
