"""A replay is a task: each letter goes once, whatever becomes of it, and its result names what did not go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_factory.operators.replay import ReplayOperator
from factory_agents.errors import FencedError
from factory_agents.reject import Reject
from factory_agents.runtime import replays
from tests.support.airflow_env import DagRunner
from tests.support.pages import ROOT
from tests.support.runs import Runs
from tests.support.samples import context
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def here(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "kafka", "extra": {"bootstrap.servers": runs.bootstrap}}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__FACTORY__PREFIX", runs.prefix)


def refuse(event: dict[str, Any]) -> dict[str, Any]:
    raise Reject("odd" if event["event_id"] % 2 else "even", rule="odd" if event["event_id"] % 2 else "even")


@pytest.fixture
def letters(runs: Runs) -> tuple[str, str]:
    """A dead-letter topic with six letters of finished work, and the topic that the events came from."""
    topic = runs.topic("in", partitions=2)
    runs.produce(topic, [b'{"event_id": %d}' % i for i in range(6)])
    result = runs.transform(runs.run(runs.window(topic), runs.topic("out", partitions=2), max_rejected="100 %"), refuse)
    assert result.dead_letters is not None
    return result.dead_letters.topic, runs.topic("again", partitions=2)


def replay(letters: tuple[str, str], pushed: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    task = ReplayOperator(task_id="replay", topic=letters[0], to=letters[1], **more)
    kept = pushed if pushed is not None else {}
    return task.execute(context(ti=SimpleNamespace(xcom_push=lambda key, value: kept.update({key: value}))))  # type: ignore[arg-type]


def ids(runs: Runs, topic: str) -> list[int]:
    return sorted(r.id for r in runs.everything(topic))


def test_each_letter_goes_once_however_often_it_is_asked_for(runs: Runs, letters: tuple[str, str]) -> None:
    assert replay(letters, rule="odd")["replayed"] == 3
    again = replay(letters, rule="odd")
    assert (again["replayed"], again["before"]) == (0, 3)
    assert replay(letters)["replayed"] == 3
    assert ids(runs, letters[1]) == list(range(6))
    assert len(runs.everything(letters[0])) == 6  # nothing is deleted


def test_single_letters_are_replayed_by_their_positions(runs: Runs, letters: tuple[str, str]) -> None:
    some = [f"{r.partition}@{r.offset}" for r in runs.everything(letters[0])[:2]]
    wanted = sorted(r.id for r in runs.everything(letters[0])[:2])
    assert replay(letters, positions=some)["replayed"] == 2
    assert ids(runs, letters[1]) == wanted
    assert replay(letters, positions=",".join(some))["replayed"] == 0


def test_a_count_writes_nothing(runs: Runs, letters: tuple[str, str]) -> None:
    done = replay(letters, count_only="True", pipeline=runs.prefix)
    assert (done["replayed"], done["dry_run"]) == (6, True)
    assert ids(runs, letters[1]) == []


def test_what_the_target_refuses_is_named_and_fails_the_task_when_the_rest_has_gone(runs: Runs) -> None:
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, [b'{"event_id": 1}', b'{"event_id": 2, "text": "%s"}' % os.urandom(2000).hex().encode()])
    result = runs.transform(runs.run(runs.window(topic), runs.topic("out", partitions=1), max_rejected="100 %"), refuse)
    assert result.dead_letters is not None
    small = runs.topic("small", partitions=1, max_message_bytes=1000)
    pushed: dict[str, Any] = {}
    with pytest.raises(AirflowFailException, match="1 event not replayed, 1 replayed"):
        replay((result.dead_letters.topic, small), pushed)
    assert (pushed["return_value"]["refused_count"], len(pushed["return_value"]["refused"])) == (1, 1)
    assert ids(runs, small) == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rule": "no such rule"}, "no dead letter matches"),
        ({"positions": ["1@x"]}, "expected partition@offset"),
        ({"limit": "many"}, "limit: expected a number"),
        ({"rate": "-1"}, "rate: expected 0 or more"),
        ({"since": "yesterday"}, "since: expected a time"),
        ({"attempt": "mine"}, "expected one of finished"),
        ({"count_only": "perhaps"}, "count_only: expected true or false"),
        ({"stop_above": "5"}, "stop_above, .* are about the agent that through names"),
        ({"agent_params": {"contract": "plain.yaml"}}, "agent_params, .* are about the agent that through names"),
    ],
)
def test_what_makes_no_sense_is_refused_without_retries(letters: tuple[str, str], arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(AirflowFailException, match=said):
        replay(letters, **arguments)


KILLED = """
import sys
from types import SimpleNamespace
from airflow_provider_factory.operators.replay import ReplayOperator
ReplayOperator(task_id="replay", topic=sys.argv[1], to=sys.argv[2], rate=2).execute({"ti": SimpleNamespace()})
"""


@pytest.mark.parametrize("failpoint", ["chunk.before-commit", "chunk.after-commit"])
def test_a_task_that_was_killed_half_way_is_finished_by_its_retry(runs: Runs, letters: tuple[str, str], failpoint: str) -> None:
    environment = {**os.environ, "FACTORY_FAILPOINTS": f"{failpoint}=kill"}
    killed = subprocess.run([sys.executable, "-c", KILLED, *letters], env=environment, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    done = replay(letters)
    assert done["replayed"] == (4 if failpoint == "chunk.after-commit" else 6)
    assert ids(runs, letters[1]) == list(range(6))


def test_a_retry_of_a_repetition_leaves_out_what_the_task_has_replayed_and_a_clear_or_a_new_run_of_its_name_does_not(
    runs: Runs, letters: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(max_tries: int, began: datetime = datetime(2026, 11, 1, tzinfo=UTC)) -> Any:
        task = ReplayOperator(task_id="replay", topic=letters[0], to=letters[1], again=True)
        monkeypatch.setattr(replays._Replay, "_pace", lambda *_: task.on_kill())
        ti = SimpleNamespace(dag_id="d", task_id="replay", max_tries=max_tries)
        return task.execute(context(ti=ti, task=task, dag_run=SimpleNamespace(start_date=began)))  # type: ignore[arg-type]

    assert replay(letters)["replayed"] == 6
    with monkeypatch.context() as patched:
        patched.setattr(replays, "_CHUNK", 2)
        with pytest.raises(Exception, match="asked to stop"):
            run(1)
    assert [run(1)["replayed"] for _ in range(2)] == [4, 0]
    assert ids(runs, letters[1]) == sorted([*range(6)] * 2)
    assert run(3)["replayed"] == 6
    assert run(3, datetime(2026, 11, 2, tzinfo=UTC))["replayed"] == 6


def test_two_tasks_at_once_bring_each_letter_once_with_the_retry_of_the_one_that_was_fenced(runs: Runs, letters: tuple[str, str]) -> None:
    source = runs.topic("more", partitions=2)
    runs.produce(source, [b'{"event_id": %d}' % i for i in range(6, 60)])
    more = runs.run(runs.window(source), runs.topic("none", partitions=2), max_rejected="100 %", dead_letter_topic=letters[0])
    runs.transform(more, refuse)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(replay, letters, rate=5)
        wait_for(lambda: runs.everything(letters[1]), "its first events")
        second = replay(letters)
        with pytest.raises(FencedError):
            first.result()
    assert 0 < second["replayed"] < 60
    assert replay(letters)["replayed"] == 0
    assert ids(runs, letters[1]) == list(range(60))


def test_a_task_that_is_ended_stops_between_transactions_and_the_rest_stays(runs: Runs, letters: tuple[str, str]) -> None:
    task = ReplayOperator(task_id="replay", topic=letters[0], to=letters[1])
    task.on_kill()
    with pytest.raises(Exception, match="asked to stop"):
        task.execute(context())  # type: ignore[arg-type]
    assert replay(letters)["replayed"] == 6
    assert ids(runs, letters[1]) == list(range(6))


@pytest.mark.airflow
def test_the_shipped_dag_replays_what_its_parameters_say(runs: Runs, letters: tuple[str, str], dag_runner: DagRunner) -> None:
    source = (ROOT / "dags" / "factory_replay.py").read_text(encoding="utf-8").replace('"factory_replay"', '"DAG_ID"')
    first = runs.everything(letters[0])[0]
    conf = {"topic": letters[0], "to": letters[1], "pipeline": runs.prefix, "positions": [f"{first.partition}@{first.offset}"]}
    done = dag_runner.run(source, conf=conf)
    assert done.state == "success"
    assert done.results["replay"]["replayed"] == 1
    assert ids(runs, letters[1]) == [first.id]


PLAIN = {
    "name": "plain",
    "schema": {"type": "object", "required": ["event_id"], "properties": {"event_id": {"type": "integer", "maximum": 3}}},
}


def test_events_pass_a_mended_contract_and_too_many_that_come_back_end_it(
    runs: Runs, letters: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FACTORY_INCLUDE", str(tmp_path))
    (tmp_path / "plain.yaml").write_text(json.dumps(PLAIN))
    through = {"through": "validate", "agent_params": {"contract": "plain.yaml"}}
    pushed: dict[str, Any] = {}
    with pytest.raises(AirflowFailException, match=r"stopped: 2 of the first 6 events came back, more than 10 %; 0 events written"):
        replay(letters, pushed, stop_above="10", **through)
    assert (pushed["return_value"]["returned"], ids(runs, letters[1])) == (2, [])
    done = replay(letters, stop_above="50", **through)
    assert (done["replayed"], done["returned"], done["stopped"]) == (4, 2, "")
    assert ids(runs, letters[1]) == [0, 1, 2, 3]
    with pytest.raises(AirflowFailException, match="contract '/etc/passwd': it comes from a parameter of the run"):
        replay(letters, through="validate", agent_params={"contract": "/etc/passwd"})
