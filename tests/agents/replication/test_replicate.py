"""``replicate``: a table's rows and then its changes, each once, in order."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from factory_agents.errors import ConfigurationError, DataLossError, UnavailableError
from tests.support.replication import Source, shown
from tests.support.waiting import wait_for


class TestAWindow:
    def test_begins_with_the_tables_rows_and_goes_on_with_its_changes(self, replicated: Source) -> None:
        replicated.run("INSERT INTO {} SELECT g, g, 'before' FROM generate_series(1, 5) g")
        first = replicated.replicate()
        assert [c[0] for c in replicated.changes(first)] == ["r"] * 5
        replicated.run("INSERT INTO {} VALUES (6, 60, 'new')")
        replicated.run("UPDATE {} SET a = -1 WHERE id = 2")
        replicated.run("DELETE FROM {} WHERE id = 3")
        second = replicated.replicate()
        assert replicated.changes(second) == [
            ("c", None, {"id": 6, "a": 60, "b": "new"}),
            ("u", None, {"id": 2, "a": -1, "b": "before"}),
            ("d", {"id": 3}, None),
        ]
        assert (second.counts.consumed, second.counts.forwarded, second.counts.produced) == (3, 3, 4)
        assert [shown(r) for r in replicated.records(second) if r.value is None] == [({"id": 3}, None)]
        assert replicated.replicate().counts.consumed == 0

    def test_says_which_transactions_its_slot_waits_for(self, replicated: Source, caplog: pytest.LogCaptureFixture) -> None:
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        with psycopg.connect(replicated.url, application_name="a report") as other, ThreadPoolExecutor(1) as pool:
            other.execute("SELECT pg_current_xact_id()")
            reading = pool.submit(replicated.replicate)
            wait_for(lambda: "making the slot waits" in caplog.text, "the line")
            assert not reading.done()
            other.commit()
            assert reading.result().counts.consumed == 1
        (line,) = [record for record in caplog.records if record.message.startswith("making the slot waits")]
        assert "a report" in str(vars(line))

    def test_holds_what_was_committed_before_its_end_and_the_next_one_the_rest(self, replicated: Source) -> None:
        replicated.replicate()
        replicated.run("INSERT INTO {} VALUES (1, 1, 'in')")
        run = replicated.window()
        replicated.run("INSERT INTO {} VALUES (2, 2, 'after')")
        assert [after["b"] for _, _, after in replicated.changes(replicated.replicate(run))] == ["in"]
        assert [after["b"] for _, _, after in replicated.changes(replicated.replicate())] == ["after"]

    def test_that_is_finished_is_returned_whatever_is_asked(self, replicated: Source) -> None:
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        run = replicated.window(rerun="redo", run_id="r1")
        done, again = replicated.replicate(run), replicated.replicate(run)
        assert again.reused
        assert again.manifest == done.manifest

    def test_before_one_that_was_read_is_empty_and_says_so(self, replicated: Source) -> None:
        early = replicated.window()
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        assert replicated.replicate().counts.consumed == 1
        late = replicated.replicate(early)
        assert late.counts.consumed == 0
        assert late.notes == ("its changes were read by a later window",)

    def test_confirms_all_that_is_in_the_ledger_so_that_the_server_forgets_it(self, replicated: Source) -> None:
        replicated.replicate()
        replicated.run("INSERT INTO {} SELECT g, g, 'x' FROM generate_series(1, 1000) g")
        at = replicated.confirmed()
        replicated.replicate()
        assert replicated.confirmed() > at
        ((behind,),) = replicated.connection.execute(
            "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", [replicated.slot]
        ).fetchall()
        assert behind < 16_000_000

    def test_begins_without_the_rows_if_told(self, replicated: Source) -> None:
        replicated.params["snapshot"] = False
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        assert replicated.replicate().counts.consumed == 0
        replicated.run("INSERT INTO {} VALUES (2, 2, 'y')")
        assert [c[0] for c in replicated.changes(replicated.replicate())] == ["c"]


class TestChanges:
    def test_of_a_key_are_a_delete_and_an_insert(self, replicated: Source) -> None:
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x'), (2, 2, 'y')")
        replicated.replicate()
        replicated.run("UPDATE {} SET id = id + 10 WHERE id = 1")
        result = replicated.replicate()
        assert replicated.changes(result) == [("d", {"id": 1}, None), ("c", None, {"id": 11, "a": 1, "b": "x"})]
        assert (result.counts.consumed, result.counts.produced) == (1, 3)
        replicated.run("ALTER TABLE {} REPLICA IDENTITY FULL")
        replicated.run("UPDATE {} SET id = 12 WHERE id = 2")
        assert replicated.changes(replicated.replicate()) == [
            ("d", {"id": 2, "a": 2, "b": "y"}, None),
            ("c", None, {"id": 12, "a": 2, "b": "y"}),
        ]

    @pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
    def test_that_leave_a_large_value_as_it_was_bring_it_along(self, replicated: Source, identity: str) -> None:
        replicated.run(f"ALTER TABLE {{}} REPLICA IDENTITY {identity}")
        replicated.run("ALTER TABLE {} ALTER COLUMN b SET STORAGE EXTERNAL")
        large, newer = "x" * 9000, "y" * 9000
        replicated.run(f"INSERT INTO {{}} VALUES (1, 1, '{large}'), (2, 2, '{large}'), (3, 3, '{large}')")
        replicated.replicate()
        replicated.run("UPDATE {} SET a = 10")
        replicated.run(f"UPDATE {{}} SET b = '{newer}' WHERE id = 2")
        replicated.run("DELETE FROM {} WHERE id = 3")
        result = replicated.replicate()
        last = {event["after"]["id"]: event["after"] for _, event in map(shown, replicated.records(result)) if event and event["after"]}
        assert last[1] == {"id": 1, "a": 10, "b": large}
        assert last[2] == {"id": 2, "a": 10, "b": newer}
        assert result.counts.filtered == (identity == "DEFAULT")  # the row of which only its delete is known

    def test_come_as_the_table_was_when_they_were_made(self, replicated: Source) -> None:
        replicated.replicate()
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        replicated.run("ALTER TABLE {} ADD COLUMN c jsonb DEFAULT '[1]'")
        replicated.run("INSERT INTO {} VALUES (2, 2, 'y')")
        replicated.run("ALTER TABLE {} DROP COLUMN a")
        replicated.run("ALTER TABLE {} RENAME COLUMN b TO d")
        replicated.run("INSERT INTO {} VALUES (3, 'z', NULL)")
        assert [after for _, _, after in replicated.changes(replicated.replicate())] == [
            {"id": 1, "a": 1, "b": "x"},
            {"id": 2, "a": 2, "b": "y", "c": [1]},
            {"id": 3, "d": "z", "c": None},
        ]

    def test_of_other_tables_of_a_publication_are_passed_over(self, replicated: Source) -> None:
        replicated.connection.execute("CREATE TABLE other (id int PRIMARY KEY)")
        replicated.run("CREATE PUBLICATION two FOR TABLE {}, other")
        replicated.params["publication"] = "two"
        replicated.replicate()
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        replicated.connection.execute("INSERT INTO other VALUES (1)")
        assert replicated.replicate().counts.consumed == 1

    def test_of_partitions_are_the_whole_tables(self, replicated: Source) -> None:
        replicated.run("DROP TABLE {}")
        replicated.run("CREATE TABLE {} (id bigint PRIMARY KEY, a bigint, b text) PARTITION BY RANGE (id)")
        replicated.run("CREATE TABLE low PARTITION OF {} FOR VALUES FROM (0) TO (10)")
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        assert replicated.replicate().counts.consumed == 1
        replicated.run("CREATE TABLE high PARTITION OF {} FOR VALUES FROM (10) TO (20)")
        replicated.run("INSERT INTO {} VALUES (11, 1, 'y')")
        replicated.run("UPDATE {} SET id = 12 WHERE id = 1")  # into another partition
        result = replicated.replicate()
        assert {c[0] for c in replicated.changes(result)} == {"c", "d"}
        assert {r.event["source"]["table"] for r in replicated.records(result) if r.value} == {replicated.table}

    def test_that_were_rolled_back_are_none(self, replicated: Source) -> None:
        replicated.replicate()
        with replicated.connection.transaction(force_rollback=True):
            replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        assert replicated.replicate().counts.consumed == 0


VALUES = [
    ("smallint", "-1", -1),
    ("bigint", "9223372036854775807", 2**63 - 1),
    ("numeric", "12345678901234567890.000", "12345678901234567890.000"),
    ("numeric", "NaN", "NaN"),
    ("double precision", "0.1", 0.1),
    ("double precision", "-Infinity", "-Infinity"),
    ("boolean", "true", True),
    ("text", 'a "quoted" \\ line\n\ttab é \U0001f600', 'a "quoted" \\ line\n\ttab é \U0001f600'),
    ("char(3)", "a", "a  "),
    ("bytea", "\\x00ff10", "AP8Q"),
    ("timestamptz", "2026-11-01 04:00:00.5+02", "2026-11-01T02:00:00.5Z"),
    ("timestamp", "2026-11-01 04:00:00", "2026-11-01T04:00:00Z"),
    ("timestamptz", "infinity", "infinity"),
    ("date", "2026-11-01", "2026-11-01"),
    ("time", "04:05:06.7", "04:05:06.7"),
    ("interval", "1 day 02:00", "P1DT2H"),
    ("uuid", "6f1c7a3e-0000-4000-8000-000000000001", "6f1c7a3e-0000-4000-8000-000000000001"),
    ("jsonb", '{"n": 1.10, "s": ["é"]}', {"n": 1.1, "s": ["é"]}),
    ("json", "null", None),
    ("int[]", "{1,NULL,3}", [1, None, 3]),
    ("int[]", "{}", []),
    ("int[]", "[0:1]={5,6}", [5, 6]),
    ("text[]", '{{"a,b","c\\"d"},{NULL,"NULL"}}', [["a,b", 'c"d'], [None, "NULL"]]),
    ("timestamptz[]", '{"2026-11-01 04:00:00+00"}', ["2026-11-01T04:00:00Z"]),
    ("money_like", "1.50", "1.50"),
    ("small", "7", 7),
    ("small[]", "{7,8}", [7, 8]),
    ("mood", "sad", "sad"),
    ("int4range", "[1,5)", "[1,5)"),
    ("inet", "10.0.0.1", "10.0.0.1"),
]


def test_values_are_the_same_from_the_table_and_from_the_log(replicated: Source) -> None:
    replicated.connection.execute("CREATE DOMAIN money_like AS numeric(10, 2)")
    replicated.connection.execute("CREATE DOMAIN small AS smallint")
    replicated.connection.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    replicated.run("DROP TABLE {}")
    replicated.create("id bigint PRIMARY KEY, " + ", ".join(f"c{i} {type_}" for i, (type_, _, _) in enumerate(VALUES)))
    texts = [text for _, text, _ in VALUES]
    insert = "INSERT INTO {} VALUES (%s, " + ", ".join(["%s"] * len(VALUES)) + ")"

    def add(key: int) -> None:
        from psycopg import sql

        replicated.connection.execute(sql.SQL(insert).format(sql.Identifier(replicated.table)), [key, *texts])

    add(1)
    replicated.run("INSERT INTO {} (id) VALUES (2)")
    wanted = {f"c{i}": value for i, (_, _, value) in enumerate(VALUES)}
    rows = {after["id"]: after for _, _, after in replicated.changes(replicated.replicate())}
    assert rows[1] == {"id": 1, **wanted}
    assert rows[2] == {"id": 2, **dict.fromkeys(wanted)}
    add(3)
    ((_, _, after),) = replicated.changes(replicated.replicate())
    assert after == {"id": 3, **wanted}


def test_a_key_of_several_columns_tells_rows_apart(replicated: Source) -> None:
    replicated.run("DROP TABLE {}")
    replicated.create('"Region" text, n int, v text, PRIMARY KEY (n, "Region")')
    replicated.run("INSERT INTO {} SELECT r, n, 'x' FROM unnest(ARRAY['é', 'a''b', E'c\\\\d\\t']) r, generate_series(1, 2) n")
    first = replicated.replicate()
    assert first.counts.consumed == 6
    replicated.run("DELETE FROM {} WHERE n = 2")
    keys = {json.dumps(shown(r)[0], sort_keys=True) for r in replicated.records(replicated.replicate())}
    assert keys == {json.dumps({"Region": r, "n": 2}, sort_keys=True) for r in ("é", "a'b", "c\\d\t")}


class TestATruncate:
    def test_ends_the_window_before_it_and_stops_the_next_until_it_is_passed(self, replicated: Source) -> None:
        replicated.replicate()
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        replicated.run("TRUNCATE {}")
        replicated.run("INSERT INTO {} VALUES (2, 2, 'y')")
        before = replicated.replicate()
        assert [c[0] for c in replicated.changes(before)] == ["c"]
        assert "truncated" in before.notes[0]
        run = replicated.window()
        with pytest.raises(DataLossError, match="truncate=pass"):
            replicated.replicate(run)
        replicated.params["truncate"] = "pass"
        passed = replicated.replicate(replicated.of(run.interval))
        assert [c[0] for c in replicated.changes(passed)] == ["t", "c"]


class TestRefusals:
    def test_a_table_without_a_key(self, replicated: Source) -> None:
        replicated.run("DROP TABLE {}")
        replicated.create("id bigint, a bigint")
        with pytest.raises(ConfigurationError, match="has no key"):
            replicated.replicate()
        replicated.run("ALTER TABLE {} ALTER id SET NOT NULL")
        replicated.run("CREATE UNIQUE INDEX own_identity ON {} (id)")
        replicated.run("ALTER TABLE {} REPLICA IDENTITY USING INDEX own_identity")
        replicated.run("INSERT INTO {} VALUES (1, 1)")
        assert replicated.replicate().counts.consumed == 1

    @pytest.mark.parametrize(("params", "match"), [({"table": "nowhere"}, "is not there"), ({"slot": "Bad-Name"}, "lower case")])
    def test_what_is_not_there_or_not_allowed(self, replicated: Source, params: dict[str, str], match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            replicated.replicate(replicated.window(params=params))

    def test_a_slot_that_the_ledger_does_not_know(self, replicated: Source) -> None:
        replicated.connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [replicated.slot])
        with pytest.raises(ConfigurationError, match="knows nothing of it"):
            replicated.replicate()

    def test_a_slot_of_another_database(self, replicated: Source, database_url: str) -> None:
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [replicated.slot])
            with pytest.raises(ConfigurationError, match="another database's"):
                replicated.replicate()
            other.execute("SELECT pg_drop_replication_slot(%s)", [replicated.slot])

    def test_a_window_while_the_one_before_it_is_not_finished(self, replicated: Source) -> None:
        replicated.run("INSERT INTO {} SELECT g, g, 'x' FROM generate_series(1, 100) g")
        first = replicated.window()
        replicated.runs.killed(first, "replicate.committed=kill@3")
        replicated.run("INSERT INTO {} VALUES (101, 1, 'y')")
        second = replicated.window()
        with pytest.raises(UnavailableError, match="is begun and not finished"):
            replicated.replicate(second)
        assert replicated.replicate(first).resumed
        assert replicated.replicate(second).counts.consumed >= 0


def test_the_rights_that_the_docs_name_are_enough(replicated: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    role, publication = f"reader_{replicated.table}", f"p_{replicated.table}"
    replicated.params["publication"] = publication
    replicated.run(f"CREATE PUBLICATION {publication} FOR TABLE {{}} WITH (publish_via_partition_root = true)")
    replicated.run(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'sesame'")
    replicated.run(f"GRANT SELECT ON {{}} TO {role}")
    try:
        monkeypatch.setenv("DATABASE_URL", re.sub(r"//[^@]*@", f"//{role}:sesame@", replicated.url))
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        assert replicated.replicate().counts.consumed == 1
        replicated.run("UPDATE {} SET a = 2")
        assert replicated.replicate().counts.consumed == 1
    finally:
        replicated.end()
        replicated.run(f"DROP OWNED BY {role}")
        replicated.run(f"DROP ROLE {role}")


class TestALoss:
    """What can't be gone on from is said, and with ``accept_loss`` begun again."""

    def again(self, replicated: Source, match: str) -> None:
        with pytest.raises(DataLossError, match=match):
            replicated.replicate()
        result = replicated.replicate(replicated.window(accept_loss=True))
        assert {c[0] for c in replicated.changes(result)} == {"r"}
        assert "began again with a snapshot" in result.notes[0]
        replicated.run("INSERT INTO {} VALUES (1000, 1, 'later')")
        assert [c[0] for c in replicated.changes(replicated.replicate())] == ["c"]

    @pytest.fixture(autouse=True)
    def begun(self, replicated: Source) -> None:
        replicated.run("INSERT INTO {} VALUES (1, 1, 'x')")
        replicated.replicate()

    def test_of_the_slot(self, replicated: Source) -> None:
        replicated.connection.execute("SELECT pg_drop_replication_slot(%s)", [replicated.slot])
        self.again(replicated, "is gone")

    def test_of_changes_that_somebody_else_took(self, replicated: Source) -> None:
        replicated.run("INSERT INTO {} VALUES (2, 2, 'taken')")
        replicated.connection.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [replicated.slot])
        self.again(replicated, "was read by somebody else")

    def test_of_changes_while_the_publication_was_gone(self, replicated: Source) -> None:
        ((publication,),) = replicated.run("SELECT pubname FROM pg_publication")
        replicated.run(f'DROP PUBLICATION "{publication}"')
        replicated.run("INSERT INTO {} VALUES (2, 2, 'lost')")
        self.again(replicated, "was made again")

    def test_of_changes_while_the_table_was_out_of_it(self, replicated: Source) -> None:
        ((publication,),) = replicated.run("SELECT pubname FROM pg_publication")
        replicated.run(f'ALTER PUBLICATION "{publication}" DROP TABLE {{}}')
        replicated.run("INSERT INTO {} VALUES (2, 2, 'lost')")
        replicated.run(f'ALTER PUBLICATION "{publication}" ADD TABLE {{}}')
        self.again(replicated, "taken out of it")

    def test_of_the_table(self, replicated: Source) -> None:
        replicated.run("DROP TABLE {}")
        replicated.create()
        replicated.run("INSERT INTO {} VALUES (5, 5, 'new')")
        self.again(replicated, "deleted and created again")
