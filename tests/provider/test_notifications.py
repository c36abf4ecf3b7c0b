"""A late run is told of once, by name; where deadlines can't work there is none."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from airflow.sdk import DAG
from airflow.sdk.bases.notifier import BaseNotifier

from airflow_provider_factory.notifications import FactoryNotifier, deadline_missed, late_after
from airflow_provider_factory.operators.validation import ValidationOperator
from factory_agents.contracts import WindowStatistics, judge, load_contract
from factory_agents.errors import AgentCrashedError, ConfigurationError, FactoryError, UnavailableError
from factory_agents.kafka.alerts import AlertLog, Standing
from factory_agents.kafka.cuts import plan_window
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.support.runs import Runs, events
from tests.support.samples import INTERVAL, context
from tests.support.webhooks import Webhooks, webhooks


@pytest.mark.parametrize(
    ("value", "argv", "there"),
    [
        ("True", ["airflow", "scheduler"], True),
        ("1", ["airflow", "scheduler"], True),
        ("False", ["airflow", "scheduler"], False),
        ("True", ["airflow", "dags", "test", "clicks"], False),
        ("True", ["airflow", "dags", "list"], True),
    ],
)
def test_a_dag_has_a_deadline_where_they_are_on(monkeypatch: pytest.MonkeyPatch, value: str, argv: list[str], there: bool) -> None:
    monkeypatch.setenv("AIRFLOW__FACTORY__DEADLINES", value)
    monkeypatch.setattr(sys, "argv", argv)
    alert = late_after(timedelta(minutes=50))
    assert (alert is not None) is there
    if alert is not None:
        assert alert.interval == timedelta(minutes=50)


@pytest.mark.parametrize(
    "context",
    [{"dag_run": {"dag_id": "clicks", "dag_run_id": "r1"}}, {"dag_run": SimpleNamespace(dag_id="clicks", run_id="r1")}],
)
def test_the_alert_names_dag_and_run(context: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        asyncio.run(deadline_missed(context, team="data"))
    assert [r.getMessage() for r in caplog.records] == ["deadline missed: dag clicks run r1 {'team': 'data'}"]


def test_an_alert_without_a_run_is_told_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(deadline_missed(None))
    assert "deadline missed" in caplog.text


@pytest.fixture
def slack(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhooks]:
    """Slack, and an Airflow that is configured for this test's ledger."""
    with webhooks() as server:
        hook = {"conn_type": "slackwebhook", "host": server.url, "password": "/slack"}
        kafka = {"conn_type": "kafka", "extra": {"bootstrap.servers": runs.bootstrap}}
        monkeypatch.setenv("AIRFLOW_CONN_OUR_SLACK", json.dumps(hook))
        monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps(kafka))
        monkeypatch.setenv("AIRFLOW__FACTORY__PREFIX", runs.prefix)
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow/air/")
        yield server


def of_task(runs: Runs, index: int = -1, *, state: str = "failed", **more: Any) -> dict[str, Any]:
    """A task's context as its callbacks get it."""
    task = SimpleNamespace(task_id="enrich", retries=2)
    pulled = more.pop("report", None)
    ti = SimpleNamespace(
        task_id="enrich", dag_id=runs.prefix, run_id="r1", map_index=index, state=state, task=task, xcom_pull=lambda **_: pulled
    )
    run = SimpleNamespace(dag_id=runs.prefix, run_id="r1", run_type="scheduled")
    return context(run_id="r1", **{"dag_run": run, "dag": DAG(runs.prefix, schedule=None), "ti": ti, "task": task, **more})


def of_run(runs: Runs, reason: str) -> dict[str, Any]:
    """A run's context as a DAG's callbacks get it: with its last task."""
    return of_task(runs, reason=reason)


def deadline(runs: Runs) -> dict[str, Any]:
    """A deadline's context, which is plain data."""
    ends = {"data_interval_start": "2026-03-01T04:00:00Z", "data_interval_end": "2026-03-01T05:00:00Z"}
    return {"dag_run": {"dag_id": runs.prefix, "dag_run_id": "r1", **ends}, "deadline": {"id": "x"}}


def test_forty_failed_shards_of_an_hour_are_one_message_and_so_is_its_end(runs: Runs, slack: Webhooks) -> None:
    def failed(index: int) -> None:
        FactoryNotifier("our_slack", runbook="http://wiki/clicks")(of_task(runs, index, exception=AgentCrashedError("out of\nmemory")))

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(failed, range(40)))
    FactoryNotifier("our_slack")(of_run(runs, "task_failure"))
    asyncio.run(_awaited(deadline(runs)))
    (told,) = slack.texts()
    run = f"http://airflow/air/dags/{runs.prefix}/runs/r1"
    which = told.partition("enrich[")[2].partition("]")[0]
    assert told.splitlines() == [
        f"*🔴 {runs.prefix} failed: 2026-03-01 04:00 → 2026-03-01 05:00 UTC*",
        f"enrich[{which}]: out of",
        f"<{run}/tasks/enrich/mapped/{which}|Task> · <{run}|Run> · <http://airflow/air/plugin/factory|Factory page> · <http://wiki/clicks|Runbook>",
    ]
    FactoryNotifier("our_slack")(of_task(runs, 3, state="success"))
    assert len(slack.posted) == 1, "one task alone makes no window whole"
    for _ in range(2):
        FactoryNotifier("our_slack")(of_run(runs, "success"))
    title, since, *_ = slack.texts()[1].splitlines()
    assert title == f"*🟢 {runs.prefix} is whole again: 2026-03-01 04:00 → 2026-03-01 05:00 UTC*"
    assert since.startswith("broken since 20")
    assert since.endswith("UTC; 42 failures noticed")
    assert len(slack.posted) == 2


async def _awaited(context: dict[str, Any]) -> None:
    await FactoryNotifier("our_slack", context=context)


def test_a_late_run_is_told_of_by_its_deadline_and_then_that_it_failed(runs: Runs, slack: Webhooks) -> None:
    asyncio.run(_awaited(deadline(runs)))
    FactoryNotifier("our_slack")(of_run(runs, "task_failure"))
    assert [text.split(":")[0] for text in slack.texts()] == [f"*🔴 {runs.prefix} is late", f"*🔴 {runs.prefix} failed"]
    assert "the run failed: task_failure" in slack.texts()[1]


def test_a_message_says_what_the_ledger_knows(runs: Runs, slack: Webhooks) -> None:
    """What failed, how many events wait, in other windows too, and why events were rejected."""
    topic, hour = runs.topic("in", partitions=1, **{"retention.ms": -1}), INTERVAL
    runs.produce(topic, [*events(9), b'{"event_id": 9, "price": -1}'], timestamp=hour.start_ms + 1000)
    plan = plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=hour, prefix=runs.prefix)
    contract = {
        "name": "c",
        "id": None,
        "schema": {"type": "object", "properties": {"price": {"minimum": 0}}},
    }
    run = runs.run(plan, runs.topic("out", partitions=1), "validate", params={"contract": contract}, stage="validate")
    execute(RunContext(runs.config), run)
    broken = msgspec.structs.replace(run, stage="publish", params={"no": "such"})
    with pytest.raises(FactoryError):
        execute(RunContext(runs.config), broken)
    FactoryNotifier("our_slack")(of_run(runs, "task_failure"))
    (told,) = slack.texts()
    lines = told.splitlines()
    assert lines[2].startswith("publish: failed, 0 read: ")
    assert "10 events wait in this window" in lines
    assert re.search(r"^validate rejected 1 of 10 events: .*price.* \(1\)$", told, re.MULTILINE), told
    assert f"  {topic}-0@9: " in told
    assert "price" in told


def test_warnings_of_a_validation_and_many_dead_letters_are_told_once(runs: Runs, slack: Webhooks) -> None:
    statistics = WindowStatistics(load_contract({"name": "c", "schema": {"type": "object"}}))
    statistics.add_valid([{}] * 98)
    for i in range(2):
        statistics.add_rejected(["schema"], "bad", ("t", 0, i))
    verdict = judge(statistics.report(), "rejected > 50 %", ["rejected > 1 %", "rows < 5"])
    report = {**statistics.report(), "checks": list(verdict.checks)}
    with DAG("clicks", schedule=None) as dag:
        task = ValidationOperator(task_id="check", window="{{ 1 }}")
    succeeded = of_run(runs, "success")
    succeeded["ti"].xcom_pull = lambda task_ids, key: report if (task_ids, key) == ("check", "report") else None
    for _ in range(2):
        FactoryNotifier("our_slack")({**succeeded, "dag": dag, "task": task})
    (told,) = slack.texts()
    assert told.splitlines()[0] == f"*🟠 {runs.prefix} is whole, with warnings: 2026-03-01 04:00 → 2026-03-01 05:00 UTC*"
    assert "check: warning: rejected 2 % (warns above 1 %)" in told
    assert "rows" not in told


def test_many_dead_letters_are_told(runs: Runs, slack: Webhooks) -> None:
    topic = runs.topic("in", partitions=1, **{"retention.ms": -1})
    runs.produce(topic, [*events(1), b"no json", b"nor this"], timestamp=INTERVAL.start_ms + 1000)
    plan = plan_window(runs.config, pipeline=runs.prefix, topic=topic, interval=INTERVAL, prefix=runs.prefix)
    execute(RunContext(runs.config), runs.run(plan, runs.topic("out", partitions=1), max_rejected="100 %"))
    FactoryNotifier("our_slack", dead_letters=2)(of_run(runs, "success"))
    assert not slack.posted
    FactoryNotifier("our_slack", dead_letters=1)(of_run(runs, "success"))
    (told,) = slack.texts()
    assert "2 events were rejected, more than 1" in told
    assert "stage rejected 2 of 3 events" in told


def test_a_run_that_was_never_broken_says_nothing(runs: Runs, slack: Webhooks) -> None:
    FactoryNotifier("our_slack", dead_letters=1)(of_run(runs, "success"))
    assert not slack.posted


def test_without_a_broker_a_failure_is_told_all_the_same(runs: Runs, slack: Webhooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": {}}))
    FactoryNotifier("our_slack")(of_run(runs, "task_failure"))
    FactoryNotifier("our_slack")(of_run(runs, "success"))
    (told,) = slack.texts()
    assert "not grouped with other messages: ConfigurationError: connection 'kafka_default': it names no broker" in told


def test_a_broker_that_fails_after_the_message_makes_no_second_one(runs: Runs, slack: Webhooks, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: AlertLog, what: str, who: str, tell: Callable[[Standing], None]) -> bool:
        tell(Standing())
        raise UnavailableError("the broker is gone")

    monkeypatch.setattr(AlertLog, "say", lost)
    FactoryNotifier("our_slack")(of_run(runs, "task_failure"))
    assert len(slack.posted) == 1


class Kept(BaseNotifier):
    """Another notifier, with a template."""

    template_fields = ("text",)
    said: list[str] = []  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def notify(self, context: Any) -> None:
        self.said.append(self.text)


def test_any_other_notifier_gets_it_by_its_templates_and_a_reason_is_no_template(runs: Runs, slack: Webhooks) -> None:
    notifier = FactoryNotifier(through=Kept("{{ alert.subject }}|{{ alert.text }}"))
    for interval in range(2):
        ends = {
            "data_interval_start": INTERVAL.start.replace(day=2 + interval),
            "data_interval_end": INTERVAL.end.replace(day=2 + interval),
        }
        notifier(of_task(runs, exception=ValueError("{{ 7 * 7 }}"), **ends))
    assert not slack.posted
    assert [said.partition("|")[0].rpartition("→")[2] for said in Kept.said] == [" 2026-03-02 05:00 UTC", " 2026-03-03 05:00 UTC"]
    assert all("enrich: {{ 7 * 7 }}" in said for said in Kept.said)


def test_nobody_to_tell_is_refused_when_the_dag_is_read() -> None:
    with pytest.raises(ConfigurationError, match="expected a connection to Slack"):
        FactoryNotifier()


def test_a_deadline_tells_through_the_notifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__FACTORY__DEADLINES", "True")
    monkeypatch.setattr(sys, "argv", ["airflow", "scheduler"])
    alert = late_after(timedelta(minutes=50), slack="our_slack")
    assert alert is not None
    assert alert.callback.path.endswith("FactoryNotifier")
    assert alert.callback.kwargs == {"slack": "our_slack"}
