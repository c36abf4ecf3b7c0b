"""``factory sinks check``: what a first publish would find and do, with nothing done."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pyiceberg.catalog import load_catalog

from factory_agents.errors import ConfigurationError, FactoryError, SinkError, UnavailableError
from factory_agents.publish import build
from tests.support.bigquery import Emulator
from tests.support.commands import Command
from tests.support.snowflake import SnowflakeSchema

COLUMNS = {"id": "text", "n": "numeric(10,2)", "value": "text"}
CONTRACT: dict[str, Any] = {"name": "events", "id": "id", "deletes": True, "columns": COLUMNS, "version_field": "n"}


def _check(**params: Any) -> list[str]:
    sink: Any = build({"contract": CONTRACT} | params)
    try:
        lines: list[str] = sink.check()
    finally:
        sink.close()
    return lines


def _wrong(error: type[FactoryError], **params: Any) -> str:
    with pytest.raises(error) as raised:
        _check(**params)
    return str(raised.value)


@pytest.fixture
def schema(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A schema of this test's own."""
    name = f"check_{secrets.token_hex(4)}"
    monkeypatch.setenv("DATABASE_URL", database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    yield name
    with psycopg.connect(database_url) as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE")


class TestTheCommand:
    def test_it_says_what_a_first_publish_would_create(self, factory: Command, database_url: str, schema: str) -> None:
        done = factory("sinks", "check", f"{schema}.t", "--contract", json.dumps(CONTRACT), "--json", DATABASE_URL=database_url)
        assert (done.code, done.err) == (0, "")
        assert done.data["ok"]
        assert f"{schema}.factory_deleted_t would be created" in done.data["found"]

    def test_what_is_in_the_way_is_one_line_and_an_exit_status(self, factory: Command, database_url: str, schema: str) -> None:
        arguments = ("-p", "create_table:=false", "--contract", json.dumps(CONTRACT))
        done = factory("sinks", "check", f"{schema}.t", *arguments, "--json", DATABASE_URL=database_url)
        assert (done.code, done.err, done.data["ok"]) == (1, "", False)
        assert f"table {schema}.t does not exist, and create_table is off" in done.data["wrong"]


class TestPostgres:
    def test_all_is_done_and_rolled_back(self, database_url: str, schema: str) -> None:
        found = _check(table=f"{schema}.events")
        assert found[1].startswith(f"{schema}.events would be created: id text, n numeric(10,2), value text")
        tables = ("factory_publishes", "factory_publications", "factory_horizons", "factory_deleted_events")
        assert found[2:6] == [f"{schema}.{name} would be created" for name in tables]
        with psycopg.connect(database_url) as connection:
            assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = %s", [schema]).fetchall() == [(0,)]

    def test_what_is_there_is_compared(self, database_url: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute(f"CREATE TABLE {schema}.events (id text PRIMARY KEY, n numeric(10,2), value text)")
            connection.execute(f"CREATE TABLE {schema}.other (id text PRIMARY KEY, n boolean, value text)")
        assert _check(table=f"{schema}.events")[1].startswith(f"{schema}.events is there, and takes the columns: id text")
        assert "column 'n'" in _wrong(SinkError, table=f"{schema}.other")
        monkeypatch.setenv("DATABASE_URL", "postgresql://u@127.0.0.1:9/x")
        _wrong(UnavailableError, table="events")

    def test_a_right_that_is_missing_is_named(self, database_url: str, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute(
                f"CREATE ROLE {schema} LOGIN PASSWORD 'own'; CREATE TABLE {schema}.events (id text PRIMARY KEY, n numeric, value text)"
            )
            connection.execute(f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {schema}; GRANT SELECT ON {schema}.events TO {schema}")
        try:
            monkeypatch.setenv("DATABASE_URL", re.sub("//.*@", f"//{schema}:own@", database_url))
            assert f"GRANT INSERT, UPDATE, DELETE ON {schema}.events" in _wrong(ConfigurationError, table=f"{schema}.events")
        finally:
            with psycopg.connect(database_url) as connection:
                connection.execute(f"DROP OWNED BY {schema}; DROP ROLE {schema}")


def test_bigquery(emulator: Emulator) -> None:
    table, project = f"{emulator.dataset}.events", emulator.client.project
    found = _check(sink="bigquery", table=table)
    assert found[1] == f"{project}.{table} would be created: id STRING, n NUMERIC(10, 2), value STRING"
    own = [f"{project}.{emulator.dataset}.{name}_events would be created" for name in ("factory_publishes", "factory_deleted")]
    assert (found[2:], emulator.tables()) == (own, [])
    emulator.query("CREATE TABLE {d}.events (id STRING, n NUMERIC)")
    assert {"its rows may be changed", "column value STRING would be added", own[0]} < {*_check(sink="bigquery", table=table)}
    assert emulator.tables() == ["events"]
    emulator.query("CREATE TABLE {d}.narrow (id INT64, n NUMERIC)")
    assert "column 'id': expected STRING, found INT64" in _wrong(SinkError, sink="bigquery", table=f"{emulator.dataset}.narrow")


def test_snowflake(snowflake: SnowflakeSchema) -> None:
    found = _check(sink="snowflake", table="events")
    assert found[1].endswith(f".{snowflake.name}.EVENTS would be created: ID text, N numeric(10,2), VALUE text")
    own = [f"{name}_EVENTS would be created" for name in ("FACTORY_PUBLISHES", "FACTORY_DELETED")]
    assert [line.rpartition(".")[2] for line in found[2:]] == own
    assert snowflake.tables() == []
    snowflake.query("CREATE TABLE EVENTS (ID VARCHAR, N NUMBER(20,2))")
    assert {"its rows may be changed", "column VALUE VARCHAR(16777216) would be added"} < {*_check(sink="snowflake", table="events")}
    snowflake.query("CREATE TABLE NARROW (ID NUMBER(38,0), N NUMBER(20,2))")
    assert "column 'id'" in _wrong(SinkError, sink="snowflake", table="narrow")


def test_iceberg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    monkeypatch.setenv("ICEBERG_CATALOG", json.dumps(properties))
    sink = {"sink": "iceberg", "table": "lake.t", "mode": "upsert"}
    assert _check(**sink)[1:] == ["lake.t would be created: id text, n numeric(10,2), value text"]
    catalog = load_catalog("default", **properties)
    assert not catalog.table_exists("lake.t")
    publisher: Any = build({"contract": CONTRACT | {"columns": {"id": "text", "n": "numeric(10,2)"}}} | sink)
    publisher._sink.open(publisher._table)
    publisher.close()
    before = sorted(tmp_path.rglob("*"))
    found = _check(**sink)
    assert found[1].startswith("lake.t is there, and takes the columns: id text")
    assert found[2:] == [f"files may be written to file://{tmp_path}/warehouse/lake/t", "column value string would be added or widened"]
    assert sorted(tmp_path.rglob("*.parquet")) == [path for path in before if path.suffix == ".parquet"]
    narrow = CONTRACT | {"columns": COLUMNS | {"n": "text"}}
    assert "column 'n': expected string, found decimal(10, 2)" in _wrong(SinkError, **sink, contract=narrow)
