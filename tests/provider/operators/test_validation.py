"""The verdict over a validation report: what it does to the task, and who is told."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped

from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.links import report_url
from airflow_provider_factory.operators.validation import ValidationOperator
from factory_agents.contracts import WindowStatistics, load_contract
from factory_agents.protocol import AgentResult
from factory_agents.reports import chosen, markdown, read_reports
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.support.runs import Runs, events
from tests.support.samples import context, result

CONTRACT = load_contract({"name": "c", "id": None, "schema": {"type": "object"}})
VALID = Asset("kafka://local/valid")


class Judged:
    """A task that judges a report with so many of four events rejected, as a dry run: the ledger is not asked."""

    def __init__(self, rejected: int, given: AgentResult | None = None, **arguments: Any) -> None:
        statistics = WindowStatistics(CONTRACT)
        statistics.add_valid([{}] * (4 - rejected))
        for i in range(rejected):
            statistics.add_rejected(["schema:a"], "bad", ("t", 0, i))
        self.result = given or result(report=statistics.report(), dry_run=True)
        with DAG(self.result.pipeline if given else "clicks", schedule=None):
            self.task = ValidationOperator(task_id="check", outlets=[VALID], **arguments)
            self.task >> [EmptyOperator(task_id=name) for name in ("load", "tell", "quarantine")]
        self.events = {VALID: SimpleNamespace(extra={"window": "w"})}
        self.pushed: dict[str, Any] = {}

    def run(self) -> None:
        ti = SimpleNamespace(xcom_push=lambda key, value: self.pushed.update({key: value}), task=self.task, map_index=-1)
        with airflow_errors():
            self.task._check_arguments()
            self.task._verdict(
                context(ti=ti, task=self.task, dag=self.task.dag, outlet_events=self.events),  # type: ignore[arg-type]
                self.result,
            )


def judge(rejected: int, **arguments: Any) -> dict[str, Any]:
    """What the asset of such a task is told."""
    judged = Judged(rejected, **arguments)
    judged.run()
    return dict(judged.events[VALID].extra)


@pytest.mark.parametrize(
    ("how", "error"),
    [({}, AirflowFailException), ({"on_failure": "fail"}, AirflowFailException), ({"on_failure": "skip"}, AirflowSkipException)],
)
def test_a_broken_condition_fails_or_skips(how: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error, match="rejected"):
        judge(1, fail_if="rejected >= 1", **how)


@pytest.mark.parametrize(
    ("rejected", "conditions", "outcome"),
    [
        (0, {"fail_if": "rejected >= 1"}, "pass"),
        (1, {"fail_if": "rejected >= 1", "on_failure": "warn"}, "fail"),
        (1, {"warn_if": "rejected > 20 %"}, "warn"),
    ],
)
def test_the_outlets_are_told_the_verdict(rejected: int, conditions: dict[str, str], outcome: str) -> None:
    assert judge(rejected, **conditions) == {"window": "w", "validation": {"outcome": outcome, "rows": 4, "rejected": rejected}}


def test_the_whole_report_is_in_the_log_as_markdown_within_bounds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ValidationOperator, "log", logging.getLogger("validation"))
    judged = Judged(1, warn_if=["rejected > 0", *(f"rows < {n}" for n in range(1, 200))])
    assert judged.result.report is not None
    judged.result.report["samples"][0]["reason"] = "bad <b>|\x1b[31m"
    with caplog.at_level(logging.INFO):
        judged.run()
    lines = [record.getMessage() for record in caplog.records]
    told = lines[lines.index("::group::Validation report") + 1 : lines.index("::endgroup::")]
    assert "| rejected | 1 (25 %) |" in told
    assert "| schema:a | 1 | 25 % |" in told
    assert told[told.index("| condition | outcome | observed |") + 2] == "| warns if rejected > 0 | warn | 1 |"
    assert "| … and 150 more |" in told
    assert len(told) < 100
    assert not any("<b>" in line or "\x1b" in line for line in told)


def test_another_word_is_refused() -> None:
    with pytest.raises(AirflowFailException, match="on_failure='ignore': expected one of fail, skip, branch, warn"):
        judge(0, on_failure="ignore")


@pytest.mark.parametrize(("rejected", "skipped"), [(0, ["quarantine", "tell"]), (1, ["load"])])
def test_a_branch_is_taken_by_the_verdict_and_the_task_succeeds(rejected: int, skipped: list[str]) -> None:
    judged = Judged(rejected, fail_if="rejected > 0", on_failure="branch", failure_tasks=["quarantine", "tell"])
    with pytest.raises(DownstreamTasksSkipped) as caught:
        judged.run()
    assert sorted(name for name, _ in caught.value.tasks) == skipped  # type: ignore[misc]
    assert judged.pushed["return_value"]["report"]["rejected"] == rejected
    assert judged.pushed["report"]["outcome"] == ("fail" if rejected else "pass")
    assert set(judged.pushed["skipmixin_key"]["followed"]) == {"load", "tell", "quarantine"} - set(skipped)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_failure": "branch"}, "on_failure='branch' and failure_tasks go together"),
        ({"failure_tasks": "tell"}, "on_failure='branch' and failure_tasks go together"),
        ({"on_failure": "branch", "failure_tasks": "tel"}, "'tel' is no task right after it; expected one of load, quarantine, tell"),
    ],
)
def test_a_branch_to_nowhere_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AirflowFailException, match=message):
        judge(0, **arguments)


@pytest.mark.parametrize("rejected", [0, 1])
def test_the_verdict_is_told_to_lineage_whatever_becomes_of_the_task(rejected: int) -> None:
    judged = Judged(rejected, fail_if="rejected > 20 %", warn_if="rows < 9")
    if rejected:
        with pytest.raises(AirflowFailException):
            judged.run()
    else:
        judged.run()
    lineage = judged.task.get_openlineage_facets_on_complete(None)
    assert lineage is not None
    (read,) = lineage.inputs
    assert read.inputFacets["dataQualityMetrics"].rowCount == 4  # type: ignore[attr-defined]
    told = read.inputFacets["dataQualityAssertions"].assertions  # type: ignore[attr-defined]
    rules = [("schema:a", "a", False, "warn")] if rejected else []
    conditions = [("rejected > 20 %", None, not rejected, "error"), ("rows < 9", None, False, "warn")]
    assert [(getattr(t, "name", t.assertion), t.column, t.success, t.severity) for t in told] == [*rules, *conditions]


def test_the_verdict_stands_wherever_the_report_is_read_until_there_is_another(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": {"bootstrap.servers": runs.bootstrap}}))
    monkeypatch.setenv("AIRFLOW__FACTORY__PREFIX", runs.prefix)
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, [*events(3), b"no json"])
    run = runs.run(
        runs.window(topic),
        runs.topic("out", partitions=1),
        "validate",
        params={"contract": {"name": "c", "id": None, "schema": {}}},
        stage="check",
    )
    done = execute(RunContext(runs.config), run)

    def shown(given: AgentResult | None, **arguments: Any) -> str:
        if given is not None:
            Judged(0, given, **arguments).run()
        return markdown(chosen(read_reports(runs.config, runs.prefix, prefix=runs.prefix), runs.prefix)).splitlines()[2].partition(" · ")[0]

    assert shown(done) == "**PASS**"
    assert shown(done, warn_if="rejected > 0") == "**WARN**"
    assert shown(done, fail_if="rejected > 0", on_failure="warn") == "**FAIL, and its task went on**"
    with pytest.raises(AirflowFailException):
        shown(done, fail_if="rejected > 0")
    assert shown(None) == "**FAIL**"
    reused = execute(RunContext(runs.config), run)
    assert reused.reused
    assert shown(reused) == "**PASS**", "the conditions were taken away"
    assert shown(reused, warn_if="rejected > 0") == "**WARN**"
    execute(RunContext(runs.config), msgspec.structs.replace(run, rerun="redo"))
    assert shown(None) == "**PASS**", "nobody has judged the new report yet"


def test_the_report_is_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow/x/")
    assert report_url("my dag", result(key="2026-11-01T04:00:00+00:00/2026")) == (
        "https://airflow/x/factory/pipelines/my%20dag/report?key=2026-11-01T04%3A00%3A00%2B00%3A00%2F2026&stage=enrich"
    )
    judged = Judged(0)
    judged.run()
    assert "factory_report_link" not in judged.pushed, "a dry run leaves no report"
