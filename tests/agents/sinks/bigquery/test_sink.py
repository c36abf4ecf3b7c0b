"""Every promise of the sink: claims, landings, what wins, who is fenced, and what happens when BigQuery doesn't play along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.api_core import exceptions as google

from factory_agents.errors import ConfigurationError, FactoryError, SinkError, UnavailableError
from factory_agents.runtime import exact_sink
from factory_agents.runtime.ledger_sink import ChangedError
from factory_agents.sinks.bigquery import sink as sinks
from factory_agents.sinks.bigquery.warehouse import ConflictError, Warehouse, account_from_env, explain
from factory_agents.testing.records import gone
from tests.support.bigquery import Bench
from tests.support.lossy_http import Loss, LossyHttp
from tests.support.sink_bench import CONTRACT, W1, W2, at, event, record, write_and_commit


def before_the_landing(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Do something once, when the sink has looked at its table and before its landing runs."""
    run = Warehouse.run

    def late(warehouse: Warehouse, *args: Any, **parameters: Any) -> int:
        monkeypatch.setattr(Warehouse, "run", run)
        do()
        return run(warehouse, *args, **parameters)

    monkeypatch.setattr(Warehouse, "run", late)


class TestOneWindow:
    def test_nothing_is_left_of_what_was_staged(self, bench: Bench) -> None:
        sink = bench.sink()
        assert sink.claim(bench.claim()) is None
        write_and_commit(sink, at([event("a"), event("b")]))
        assert bench.emulator.tables() == ["factory_publishes_t", "t"]

    def test_a_large_window_goes_in_parts(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exact_sink, "_PART_BYTES", 100)
        outcome = bench.publish(at([event(str(n % 5), str(n)) for n in range(12)]))
        assert (outcome.rows, outcome.written, outcome.duplicates) == (12, 5, 7)
        assert bench.rows() == {"0": "10", "1": "11", "2": "7", "3": "8", "4": "9"}
        monkeypatch.setattr(sinks, "_MOST_PARTS", 2)
        with pytest.raises(ConfigurationError, match=r"more than 2 parts in one window; plan it in more shards"):
            bench.publish(at([event("a")] * 12), W2)

    def test_of_a_window_of_an_interval_and_one_of_none_the_later_record_wins(self, bench: Bench) -> None:
        bench.contract = CONTRACT | {"time": None, "version_field": None, "deletes": True}
        bench.publish([*(record(event(key, "window"), 3, 7, 5) for key in "ab"), gone("c", 9, 3, 5)], W2)
        later, earlier = [record(event("a", "later"), 0, 0, 6), gone("d", 1, 0, 6)], [record(event(key, "no"), 0, 2, 4) for key in "bc"]
        bench.publish([*later, *earlier], "since 7 p")
        assert bench.rows() == {"a": "later", "b": "window"}
        assert bench.publish([record(event(key, "old"), 3, 0, 5) for key in "ad"], W1).older == 2

    def test_a_table_that_was_made_again_is_filled_again(self, bench: Bench) -> None:
        bench.publish(at([event("a")]), fingerprint="same", input_generation=2)
        bench.emulator.client.delete_table(bench.table)
        assert not bench.publish(at([event("a")]), fingerprint="same").reused
        assert bench.rows() == {"a": "x"}

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ("DROP TABLE {d}.t", "it was dropped"),
            ("ALTER TABLE {d}.t DROP COLUMN value", "its columns were changed"),
            ("ALTER TABLE {d}.t RENAME COLUMN value TO renamed", "its columns were changed"),
        ],
    )
    def test_a_table_that_is_changed_while_we_publish_is_a_retry(self, bench: Bench, change: str, says: str) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        bench.emulator.query(change)
        with pytest.raises(ChangedError, match=rf"d_\w+\.t: {says} while we published to it; a retry begins again"):
            sink.commit(rejected=0)
        bench.publish(at([event("a")]))
        assert bench.rows() == {"a": "x"}

    def test_who_published_to_a_table_before_it_was_made_again_lands_nothing_in_the_new_one(self, bench: Bench) -> None:
        zombie = bench.sink()
        zombie.claim(bench.claim())
        zombie.write(at([event("a", "zombie"), event("b", "zombie")]))
        bench.emulator.client.delete_table(bench.table)
        bench.publish(at([event("a", "new")]))
        with pytest.raises(ChangedError, match="it was recreated while we published to it"):
            zombie.commit(rejected=0)
        assert bench.rows() == {"a": "new"}

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ("DROP TABLE {d}.t", "it was dropped"),
            ("ALTER TABLE {d}.t RENAME TO other", "it was dropped"),
            ("CREATE OR REPLACE TABLE {d}.t AS SELECT * FROM {d}.t WHERE FALSE", "it was recreated"),
            ("CREATE OR REPLACE TABLE {d}.t PARTITION BY DATE(at) AS SELECT * FROM {d}.t WHERE FALSE", "it was recreated"),
            ("CREATE OR REPLACE TABLE {d}.t AS SELECT id, version, at, value FROM {d}.t WHERE FALSE", "it was recreated"),
            ("ALTER TABLE {d}.t DROP COLUMN value", "its columns were changed"),
        ],
    )
    def test_a_table_that_is_changed_after_it_was_looked_at_gets_nothing(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str, says: str
    ) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a"), event("b")]))
        before_the_landing(monkeypatch, lambda: bench.emulator.query(change))
        with pytest.raises(ChangedError, match=rf"d_\w+\.t: {says} while we published to it; a retry begins again"):
            sink.commit(rejected=0)
        bench.publish(at([event("a")]))
        assert bench.rows() == {"a": "x"}

    @pytest.mark.parametrize(
        ("unasked", "ours", "says"),
        [
            (UnavailableError("no answer"), UnavailableError, "no_such_function.*could not be looked at: no answer"),
            (ConfigurationError("no right to look"), SinkError, "no_such_function"),
        ],
    )
    def test_why_a_landing_failed_is_told_though_the_table_cannot_be_looked_at_then(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, unasked: FactoryError, ours: type[FactoryError], says: str
    ) -> None:
        def fails(*_: Any) -> None:
            raise unasked

        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        monkeypatch.setattr(exact_sink, "pauses", lambda _: iter([None]))
        monkeypatch.setattr(sinks.statements, "landing", lambda *_, **__: "SELECT no_such_function()")
        before_the_landing(monkeypatch, lambda: monkeypatch.setattr(Warehouse, "table", fails))
        with pytest.raises(ours, match=says):
            sink.commit(rejected=0)
        assert bench.rows() == {}

    def test_a_successor_in_a_table_made_again_after_it_was_looked_at_keeps_its_rows(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def made_again() -> None:
            bench.emulator.client.delete_table(bench.table)
            bench.publish(at([event("a", "new")]))

        zombie = bench.sink()
        zombie.claim(bench.claim())
        zombie.write(at([event("a", "zombie"), event("b", "zombie")]))
        before_the_landing(monkeypatch, made_again)
        with pytest.raises(ChangedError, match="it was recreated while we published to it"):
            zombie.commit(rejected=0)
        assert bench.rows() == {"a": "new"}

    @pytest.mark.parametrize("left", ["FALSE", "window_key != ''"])
    def test_a_ledger_without_its_first_row_is_one_clear_line(self, bench: Bench, left: str) -> None:
        bench.publish(at([event("a")]))
        bench.emulator.query(f"DELETE FROM {{d}}.factory_publishes_t WHERE NOT ({left})")
        for _ in range(2):
            with pytest.raises(SinkError, match=r"its ledger \S+factory_publishes_t has lost its first row; drop the ledger, and publish"):
                bench.publish(at([event("a", "new")]))
        bench.emulator.query("DROP TABLE {d}.factory_publishes_t")
        bench.publish(at([event("a", "new")]))
        assert bench.rows() == {"a": "new"}

    def test_a_table_that_was_made_again_has_nothing_deleted(self, bench: Bench) -> None:
        bench.contract = CONTRACT | {"deletes": True}
        bench.publish([gone("a", 5)], W2)
        bench.emulator.client.delete_table(bench.table)
        assert bench.publish(at([event("a"), event("b")])).written == 2
        bench.publish([gone("b", 5)], W2)
        assert bench.rows() == {"a": "x"}
        assert bench.emulator.query("SELECT id FROM {d}.factory_deleted_t") == [("b",)]

    def test_a_memory_of_another_key_is_refused(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "id": "id", "deletes": True, "columns": {"id": "text", "n": "bigint"}}
        bench.publish([])
        bench.contract = bench.contract | {"key": ["id", "n"]}
        with pytest.raises(SinkError, match=r"factory_deleted_t, which remembers deletes, lacks n INT64: give the key"):
            bench.publish([])

    def test_rows_say_whose_they_are(self, bench: Bench) -> None:
        bench.publish([record(event("a"), 3, 17, 5)], W2)
        own = "CAST(_factory_window AS STRING), _factory_publication > 0, _factory_partition, _factory_offset, _factory_timestamp"
        assert bench.query(own) == [("2026-11-01 01:00:00+00", True, 3, 17, 5)]


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

    @pytest.mark.parametrize("refused", ["/upload/", "/jobs?prettyPrint"], ids=["staging", "landing"])
    def test_rights_that_are_taken_away_while_we_publish_are_one_clear_line_and_a_retry_with_them_lands(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, refused: str
    ) -> None:
        bench.publish(at([event("a", "old"), event("stale")]))
        revoked: list[int] = []
        error = {"code": 403, "message": "Access Denied", "errors": [{"reason": "accessDenied", "message": "Access Denied"}]}
        lossy = LossyHttp(
            bench.emulator.url,
            lambda method, path: "refused" if revoked and method == "POST" and refused in path else None,
            (403, {"error": error}),
        )
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", lossy.url)
        try:
            sink = bench.sink()
            sink.claim(bench.claim(fingerprint="new", input_generation=2))
            sink.write(at([event("a", "new"), event("b")]))
            revoked.append(1)
            with pytest.raises(ConfigurationError, match=r"^.*: BigQuery says: Access Denied; grant roles/bigquery\.dataEditor on .*$"):
                sink.commit(rejected=0)
            sink.close()
            assert bench.rows() == {"a": "old", "stale": "x"}
            revoked.clear()
            bench.publish(at([event("a", "new"), event("b")]), fingerprint="new", input_generation=2)
        finally:
            lossy.close()
        assert bench.rows() == {"a": "new", "b": "x"}

    def test_a_dataset_that_is_dropped_before_the_landing_is_one_clear_line(self, bench: Bench) -> None:
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        bench.emulator.client.delete_dataset(bench.emulator.dataset, delete_contents=True)
        for publish in (lambda: sink.commit(rejected=0), lambda: bench.publish(at([event("a")]))):
            with pytest.raises(ConfigurationError, match=r"Not found: Dataset local:d_\w+; create it, or correct the table's name$"):
                publish()
        bench.emulator.client.create_dataset(bench.emulator.dataset)
        bench.publish(at([event("a")]))
        assert bench.rows() == {"a": "x"}

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
