"""Messages about a pipeline's runs: one when a window breaks, however many tasks notice it, and one when it is whole again."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk.bases.notifier import BaseNotifier
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from asgiref.sync import sync_to_async

from airflow_provider_factory.alerts.messages import Level, Link, Message
from airflow_provider_factory.runs import optional_interval
from airflow_provider_factory.settings import option
from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.protocol import Interval
from factory_agents.text import count

if TYPE_CHECKING:
    from airflow_provider_factory.alerts.facts import Facts
    from factory_agents.kafka.alerts import Happening, Standing
    from factory_agents.kafka.config import KafkaConfig

__all__ = ["FactoryNotifier", "deadline_missed", "late_after"]

log = logging.getLogger(__name__)

_TITLES = {"failed": "failed", "late": "is late", "warned": "is whole, with warnings", "whole": "is whole again"}
_LEVELS: dict[str, Level] = {"failed": "page", "late": "page", "warned": "warning", "whole": "over"}
_LONGEST_WHO = 300


class FactoryNotifier(BaseNotifier):
    """A callback for DAGs and tasks (``on_failure_callback``, ``on_success_callback``) and for deadlines.

    The first failure of a window is told, with what failed, how many events wait, the first reasons of rejects, and links. More failures of
    the same window are not, nor that it is late. When a run succeeds, people hear that a window which they know to be broken is whole, or
    which warnings a validation gave. What was told stands in the ledger: see ``docs/alerts.md``.

    :param slack: an Airflow connection of type ``slackwebhook``; with ``channel`` one of type ``slack``.
    :param channel: the channel that Slack's API posts to.
    :param through: any other Airflow notifier, or several, whose templates read ``{{ alert.subject }}`` and ``{{ alert.text }}``.
    :param dead_letters: warn when more events than that were rejected in a window; 0: never.
    :param runbook: the address of your page on what to do.
    :param kafka_conn_id: the cluster of the ledger, unless it is the configured one.

    Example::

        DAG("clicks", on_failure_callback=FactoryNotifier("slack_default", dead_letters=1000))
    """

    def __init__(
        self,
        slack: str = "",
        *,
        channel: str = "",
        through: BaseNotifier | Sequence[BaseNotifier] = (),
        dead_letters: int = 0,
        runbook: str = "",
        kafka_conn_id: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.slack, self.channel, self.dead_letters, self.runbook, self.kafka_conn_id = slack, channel, dead_letters, runbook, kafka_conn_id
        self.through = (through,) if isinstance(through, BaseNotifier) else tuple(through)
        if not slack and not self.through:
            raise ConfigurationError(
                "FactoryNotifier: expected a connection to Slack (slack=…) or other notifiers (through=…), got neither"
            )

    def render_template_fields(self, context: Any, jinja_env: Any = None) -> None:
        """Nothing of it is a template, so that it needs no DAG (in ``dag.test`` a DAG's callbacks get one that renders nothing)."""

    def notify(self, context: Any) -> None:
        """Tell what a run's context says, if it is this caller's to tell."""
        _Notice(self, context).give()

    async def async_notify(self, context: Any) -> None:
        """The same in the triggerer, whose connections a thread gets by way of its event loop."""
        await sync_to_async(self.notify, thread_sensitive=False)(context)

    def send(self, message: Message, context: Mapping[str, Any] | None = None) -> None:
        """Send a message to everybody; the first error is raised once all were tried."""
        errors = []
        if self.slack:
            from airflow_provider_factory.alerts.sending import send_to_slack

            try:
                send_to_slack(message, self.slack, self.channel)
            except Exception as error:
                errors.append(error)
        for notifier in self.through:
            try:
                copy.deepcopy(notifier)({**(context or {}), "alert": message})  # rendering changes a notifier for good
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


class _Notice:
    """The messages that one callback's context calls for, and their sending."""

    def __init__(self, notifier: FactoryNotifier, context: Mapping[str, Any]) -> None:
        self._notifier, self._context = notifier, context
        self._run = run_facts(context)
        self._dag_id, self._run_id = str(self._run.get("dag_id") or ""), str(self._run.get("run_id") or "")
        interval = _interval(self._run, context)
        self._window = interval.key if interval is not None else self._run_id
        self._when = f"{interval.start:%F %H:%M} → {interval.end:%F %H:%M} UTC" if interval is not None else self._run_id
        ti = None if "reason" in context else context.get("ti")
        index = getattr(ti, "map_index", None)
        self._who = "" if ti is None else f"{ti.task_id}{f'[{index}]' if index is not None and index >= 0 else ''}"

    def give(self) -> None:
        what = _happening(self._context)
        if what != "whole":
            self._tell(what, self._what_failed() if what == "failed" else ())
            return
        warnings = self._warnings()
        told = not self._who and self._tell("whole", warnings)  # one task alone makes no window whole
        if warnings and not told:
            self._tell("warned", warnings)

    def _tell(self, what: Happening, lines: Sequence[str]) -> bool:
        from factory_agents.kafka.alerts import AlertLog

        sent = False

        def send(before: Standing | None, facts: Facts | None, trouble: str = "") -> None:
            nonlocal sent
            self._notifier.send(self._message(what, lines, before, facts, trouble), self._context)
            sent = True

        try:
            config = self._config()
            alerts = AlertLog(config, pipeline=self._dag_id, window=self._window, prefix=option("prefix"))
            return alerts.say(what, (self._who or self._run_id)[:_LONGEST_WHO], lambda before: send(before, self._facts(config)))
        except FactoryError as error:
            if sent:
                log.warning("a message went out, and the ledger could not be told: %s", error)
                return True
            if what == "whole":
                log.warning("nobody can say whether a window was broken before: %s", error)
                return False
            send(None, None, f"not grouped with other messages: {type(error).__name__}: {error}")
            return True

    def _config(self) -> KafkaConfig:
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook

        return FactoryKafkaHook(self._notifier.kafka_conn_id or option("kafka_conn_id")).config()

    def _facts(self, config: KafkaConfig) -> Facts | None:
        from airflow_provider_factory.alerts.facts import read_facts

        try:
            return read_facts(config, pipeline=self._dag_id, window=self._window, prefix=option("prefix"))
        except FactoryError as error:
            log.warning("the ledger could not be read for a message: %s", error)
            return None

    def _message(self, what: Happening, lines: Sequence[str], before: Standing | None, facts: Facts | None, trouble: str) -> Message:
        said = [*lines]
        if facts is not None:
            told = what in ("failed", "late")
            said += [*(facts.failed if told else ()), *facts.waiting, *facts.rejected]
        if what == "whole" and before is not None:
            since = datetime.fromtimestamp(before.since / 1000, UTC)
            said.insert(0, f"broken since {since:%F %H:%M} UTC; {before.times:,} {'failure' if before.times == 1 else 'failures'} noticed")
        if trouble:
            said.append(trouble)
        return Message(_LEVELS[what], f"{self._dag_id} {_TITLES[what]}: {self._when}", tuple(dict.fromkeys(said)), tuple(self._links()))

    def _what_failed(self) -> tuple[str, ...]:
        error, who = self._context.get("exception"), self._who or "the run"
        if error is not None:
            return (f"{who}: {str(error).strip().partition(chr(10))[0] or type(error).__name__}",)
        return (f"{who} failed: {self._context['reason']}" if self._context.get("reason") else f"{who} failed",)

    def _warnings(self) -> tuple[str, ...]:
        """What validations warned of, and more dead letters than wanted."""
        found = [line for task_id, report in self._reports() for line in _warned(task_id, report)]
        if self._notifier.dead_letters:
            try:
                facts = self._facts(self._config())
            except FactoryError as error:
                log.warning("rejected events could not be counted: %s", error)
                facts = None
            if facts is not None and facts.rejects > self._notifier.dead_letters:
                rejected = count(facts.rejects, "event", "was", "were")
                found.append(f"{rejected} rejected, more than {self._notifier.dead_letters:,}")
        return tuple(found)

    def _reports(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The judged report of each validation: of the task itself, or of all tasks of the DAG that judge."""
        ti = self._context.get("ti")
        if ti is None:
            return []
        tasks = [ti.task] if self._who else list(getattr(self._context.get("dag"), "tasks", ()))
        found = []
        for task in tasks:
            if hasattr(task, "fail_if") or "fail_if" in getattr(task, "partial_kwargs", {}):
                pulled = _pulled(ti, task.task_id)
                found += [(task.task_id, r) for r in (pulled if isinstance(pulled, list) else [pulled]) if isinstance(r, Mapping)]
        return found

    def _links(self) -> list[Link]:
        base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
        links = []
        if base:
            run = f"{base}/dags/{quote(self._dag_id, safe='')}/runs/{quote(self._run_id, safe='')}"
            ti = self._context.get("ti")
            if self._who and ti is not None:
                index = getattr(ti, "map_index", None)
                mapped = f"/mapped/{index}" if index is not None and index >= 0 else ""
                links.append(Link("Task", f"{run}/tasks/{quote(ti.task_id, safe='')}{mapped}"))
            links += [Link("Run", run), Link("Factory page", f"{base}/plugin/factory")]
        if self._notifier.runbook:
            links.append(Link("Runbook", self._notifier.runbook))
        return links


def run_facts(context: Mapping[str, Any]) -> dict[str, Any]:
    """A run's ids and interval, from whatever a context holds of it: an object, or (a deadline's) plain data."""
    run = context.get("dag_run") or {}
    names = ("dag_id", "run_id", "data_interval_start", "data_interval_end")
    found = {name: run.get(name) if isinstance(run, Mapping) else getattr(run, name, None) for name in names}
    found["dag_id"] = found["dag_id"] or getattr(context.get("dag"), "dag_id", None)
    found["run_id"] = found["run_id"] or (run.get("dag_run_id") if isinstance(run, Mapping) else None) or context.get("run_id")
    return found


def _interval(run: Mapping[str, Any], context: Mapping[str, Any]) -> Interval | None:
    """The run's interval; of a deadline's context the ends are text."""
    if context.get("data_interval_start") is not None:
        return optional_interval(context)
    ends = {name: datetime.fromisoformat(value) if isinstance(value, str) else value for name, value in run.items() if "interval" in name}
    return optional_interval(ends)


def _happening(context: Mapping[str, Any]) -> Happening:
    """What a context tells of: it differs between deadlines, runs and tasks."""
    if "deadline" in context:
        return "late"
    if "reason" in context:
        return "whole" if context["reason"] == "success" else "failed"
    state = str(getattr(context.get("ti"), "state", "") or "").rpartition(".")[2].lower()
    return "whole" if state == "success" and context.get("exception") is None else "failed"


def _pulled(ti: Any, task_id: str) -> Any:
    try:
        return ti.xcom_pull(task_ids=task_id, key="report")
    except Exception as error:  # ``dag.test`` calls a DAG's callbacks where there is no XCom
        log.warning("the report of %s could not be read for a message: %s: %s", task_id, type(error).__name__, error)
        return None


def _warned(task_id: str, report: Mapping[str, Any]) -> list[str]:
    from factory_agents.contracts import judge

    return [f"{task_id}: {line.text.strip()}" for line in judge(report).lines[1:] if line.outcome == "warn"]


def late_after(interval: timedelta, **told: Any) -> DeadlineAlert | None:
    """A DAG's ``deadline``: an alert for a run that has not ended this long after it was queued.

    ``told`` are arguments of ``FactoryNotifier`` (``slack="slack_default"``), which sends the message; without any it is one line in the
    triggerer's log. None where ``[factory] deadlines`` is off, and in ``airflow dags test``, which fails on any deadline when the run
    succeeds (Airflow #73428).

    :param interval: how long a run may take.
    :param told: ``FactoryNotifier``'s arguments.

    Example::

        DAG("hourly", deadline=late_after(timedelta(minutes=45), slack="slack_default"))
    """
    if option("deadlines").lower() not in ("true", "1") or sys.argv[1:3] == ["dags", "test"]:
        return None
    callback = AsyncCallback(FactoryNotifier, kwargs=told) if told else AsyncCallback(deadline_missed)
    return DeadlineAlert(reference=DeadlineReference.DAGRUN_QUEUED_AT, interval=interval, callback=callback)


async def deadline_missed(context: dict[str, Any] | None = None, **kwargs: Any) -> None:
    """Log which run missed its deadline, as an error that log-based alerts can match; ``kwargs`` are those given to the callback.

    :param context: of the run, as Airflow gives it.
    """
    run = run_facts(context or {})
    log.error("deadline missed: dag %s run %s %s", run["dag_id"], run["run_id"], kwargs or "")
