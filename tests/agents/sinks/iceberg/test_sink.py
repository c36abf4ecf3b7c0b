"""Publishing to Iceberg: what its modes keep, whom its commits fence, and what they leave to other engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.types import StringType

from factory_agents.errors import ConfigurationError, FencedError, SinkError
from factory_agents.protocol import Shard
from factory_agents.sinks.iceberg import files
from factory_agents.testing.records import W1, W2, at, event
from tests.support.iceberg import Bench


def ids(*events: Any) -> list[tuple[str]]:
    return [(e,) for e in events]


class TestAppend:
    def test_a_window_is_replaced_whole_and_no_other_is_touched(self, bench: Bench) -> None:
        bench.publish([event("a"), event("b"), event("b", "again")])
        outcome = bench.publish([event("a", "later"), event("c")], W2)
        assert (outcome.written, outcome.older) == (2, 0)
        outcome = bench.publish([event("b", "new"), event("d")])
        assert (outcome.written, outcome.duplicates, outcome.removed) == (2, 0, 1)
        assert bench.rows("id", "value") == [("a", "later"), ("b", "new"), ("c", "x"), ("d", "x")]
        bench.publish([event("a", "third")])
        assert bench.rows("id", "value") == [("a", "later"), ("a", "third"), ("c", "x")]
        assert bench.publish([]).removed == 1
        assert bench.rows("id") == ids("a", "c")

    def test_shards_that_are_planned_again_replace_those_before_at_the_last_one(self, bench: Bench) -> None:
        for i in range(3):
            bench.publish([event(f"k{i}", "old"), event(f"only {i}")], shard=Shard(i, 3), plan="three", input_generation=1)
        bench.publish([event("k0", "new"), event("k2", "new")], shard=Shard(0, 2), plan="two", input_generation=2)
        assert bench.rows("id", "value") == [
            *(("k0", "new"), ("k1", "old"), ("k2", "new")),
            *((f"only {i}", "x") for i in range(3)),
        ]
        bench.publish([event("k1", "new")], shard=Shard(1, 2), plan="two", input_generation=2)
        assert bench.rows("id", "value") == [(f"k{i}", "new") for i in range(3)]

    def test_no_file_is_written_again_for_a_new_window(self, bench: Bench) -> None:
        bench.publish([event("a")])
        before = {task.file.file_path for task in bench.load().scan().plan_files()}
        bench.publish([event("a"), event("b")], W2)
        assert before < {task.file.file_path for task in bench.load().scan().plan_files()}


class TestUpsert:
    @pytest.fixture
    def bench(self, bench: Bench) -> Bench:
        bench.params = {"mode": "upsert"}
        return bench

    def test_only_files_with_a_key_of_the_window_are_written_again(self, bench: Bench) -> None:
        bench.publish([event("a"), event("b")])
        bench.publish([event("x"), event("y")], W2)
        kept = {task.file.file_path for task in bench.load().scan("id = 'x'").plan_files()}
        bench.publish([event("b", "new", 1)], "2026-11-01T02:00:00.000Z/2026-11-01T03:00:00.000Z p")
        assert bench.rows("id", "value") == [("a", "x"), ("b", "new"), ("x", "x"), ("y", "x")]
        assert {task.file.file_path for task in bench.load().scan("id = 'x'").plan_files()} == kept

    def test_what_would_be_written_again_is_limited(self, bench: Bench) -> None:
        bench.publish([event("a")])
        with pytest.raises(SinkError, match=r"its keys lie in files of 0 MB, and rewrite_limit is 0: partition the table so that"):
            bench.publish([event("a", "new", 1)], W2, {"rewrite_limit": 1e-6})
        assert bench.rows("id", "value") == [("a", "x")]

    def test_rows_of_several_parts_are_settled_before_they_land(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("factory_agents.runtime.exact_sink._PART_BYTES", 1)
        bench.publish([event("kept", "kept", 9)], W2)
        sink = bench.sink()
        sink.claim(bench.claim())
        for version in (1, 3, 2):
            sink.write(at([event("a", f"v{version}", version), event("kept", "old", 1), event(f"only {version}")]))
        outcome = sink.commit(rejected=0)
        sink.close()
        assert (outcome.rows, outcome.written, outcome.duplicates, outcome.older) == (9, 4, 4, 1)
        assert bench.rows("id", "value") == [("a", "v3"), ("kept", "kept"), *((f"only {n}", "x") for n in (1, 2, 3))]

    @pytest.mark.parametrize("parts", ["ab cc d", "aa b cc", "ab ba aa", "aa aa bb", "ab cd ef"])
    def test_a_key_may_be_twice_in_any_part(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, parts: str) -> None:
        monkeypatch.setattr("factory_agents.runtime.exact_sink._PART_BYTES", 1)
        keys = parts.replace(" ", "")
        newest = {key: f"v{version}" for version, key in enumerate(keys)}
        sink = bench.sink()
        sink.claim(bench.claim())
        version = 0
        for part in parts.split():
            sink.write(at([event(key, f"v{version + i}", version + i) for i, key in enumerate(part)]))
            version += len(part)
        outcome = sink.commit(rejected=0)
        sink.close()
        assert (outcome.rows, outcome.written, outcome.duplicates) == (len(keys), len(newest), len(keys) - len(newest))
        assert bench.rows("id", "value") == sorted(newest.items())


class TestCommits:
    def test_nothing_is_added_to_a_state_that_another_claim_made(self, bench: Bench) -> None:
        """By itself pyiceberg would commit again, on top of the claim that fences this publisher."""
        zombie = bench.sink()
        zombie.claim(bench.claim())
        zombie.write(at([event("a", "zombie")]))
        original = SqlCatalog.commit_table

        def overtaken(self: SqlCatalog, *args: Any) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(SqlCatalog, "commit_table", original)
                bench.publish([event("b", "newer")])
            return original(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SqlCatalog, "commit_table", overtaken)
            with pytest.raises(FencedError):
                zombie.commit(rejected=0)
        zombie.close()
        assert bench.rows("id", "value") == [("b", "newer")]

    @pytest.mark.parametrize("nth", range(2))
    def test_an_answer_that_is_lost_is_found_in_the_ledger(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
        bench.publish([], W2)
        original, asked = SqlCatalog.commit_table, 0

        def lost(self: SqlCatalog, *args: Any) -> Any:
            nonlocal asked
            answer, asked = original(self, *args), asked + 1
            if asked == nth + 1:
                raise ConnectionError("the answer was lost")
            return answer

        monkeypatch.setattr(SqlCatalog, "commit_table", lost)
        assert bench.publish([event("a")]).written == 1
        assert (bench.rows("id"), asked) == (ids("a"), 2)

    def test_files_that_no_commit_named_are_deleted(self, bench: Bench, tmp_path: Any) -> None:
        bench.publish([event("a")])
        before = sorted(tmp_path.rglob("*.parquet"))
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("b")]))
        sink._publication._stage()
        assert len(sorted(tmp_path.rglob("*.parquet"))) == 2
        sink.close()
        assert sorted(tmp_path.rglob("*.parquet")) == before

    def test_the_ledger_outlives_snapshots_and_other_writers_keep_their_retries(self, bench: Bench) -> None:
        bench.publish([event("a")], fingerprint="same", input_generation=1)
        table = bench.load()
        assert "commit.retry.num-retries" not in table.properties
        table.maintenance.expire_snapshots().by_ids([s.snapshot_id for s in table.snapshots()[:-1]]).commit()
        assert len(bench.load().snapshots()) == 1
        assert bench.publish([event("b")], fingerprint="same", input_generation=1).reused
        assert bench.rows("id") == ids("a")


def _repartition(bench: Bench) -> None:
    with bench.load().update_spec() as update:
        update.add_identity("id")


def _drop_column(bench: Bench) -> None:
    with bench.load().update_schema(allow_incompatible_changes=True) as update:
        update.delete_column("value")


def _replace_column(bench: Bench) -> None:
    _drop_column(bench)
    with bench.load().update_schema() as update:
        update.add_column("value", StringType())


def _rename_column(bench: Bench) -> None:
    with bench.load().update_schema() as update:
        update.rename_column("value", "renamed")


def _drop(bench: Bench) -> None:
    bench.catalog.drop_table(bench.table)


def _recreate(bench: Bench) -> None:
    schema = bench.load().schema()
    _drop(bench)
    bench.catalog.create_table(bench.table, schema)


PARTITIONED = {"columns": {"id": "text", "at": "timestamptz", "n": "bigint"}, "name": "n", "id": "id", "time": "at"}


class TestTables:
    def test_partition_transforms(self, bench: Bench) -> None:
        bench.contract = PARTITIONED
        bench.params = {"partition_by": ["day(at)", "bucket(4, id)", "truncate(10, n)"], "mode": "upsert"}
        rows = [{"id": str(i), "at": f"2026-11-0{i % 3 + 1}T00:00:00Z", "n": i} for i in range(12)]
        bench.publish(rows)
        bench.publish([{**rows[0], "n": 99}], W2)
        assert [str(field.transform) for field in bench.load().spec().fields] == ["day", "bucket[4]", "truncate[10]"]
        assert sorted(n for _, n in bench.rows("id", "n")) == [*range(1, 12), 99]
        assert len({str(task.file.partition) for task in bench.load().scan().plan_files()}) > 3

    def test_a_branch_that_another_engine_writes_while_a_window_lands_is_no_error(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It takes the number of the landing's snapshot, and leaves the rows as they are."""
        bench.publish([event("a")])
        rows, hit, commits = bench.load().scan().to_arrow(), files.failpoints.hit, list[str]()

        def between(name: str) -> None:
            commits.append(name)
            if commits.count("iceberg.before-commit") == 2:  # the claim was the first
                commits.append(name)
                table = bench.load()
                table.manage_snapshots().create_branch(table.metadata.current_snapshot_id, "audit").commit()
                table.append(rows, branch="audit")
            hit(name)

        monkeypatch.setattr(files.failpoints, "hit", between)
        assert bench.publish([event("b")], W2).written == 1
        assert commits.count("iceberg.before-commit") == 4  # once more, and theirs
        assert bench.rows("id") == ids("a", "b")

    def test_a_table_that_another_engine_partitions_otherwise_takes_the_next_window(self, bench: Bench) -> None:
        bench.publish([event("a", at="2026-11-01T00:00:00Z")])
        with bench.load().update_spec() as update:
            update.add_identity("id")
        bench.publish([event("a", "new", at="2026-11-01T00:00:00Z"), event("b")])
        assert bench.rows("id", "value") == [("a", "new"), ("b", "x")]

    @pytest.mark.parametrize("change", [_repartition, _drop_column, _replace_column, _rename_column, _drop, _recreate])
    @pytest.mark.parametrize("staged", [True, False])
    def test_a_table_that_is_changed_while_we_publish_is_a_retry(self, bench: Bench, change: Callable[[Bench], None], staged: bool) -> None:
        """Rows that were made for another column would land without it."""
        bench.publish([])
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        if staged:
            sink._publication._stage()
        change(bench)
        if change is _repartition and not staged:
            sink.commit(rejected=0)
        else:
            with pytest.raises(SinkError, match=r"table lake\.t: .* while we published to it; a retry begins again") as caught:
                sink.commit(rejected=0)
            assert caught.value.retriable
            bench.publish([event("a")])
        sink.close()
        assert bench.rows("id", "value") == [("a", "x")]

    def test_a_column_that_is_replaced_at_the_last_moment_is_a_retry(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.publish([])
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        hit = files.failpoints.hit

        def between(name: str) -> None:
            hit(name)
            if name == "iceberg.before-commit":
                monkeypatch.setattr(files.failpoints, "hit", hit)
                _replace_column(bench)

        monkeypatch.setattr(files.failpoints, "hit", between)
        with pytest.raises(SinkError, match="while we published to it; a retry begins again"):
            sink.commit(rejected=0)
        sink.close()
        bench.publish([event("a")])
        assert bench.rows("id", "value") == [("a", "x")]

    def test_a_column_that_another_engine_adds_while_we_publish_is_no_error(self, bench: Bench) -> None:
        bench.publish([])
        sink = bench.sink()
        sink.claim(bench.claim())
        sink.write(at([event("a")]))
        sink._publication._stage()
        with bench.load().update_schema() as update:
            update.add_column("extra", StringType())
        sink.commit(rejected=0)
        sink.close()
        assert bench.rows("id", "value", "extra") == [("a", "x", None)]

    def test_lists_of_every_type_are_written(self, bench: Bench) -> None:
        lists: dict[str, list[Any]] = {
            "text": ["x", None],
            "uuid": ["0b4e1d7c-50ab-4a3c-9f2c-1c2d3e4f5a6b", None],
            "json": [{"a": [1]}, None],
            "inet": ["10.0.0.1"],
            "interval": ["P1D"],
            "bytea": ["AA=="],
            "numeric(10,2)": [1.5, None],
            "timestamptz": ["2026-11-01T04:00:00Z"],
            "timestamp": ["2026-11-01T04:00:00"],
            "date": ["2026-11-01"],
            "time": ["04:00:00"],
            "boolean": [True, None],
            "bigint": [1],
            "double": [0.5],
        }
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text"} | {f"c{i}": f"{t}[]" for i, t in enumerate(lists)}}
        assert bench.publish([{"id": "a"} | {f"c{i}": v for i, v in enumerate(lists.values())}, {"id": "b"}]).written == 2
        assert bench.rows("id", "c0", "c1", "c2") == [
            ("a", ["x", None], ["0b4e1d7c-50ab-4a3c-9f2c-1c2d3e4f5a6b", None], ['{"a": [1]}', None]),
            ("b", None, None, None),
        ]

    def test_columns_are_added_and_widened(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "n": "integer", "r": "real", "d": "numeric(9,2)"}}
        bench.publish([{"id": "a", "n": 1, "r": 0.5, "d": "1.25"}])
        wider = {"id": "text", "n": "bigint", "r": "double", "d": "numeric(20,2)", "tags": "text[]", "j": "json", "t": "time", "u": "uuid"}
        bench.contract = {"name": "n", "id": "id", "columns": wider}
        uuid = "0b4e1d7c-50ab-4a3c-9f2c-1c2d3e4f5a6b"
        row = {
            "id": "b",
            "n": 2**40,
            "r": 0.1,
            "d": "123456789012345678.25",
            "tags": ["x", None],
            "j": {"a": [1]},
            "t": "10:00:00",
            "u": uuid,
        }
        with pytest.raises(SinkError, match=r"it lacks n long, r double, d decimal\(20, 2\), tags list<string>, .* and evolve is off"):
            bench.publish([row], W2, {"evolve": False})
        bench.publish([row], W2)
        found = {each[0]: tuple(map(str, each[1:])) for each in bench.rows("id", "n", "r", "d", "tags", "j", "u")}
        assert found["a"] == ("1", "0.5", "1.25", "None", "None", "None")
        assert found["b"] == (str(2**40), "0.1", "123456789012345678.25", "['x', None]", '{"a": [1]}', uuid)

    @pytest.mark.parametrize(
        ("columns", "says"),
        [
            ({"n": "text"}, r"column 'n': expected string, found long"),
            ({"n": "numeric(9,2)"}, r"column 'n': expected decimal\(9, 2\), found long"),
            ({"n": "bigint[]"}, r"column 'n': expected list<long>, found long"),
        ],
    )
    def test_what_does_not_fit_is_named(self, bench: Bench, columns: Mapping[str, str], says: str) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "n": "bigint"}}
        bench.publish([])
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", **columns}}
        with pytest.raises(SinkError, match=says):
            bench.publish([])

    @pytest.mark.parametrize(
        ("params", "says"),
        [
            ({"table": "events"}, r"table 'events': expected namespace\.table"),
            ({"partition_by": ["day(id)"]}, r"partition_by 'day\(id\)': column 'id' is string, which it doesn't take"),
            (
                {"partition_by": ["bucket(id)"]},
                r"partition_by 'bucket\(id\)': expected a column \(id, version, at, value\), or",
            ),
            ({"partition_by": ["nope"]}, r"partition_by 'nope': expected a column"),
            ({"mode": "merge"}, "mode"),
            ({"create_table": False}, r"table lake\.t does not exist, and create_table is off"),
            ({"contract": None}, "parameter 'contract' is required for Iceberg"),
        ],
    )
    def test_a_mistake_is_one_clear_line(self, bench: Bench, params: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigurationError, match=says) as caught:
            bench.publish([], params=params)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("type_", "partition"), [("bytea", "truncate(2, id)"), ("time", "bucket(4, id)")])
    def test_a_partition_that_pyiceberg_cannot_write_is_refused_before_there_is_a_table(
        self, bench: Bench, type_: str, partition: str
    ) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": type_}}
        with pytest.raises(ConfigurationError, match="which it doesn't take"):
            bench.publish([], params={"partition_by": [partition]})
        assert not bench.catalog.table_exists(bench.table)

    def test_names_that_differ_by_case_alone_are_refused_since_most_readers_would_not_tell_them_apart(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "Value": "text", "value": "text"}}
        with pytest.raises(ConfigurationError, match="columns 'Value' and 'value': most readers of Iceberg don't tell them apart"):
            bench.publish([{"id": "a"}])
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "value": "text"}}
        bench.publish([{"id": "a", "value": "x"}])
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "VALUE": "text"}}
        with pytest.raises(SinkError, match="column 'VALUE': found 'value', which most readers of Iceberg don't tell from it"):
            bench.publish([{"id": "a", "VALUE": "y"}], W2)
        assert [field.name for field in bench.load().schema().fields][:2] == ["id", "value"]

    def test_numbers_that_a_column_has_no_room_for_are_rejected(self, bench: Bench) -> None:
        bench.contract = {"name": "n", "id": "id", "columns": {"id": "text", "d": "numeric(5,2)", "plain": "numeric"}}
        sink = bench.sink()
        sink.claim(bench.claim())
        rows = [
            {"id": "a", "d": "123.45", "plain": "1.5"},
            {"id": "b", "d": "1234"},
            {"id": "c", "d": "1.234"},
            {"id": "d", "plain": "1e-10"},
        ]
        assert sorted(sink.write(at(rows))) == [1, 2, 3]
        sink.commit(rejected=3)
        sink.close()
        assert bench.rows("id") == ids("a")


class TestCatalogs:
    def test_none_is_one_clear_line(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ICEBERG_CATALOG")
        with pytest.raises(ConfigurationError, match=r"there is no Iceberg catalog 'nowhere': give an iceberg connection in Airflow"):
            bench.sink(catalog="nowhere")
        monkeypatch.setenv("ICEBERG_CATALOG", "[1]")
        with pytest.raises(ConfigurationError, match=r"ICEBERG_CATALOG: expected a JSON object of texts"):
            bench.sink()

    def test_one_of_pyicebergs_own_configuration(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ICEBERG_CATALOG")
        for name, value in bench.properties.items():
            monkeypatch.setenv(f"PYICEBERG_CATALOG__LAKE__{name.upper()}", value)
        bench.publish([event("a")], W1, {"catalog": "lake"})

    def test_no_credential_is_in_identity_or_address(self, monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
        secret = {"type": "rest", "uri": "https://u:hunter2@h:1/x", "token": "hunter2", "credential": "u:hunter2"}
        monkeypatch.setenv("ICEBERG_CATALOG", json.dumps(secret))
        sink = bench.sink()
        assert "hunter2" not in repr(sink.identity) + sink.address
        assert sink.address == "h:1/x"
