"""Lookups: what a reference adds to events, and what happens where it has nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from confluent_kafka import Message
from psycopg import sql

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.runtime.agents import Reject
from factory_agents.sources.lookups import Lookup, LookupJoin
from tests.support.databases import end_sessions

REPOS = "repo,language,stars\nlibrdkafka,C,7\nmsgspec,Python,2\n"


@pytest.fixture
def repos(tmp_path: Path) -> Path:
    """A reference file."""
    path = tmp_path / "repos.csv"
    path.write_text(REPOS)
    return path


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """A connection to a database with a reference table, which DATABASE_URL leads to as well."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS repos; CREATE TABLE repos (id int UNIQUE, repo text, ref uuid, price numeric)")
        connection.execute(
            """INSERT INTO repos VALUES (1, 'librdkafka', '00000000-0000-0000-0000-00000000000a', 1.50),
            (2, 'msgspec', '00000000-0000-0000-0000-00000000000b', null)"""
        )
        yield connection


def join(events: list[dict[str, Any]], *lookups: Lookup) -> list[dict[str, Any] | Reject]:
    joined = LookupJoin(lookups)
    try:
        return joined.join(events)
    finally:
        joined.close()


class TestFiles:
    def test_all_columns_but_the_key_are_added(self, repos: Path) -> None:
        events = [{"repo": "msgspec", "n": 1}, {"repo": "librdkafka"}]
        assert join(events, Lookup(on="repo", file=str(repos))) == [
            {"repo": "msgspec", "n": 1, "language": "Python", "stars": "2"},
            {"repo": "librdkafka", "language": "C", "stars": "7"},
        ]

    def test_chosen_fields_under_a_prefix_by_another_key(self, repos: Path) -> None:
        lookup = Lookup(on="r", key="repo", file=str(repos), fields=("stars",), prefix="repo_", types={"stars": "integer"})
        assert join([{"r": "msgspec"}], lookup) == [{"r": "msgspec", "repo_stars": 2}]

    @pytest.mark.parametrize("event", [{"repo": "new"}, {"repo": None}, {}, {"repo": ["msgspec"]}])
    def test_without_a_row_it_is_nulls_or_nothing_or_a_reject(self, repos: Path, event: dict[str, Any]) -> None:
        assert join([dict(event)], Lookup(on="repo", file=str(repos))) == [event | {"language": None, "stars": None}]
        assert join([dict(event)], Lookup(on="repo", file=str(repos), on_missing="skip")) == [event]
        (reject,) = join([dict(event)], Lookup(on="repo", file=str(repos), on_missing="reject"))
        assert isinstance(reject, Reject)
        assert (reject.rule, "is not in file" in reject.reason) == ("lookup", True)

    def test_lookups_follow_each_other(self, repos: Path, tmp_path: Path) -> None:
        languages = tmp_path / "languages.jsonl"
        languages.write_text('{"language":"C","since":{"year":1972}}\n')
        first, second = join(
            [{"repo": "librdkafka"}, {"repo": "new"}],
            Lookup(on="repo", file=str(repos), on_missing="reject"),
            Lookup(on="language", file=str(languages)),
        )
        assert first == {"repo": "librdkafka", "language": "C", "stars": "7", "since": {"year": 1972}}
        assert isinstance(second, Reject)

    def test_what_an_agent_does_to_a_value_stays_with_its_event(self, tmp_path: Path) -> None:
        path = tmp_path / "r.jsonl"
        path.write_text('{"k":"a","v":[1]}\n')
        joined = LookupJoin([Lookup(on="k", file=str(path))])
        (event,) = joined.join([{"k": "a"}])
        assert isinstance(event, dict)
        event["v"].append(2)
        assert joined.join([{"k": "a"}]) == [{"k": "a", "v": [1]}]

    def test_numbers_meet_the_text_of_a_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "r.csv"
        path.write_text("k,v\n7,x\n")
        assert join([{"k": 7}, {"k": "7"}], Lookup(on="k", file=str(path))) == [{"k": 7, "v": "x"}, {"k": "7", "v": "x"}]

    def test_the_identity_is_the_content(self, repos: Path) -> None:
        before = LookupJoin([Lookup(on="repo", file=str(repos))]).identity
        assert before == LookupJoin([Lookup(on="repo", file=str(repos))]).identity
        assert "volatile" not in before
        repos.write_text(REPOS.replace("7", "8"))
        assert before != LookupJoin([Lookup(on="repo", file=str(repos))]).identity

    @pytest.mark.parametrize(
        ("text", "lookup", "message"),
        [
            (REPOS + "msgspec,x,1\n", {}, r"repos.csv:4: the key repo='msgspec' is there twice"),
            (REPOS + "x\n", {}, r"repos.csv:4: expected 3 values"),
            (REPOS, {"key": "rep"}, r"the lookup's key column 'rep' is not there; did you mean 'repo'"),
            (REPOS, {"fields": ("star",)}, r"the lookup's field 'star' is not there; did you mean 'stars'"),
        ],
    )
    def test_a_reference_that_cannot_be_used_is_one_clear_line(self, repos: Path, text: str, lookup: dict[str, Any], message: str) -> None:
        repos.write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            join([], Lookup(on="repo", file=str(repos), **lookup))


def test_a_lookup_is_of_a_file_or_of_a_table() -> None:
    with pytest.raises(msgspec.ValidationError, match="needs either a file or a table"):
        msgspec.convert({"on": "k"}, Lookup)
    with pytest.raises(msgspec.ValidationError, match="needs either a file or a table"):
        msgspec.convert({"on": "k", "file": "a", "table": "b"}, Lookup)


class TestTables:
    @pytest.mark.parametrize(
        ("key", "hit", "misses"),
        [
            ("id", 1, ["1x", "", 99, 2**63, 10**18, 10**30, "01", "1\u0661", 1.0]),
            ("repo", "librdkafka", ["LIBRDKAFKA", "'; DROP TABLE repos", "librd\0kafka", "\ud800"]),
            ("ref", "00000000-0000-0000-0000-00000000000a", ["no-uuid", "00000000-0000-0000-0000-00000000000A"]),
            ("price", "1.50", ["1.5", 2]),
        ],
    )
    def test_a_row_is_found_by_its_text_whatever_the_type(
        self, database: psycopg.Connection, key: str, hit: object, misses: list[object]
    ) -> None:
        lookup = Lookup(on="k", key=key, table="repos", fields=("repo", "price"), prefix="r_")
        first, *rest = join([{"k": hit}] + [{"k": miss} for miss in misses], lookup)
        assert first == {"k": hit, "r_repo": "librdkafka", "r_price": "1.50"}
        assert rest == [{"k": miss, "r_repo": None, "r_price": None} for miss in misses]

    @pytest.mark.parametrize("key", [2**63 - 1, -(2**63), 1234567890123456789, 10**18 - 1])
    def test_whole_numbers_of_every_size_are_found(self, database: psycopg.Connection, key: int) -> None:
        database.execute(f"ALTER TABLE repos ALTER id TYPE bigint; UPDATE repos SET id = {key} WHERE id = 1")
        assert join([{"id": key}, {"id": str(key)}], Lookup(on="id", table="repos", fields=("repo",))) == [
            {"id": key, "repo": "librdkafka"}, {"id": str(key), "repo": "librdkafka"},
        ]  # fmt: skip

    @pytest.mark.parametrize("name", ["c", "q", "r", "factory_row", "share %", "%s", "100%%", 'Mixed "Case"', "select"])
    def test_a_column_may_have_any_name(self, database: psycopg.Connection, name: str) -> None:
        database.execute(sql.SQL("ALTER TABLE repos RENAME repo TO {}").format(sql.Identifier(name)))
        assert join([{"id": 1}], Lookup(on="id", table="repos", fields=(name,))) == [{"id": 1, name: "librdkafka"}]

    def test_a_batch_is_one_query_and_what_was_found_is_kept(self, database: psycopg.Connection) -> None:
        joined = LookupJoin([Lookup(on="id", table="repos", fields=("repo",), cache_size=1)])
        assert joined.join([{"id": 1}, {"id": 2}, {"id": 1}]) == [
            {"id": 1, "repo": "librdkafka"}, {"id": 2, "repo": "msgspec"}, {"id": 1, "repo": "librdkafka"},
        ]  # fmt: skip
        database.execute("UPDATE repos SET repo = 'changed'")
        assert joined.join([{"id": 2}]) == [{"id": 2, "repo": "msgspec"}]
        assert joined.join([{"id": 1}]) == [{"id": 1, "repo": "changed"}]
        joined.close()

    def test_a_key_that_was_missing_is_asked_for_again(self, database: psycopg.Connection) -> None:
        joined = LookupJoin([Lookup(on="id", table="repos", fields=("repo",))])
        assert joined.join([{"id": 3}]) == [{"id": 3, "repo": None}]
        database.execute("INSERT INTO repos VALUES (3, 'new')")
        assert joined.join([{"id": 3}]) == [{"id": 3, "repo": "new"}]
        joined.close()

    def test_an_outage_is_no_reject_and_the_next_try_connects_again(self, database: psycopg.Connection) -> None:
        joined = LookupJoin([Lookup(on="id", table="repos", fields=("repo",), on_missing="reject")])
        joined.join([{"id": 1}])
        end_sessions(database)
        with pytest.raises(UnavailableError, match="table 'repos'"):
            joined.join([{"id": 2}])
        assert joined.join([{"id": 2}]) == [{"id": 2, "repo": "msgspec"}]
        joined.close()

    def test_a_database_that_does_not_answer_is_an_outage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/x")
        with pytest.raises(UnavailableError):
            join([{"id": 1}], Lookup(on="id", table="repos"))

    def test_a_key_there_twice_is_an_error(self, database: psycopg.Connection) -> None:
        database.execute("INSERT INTO repos VALUES (3, 'msgspec')")
        with pytest.raises(ConfigurationError, match="the key repo='msgspec' is there twice"):
            join([{"repo": "msgspec"}], Lookup(on="repo", table="repos"))

    def test_a_column_that_is_not_there_is_an_error(self, database: psycopg.Connection) -> None:
        with pytest.raises(ConfigurationError, match="did you mean 'price'"):
            join([{"id": 1}], Lookup(on="id", table="repos", fields=("prize",)))

    def test_a_table_can_change_so_its_results_are_not_taken_up_again(self) -> None:
        assert LookupJoin([Lookup(on="id", table="repos")]).identity["volatile"] is True


def test_numbers_of_a_reference_keep_their_digits(database: psycopg.Connection, tmp_path: Path) -> None:
    from factory_agents.enrich import build

    number = "12345678901234567.89"
    (tmp_path / "f.jsonl").write_text(f'{{"id":1,"n":[{number}]}}\n')
    (tmp_path / "f.csv").write_text(f"id,m\n1,{number}\n")
    database.execute(f"CREATE TABLE numbers (id int, j json); INSERT INTO numbers VALUES (1, '{number}')")
    lookups = [
        {"on": "id", "file": str(tmp_path / "f.jsonl")},
        {"on": "id", "file": str(tmp_path / "f.csv"), "types": {"m": "number"}},
        {"on": "id", "table": "numbers"},
    ]
    enrich = build({"lookups": lookups})
    try:
        for _ in range(2):
            value: Any = Message(topic="t", partition=0, offset=0, value=b'{"id":1,"x":0.5}')
            outputs = enrich.process([value])
            assert outputs == [f'{{"id":1,"x":0.5,"n":[{number}],"m":{number},"j":{number},"enriched":true}}'.encode()]
    finally:
        enrich.close()
        database.execute("DROP TABLE numbers")


def test_a_key_of_more_digits_than_a_float_holds_is_found(database: psycopg.Connection, tmp_path: Path) -> None:
    from factory_agents.enrich import build

    keys = ["12345678901234567.89", "12345678901234567.88"]
    (tmp_path / "f.jsonl").write_text("".join(f'{{"k":{key},"n":{i}}}\n' for i, key in enumerate(keys)))
    database.execute(f"INSERT INTO repos (price, repo) VALUES ({keys[0]}, 'a'), ({keys[1]}, 'b')")
    lookups = [{"on": "k", "file": str(tmp_path / "f.jsonl")}, {"on": "k", "key": "price", "table": "repos", "fields": ["repo"]}]
    enrich = build({"lookups": lookups})
    try:
        messages: list[Any] = [Message(topic="t", partition=0, offset=0, value=f'{{"k":{key}}}'.encode()) for key in keys]
        assert enrich.process(messages) == [
            f'{{"k":{key},"n":{i},"repo":"{"ab"[i]}","enriched":true}}'.encode() for i, key in enumerate(keys)
        ]
    finally:
        enrich.close()


def test_a_reference_with_a_number_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text('{"id":1,"n":1e400}\n')
    with pytest.raises(ConfigurationError, match=r"f\.jsonl:1: not JSON: Number out of range; correct this reference file"):
        LookupJoin([Lookup(on="id", file=str(tmp_path / "f.jsonl"))])
