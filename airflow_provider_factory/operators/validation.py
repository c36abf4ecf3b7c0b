"""Validates a window against a contract and judges the report: bad data fails the task at once, broken infrastructure is retried."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import SkipMixin
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.lineage import judged_lineage
from airflow_provider_factory.links import ReportLink, push_links, report_url
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.settings import option
from factory_agents.errors import ConfigurationError, ValidationFailedError
from factory_agents.protocol import AgentResult, Work, plain, scope_of
from factory_agents.stage_plan import merged

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

__all__ = ["ValidationOperator"]

Conditions = str | Sequence[str]

_ON_FAILURE = ("fail", "skip", "branch", "warn")
_MOST_ROWS = 50
"""Of each table of the report in the log."""
_LEVELS = {"pass": logging.INFO, "warn": logging.WARNING, "fail": logging.ERROR}


class ValidationOperator(KafkaAgentOperator, SkipMixin):
    """Runs the ``validate`` agent over a window and judges its report, or judges the merged report of a mapped stage.

    Valid events are written before the report is judged: a failed validation keeps the window's dead letters, and nothing downstream
    runs. XCom is the AgentResult (or the list of judged results), which is the next stage's ``window``; the report is under ``report``.

    :param fail_if: conditions that fail the task without retries, for example ``"rejected > 1 %"`` or
        ``["rows < 1000", "null_rate(url) > 0"]``; the contract's own are judged too. (templated)
    :param warn_if: conditions that are only logged as warnings. (templated)
    :param results: results of a mapped validate stage, instead of ``window``. (templated)
    :param on_failure: what a broken ``fail_if`` does: ``fail`` the task, ``skip`` it and with it what comes after, ``branch`` (the task
        succeeds, and of the tasks right after it only ``failure_tasks`` run), or ``warn`` in the log and go on. The ledger holds the
        failure unless it is only a warning. (templated)
    :param failure_tasks: with ``branch``: the task that runs after a failed validation, or several; after a good one all others do.

    Example::

        window = WindowOperator(task_id="enriched", topic="enriched_events")
        ValidationOperator(
            task_id="validate",
            window=window.output,
            contract="contracts/events.yaml",
            output_topic="valid_events",
            fail_if=["rejected > 1 %", "rows < 1000"],
        )
    """

    template_fields: Sequence[str] = (*KafkaAgentOperator.template_fields, "fail_if", "warn_if", "results", "on_failure", "failure_tasks")
    operator_extra_links = (*KafkaAgentOperator.operator_extra_links, ReportLink())
    inherits_from_skipmixin = True  # a cleared task stays skipped where the branch wasn't taken
    ui_color = "#fbe3d6"

    def __init__(
        self,
        *,
        agent: str = "validate",
        fail_if: Conditions = (),
        warn_if: Conditions = (),
        results: Any = None,
        on_failure: str = "fail",
        failure_tasks: str | Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(agent=agent, **kwargs)
        if results is not None and self.window is not None:
            raise ConfigurationError(
                "ValidationOperator: give either window (to validate it) or results (to judge those of a mapped stage)"
            )
        self.fail_if = fail_if
        self.warn_if = warn_if
        self.results = results
        self.on_failure = on_failure
        self.failure_tasks = failure_tasks
        self._judges = results is not None
        self._judged: tuple[AgentResult, Mapping[str, Any]] | None = None

    def execute(self, context: Context) -> Any:
        """Validate, or judge; raises AirflowFailException for bad data."""
        if not self._judges:
            return super().execute(context)
        with airflow_errors():
            self._check_arguments()
            results, _ = merged(self.results)
            told = [plain(result) for result in results]
            self._judge(context, results, told)
            return told

    def _check_arguments(self) -> None:
        from factory_agents.contracts import parse_conditions

        parse_conditions(_conditions(self.fail_if), "fail_if")
        parse_conditions(_conditions(self.warn_if), "warn_if")
        if self.on_failure not in _ON_FAILURE:
            raise ConfigurationError(f"task {self.task_id!r}: on_failure={self.on_failure!r}: expected one of {', '.join(_ON_FAILURE)}")
        tasks = self._failure_tasks()
        if bool(tasks) != (self.on_failure == "branch"):
            raise ConfigurationError(f"task {self.task_id!r}: on_failure='branch' and failure_tasks go together")
        if strangers := sorted(set(tasks) - self.downstream_task_ids):
            raise ConfigurationError(
                f"task {self.task_id!r}: failure_tasks: {strangers[0]!r} is no task right after it; "
                f"expected one of {', '.join(sorted(self.downstream_task_ids)) or '(there are none)'}"
            )

    def _failure_tasks(self) -> list[str]:
        return [self.failure_tasks] if isinstance(self.failure_tasks, str) else list(self.failure_tasks or ())

    def _verdict(self, context: Context, result: AgentResult) -> Any:
        if result.shard.of == 1:
            self._judge(context, [result], plain(result))
        elif self.fail_if or self.warn_if:
            raise ConfigurationError(
                f"task {self.task_id!r}: the rates of one shard are not the window's; give fail_if and warn_if to a "
                f"ValidationOperator(results={self.task_id}.output) after the shards"
            )
        return super()._verdict(context, result)

    def _judge(self, context: Context, results: Sequence[AgentResult], told: Any) -> None:
        """Judge the results, of which ``told`` is what the task returns."""
        from factory_agents.contracts import judge, merge_reports

        report = merge_reports([result.report or {} for result in results])
        verdict = judge(report, _conditions(self.fail_if), _conditions(self.warn_if))
        judged = {**report, "checks": [dict(c) for c in verdict.checks], "outcome": verdict.outcome}
        self._judged = (results[0], judged)
        context["ti"].xcom_push(key="report", value=judged)
        push_links(self, context["ti"], {ReportLink.key: "" if results[0].dry_run else report_url(self.dag_id, results[0])})
        for line in verdict.lines:
            self.log.log(_LEVELS[line.outcome], "%s", line.text)
        self._log_report(results[0], judged)
        self._tell_assets(context, report, verdict.outcome)
        error = ValidationFailedError(verdict.failure) if verdict.failure and self.on_failure != "warn" else None
        self._tell_ledger(context, results, verdict.checks[len(report["checks"]) :], error, tolerated=bool(verdict.failure) and not error)
        if self.on_failure == "branch":
            self._branch(context, failed=error is not None, told=told)
        elif error is not None:
            raise AirflowSkipException(str(error)) if self.on_failure == "skip" else error

    def _log_report(self, result: AgentResult, report: Mapping[str, Any]) -> None:
        """The report as Markdown, as a part of the log that is folded."""
        from factory_agents.reports import WindowReport, markdown

        shown = WindowReport(result.pipeline, result.stage, result.key, 0, report, scope_of(result.origin, result.instance))
        self.log.info("::group::Validation report")
        for line in markdown(shown, most=_MOST_ROWS).splitlines():
            self.log.info("%s", line)
        self.log.info("::endgroup::")

    def _branch(self, context: Context, *, failed: bool, told: Any) -> None:
        """Skip the tasks of the other branch."""
        tasks = set(self._failure_tasks())
        context["ti"].xcom_push(key="return_value", value=told)  # skipping ends the task before it returns
        self.skip_all_except(context["ti"], sorted(tasks if failed else self.downstream_task_ids - tasks))

    def _tell_assets(self, context: Context, report: Mapping[str, Any], outcome: str) -> None:
        """The verdict beside what the outlets' events say of the result."""
        verdict = {"outcome": outcome, "rows": report["rows"], "rejected": report["rejected"]}
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                event = context["outlet_events"][outlet]
                event.extra = {**(event.extra or {}), "validation": verdict}

    def _tell_ledger(
        self,
        context: Context,
        results: Sequence[AgentResult],
        own: tuple[Mapping[str, Any], ...],
        error: ValidationFailedError | None,
        *,
        tolerated: bool,
    ) -> None:
        """Word in the ledger of a judgement, and of what came of the task's ``own`` conditions: the agent itself succeeded.

        What a reused result was judged by before is replaced; a judge alone also takes older words of a failure back, as agents do.
        """
        first, began = results[0], time.time()
        if first.dry_run:
            return
        from factory_agents.kafka.failures import forget_failure, leave_failure, leave_verdict
        from factory_agents.kafka.records import VerdictRecord

        work = Work(self.dag_id, self.task_id, first.key, scope=scope_of(first.origin, first.instance))
        config, prefix = self._access.ledger(), option("prefix")
        if own or tolerated or self._judges or first.reused:
            about = (first.stage, max(result.generation for result in results), int(began * 1000), work.scope)
            verdict = VerdictRecord(work.pipeline, work.stage, work.window, *about, tuple(map(dict, own)), tolerated)
            leave_verdict(config, verdict, prefix=prefix)
        if error is not None:
            leave_failure(config, work, error=error, began=began, agent=first.agent, run_id=str(context["run_id"]), prefix=prefix)
        elif self._judges:
            forget_failure(config, work, start=first.ledger_offset, prefix=prefix)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """See ``KafkaAgentOperator``: what was read, with the contract's figures and checks as facets; a judge alone writes nothing."""
        if self._judged is None:
            return None if self._judges else super().get_openlineage_facets_on_complete(task_instance)
        result, report = self._judged
        run = self._run
        topic = run.window.topic if run and run.window else result.origin
        return judged_lineage(result, report, input_topic=topic, writes=not self._judges)


def _conditions(given: Conditions) -> Conditions:
    return given if isinstance(given, str) else list(given or ())
