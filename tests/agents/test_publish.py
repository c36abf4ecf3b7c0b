"""The built-in publish agent: its parameters."""

from __future__ import annotations

from typing import Any

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.protocol import AgentRef, AgentRun
from factory_agents.publish import build
from factory_agents.runtime.agents import LiveSink
from tests.support.sink_bench import CONTRACT


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"tabel": "x"}, "did you mean 'table'"),
        ({"table": ""}, "'table' is required"),
        ({"table": 5.5}, "table"),
        ({"table": "t", "live": "record"}, "live: expected one of: windows, records; found 'record'"),
        ({"table": "t", "live": True}, "live: expected one of: windows, records; found True"),
        ({"table": "d.t", "live": "records", "sink": "bigquery"}, "unknown parameter 'live'"),
        ({"table": "t", "live": "records", "sink": "snowflake"}, "unknown parameter 'live'"),
        ({"table": "d.t", "live": "records", "sink": "iceberg"}, "unknown parameter 'live'"),
        ({"path": "p", "table": "t", "live": "records", "sink": "tests.support.sqlite_sink:SqliteSink"}, "unknown parameter 'live'"),
        ({"table": "t", "lock_timeout": 0}, "lock_timeout"),
        ({"table": "t", "contract": {"name": "n", "id": None, "columns": {"a": "text"}}}, "names no key"),
        ({"table": "t", "contract": {"name": "n", "id": "id", "columns": {"id": "json"}}}, "no order"),
        ({"table": "t", "contract": CONTRACT | {"columns": {"id": "text", "at": "timestamptz"}}}, "version"),
    ],
)
def test_a_mistake_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, params: dict[str, Any], says: str) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@h:7/x")
    with pytest.raises(ConfigurationError, match=says) as caught:
        build(params)
    assert "\n" not in str(caught.value)


def test_a_window_is_not_published_record_by_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@h:7/x")
    params = {"table": "t", "live": "records"}
    assert isinstance(build(params), LiveSink)
    run = AgentRun("p", "publish", AgentRef("publish"))
    with pytest.raises(ConfigurationError, match="'records' is for a live publish"):
        build(params, run)


def test_deletes_that_a_sink_would_not_make_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="takes no deletes with mode: append"):
        build({"sink": "iceberg", "table": "d.t", "contract": CONTRACT | {"deletes": True}})


def test_the_identity_tells_table_contract_and_database_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg2://u:hunter2@h:7/x")
    identity = build({"table": "t", "contract": CONTRACT}).identity
    assert identity["table"] == "t"
    assert identity["database"] == "h:7/x"
    assert "hunter2" not in repr(identity)
