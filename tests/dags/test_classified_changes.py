"""The shipped pipeline over a model, against a stand-in that counts what it is asked."""

from __future__ import annotations

import json

import pytest

from tests.support.airflow_env import DATABASE, bytes_of
from tests.support.model_server import ModelServer
from tests.support.repository import Repository

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]

DAG, TABLE = "classified_changes", "classified_changes"


def kind(question: str) -> dict[str, str]:
    """What a model that can read would say."""
    return {"kind": "test" if "test" in question else "docs" if ".md" in question else "code"}


def connect(repository: Repository, server: ModelServer) -> None:
    connection = {"conn_type": "pydanticai", "host": server.url, "password": "sesame-of-the-model", "extra": {"model": "m"}}
    repository.environment["AIRFLOW_CONN_MODEL_DEFAULT"] = json.dumps(connection)


def test_an_hour_lands_classified_and_is_asked_about_once_however_often_it_runs(repository: Repository) -> None:
    with ModelServer(kind) as server:
        connect(repository, server)
        state, printed = repository.run(dag=DAG)
        assert state == "success", printed
        assert "sesame-of-the-model" not in printed
        assert b"sesame-of-the-model" not in bytes_of(DATABASE)
        asked = server.calls
        assert max(server.answered.values()) == 1, "equal questions are asked once"
    rows = repository.rows(TABLE, "event_id, path, answer")
    assert len(rows) >= 137 >= asked > 100, printed
    assert {answer["kind"] for _, _, answer in rows} == {"code", "docs", "test"}
    assert all(answer["kind"] == "test" for _, path, answer in rows if "test" in path)

    with ModelServer(kind) as server:
        connect(repository, server)
        state, printed = repository.run({"reprocess": True}, dag=DAG)
        assert state == "success", printed
        assert server.requests == [], "finished work is done again with the answers that are logged"
    assert repository.rows(TABLE, "event_id, path, answer") == rows


def test_without_a_connection_one_line_says_so(repository: Repository) -> None:
    repository.environment.pop("AIRFLOW_CONN_MODEL_DEFAULT", None)
    state, printed = repository.run(dag=DAG)
    assert state == "failed"
    assert "connection 'model_default' (model_conn_id) is not defined in Airflow" in printed, printed
    assert repository.rows(TABLE) == []
