"""Brings a new version of a live agent in, step by step, or takes it back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseOperator

from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.links import AgentRunLink, InputTopicLink, push_links, run_info_url, topic_url
from airflow_provider_factory.settings import option
from factory_agents.errors import ConfigurationError, RolledBackError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from factory_agents.rollouts import Rollouts, Status

__all__ = ["RolloutOperator"]

Action = Literal["start", "shift", "finish", "rollback"]
_ACTIONS = ("start", "shift", "finish", "rollback")


class RolloutOperator(BaseOperator):
    """Gives an order to the versions of a live agent; a retry of the same order changes nothing.

    XCom is what came of it: ``verdict``, ``base``, ``new``, ``reason``, how many ``partitions`` the new version ``held``, and which version
    was ``replaced`` by the base.

    :param group: the agent's consumer group, such as ``factory.enrich.raw_events``. (templated)
    :param action: ``start`` (a new version gets its first partitions), ``shift`` (it gets more, or fewer), ``finish`` (it has all, and is
        the base from now on), or ``rollback``.
    :param version: the new version. ``start`` needs it; where it was finished before, nothing is done. With it, ``rollback`` does nothing
        where another version, or none, is being rolled out. (templated)
    :param steps: for ``start``: numbers or shares of partitions, such as ``["1", "25%", "100%"]``; by default all at once. (templated)
    :param hold: for ``start``: how long each step lasts at least, or seconds as a text. (templated)
    :param share: for ``shift``: a number of partitions, or a share such as ``50%``. (templated)
    :param reason: for ``rollback``. (templated)
    :param max_errors: for ``start``: the share of events that may raise errors before the version is rolled back.
    :param max_rejected: the same for rejected events.
    :param wait: how long to wait until each partition is where it is to be.
    :param kafka_conn_id: Airflow connection of the cluster; by default ``[factory] kafka_conn_id``. (templated)

    Example::

        RolloutOperator(
            task_id="start",
            group="factory.enrich.raw_events",
            version="v2",
            steps=["1", "25%", "100%"],
            hold=timedelta(minutes=5),
        )
    """

    template_fields: Sequence[str] = ("group", "version", "steps", "hold", "share", "reason", "kafka_conn_id")
    operator_extra_links = (InputTopicLink(), AgentRunLink())
    ui_color = "#e3f0dc"

    def __init__(
        self,
        *,
        group: str,
        action: Action = "start",
        version: str = "",
        steps: str | Sequence[str] = ("100%",),
        hold: timedelta | float | str = 60.0,
        share: str = "",
        reason: str = "",
        max_errors: float = 0.01,
        max_rejected: float = 0.05,
        wait: timedelta | float = 120.0,
        kafka_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if action not in _ACTIONS:
            raise ValueError(f"action: expected one of {', '.join(_ACTIONS)}, got {action!r}")
        self.group = group
        self.action = action
        self.version = version
        self.steps = steps
        self.hold = hold
        self.share = share
        self.reason = reason
        self.max_errors = max_errors
        self.max_rejected = max_rejected
        self.wait = _seconds(wait)
        self.kafka_conn_id = kafka_conn_id
        self.known_links: dict[str, str] = {}

    def execute(self, context: Context) -> dict[str, Any]:
        """Give the order and wait until it is obeyed; raises AirflowFailException for what a retry cannot mend."""
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
        from factory_agents.rollouts import Rollouts

        ti = context["ti"]
        with airflow_errors():
            config = FactoryKafkaHook(self.kafka_conn_id or option("kafka_conn_id")).config()
            rollouts = Rollouts(config, self.group, prefix=option("prefix"))
            status = self._order(rollouts, f"{ti.dag_id}.{ti.task_id} of {context['run_id']}")
            push_links(self, ti, {"factory_input_link": topic_url(status.topic), "run_info_link": run_info_url(ti)})
            if self.wait > 0 and self.action != "finish":
                status = rollouts.wait(self.wait)
            self._check(status)
        self.log.info("%s: %s, %s of %s partitions", status.group, status.verdict, status.held, len(status.partitions))
        return facts_of(status)

    def _order(self, rollouts: Rollouts, by: str) -> Status:
        from factory_agents.kafka.routes import Limits

        before = rollouts.status()
        was_finished = before.base == self.version and before.verdict in ("steady", "rolled back")  # another one, after it
        if self.action == "start":
            if not self.version:
                raise ConfigurationError(f"RolloutOperator {self.task_id!r}: action 'start' needs version")
            if was_finished:
                return before
            steps = self.steps.split(",") if isinstance(self.steps, str) else list(self.steps)
            limits = Limits(errors=self.max_errors, rejected=self.max_rejected)
            return rollouts.start(self.version, steps=steps, hold=_seconds(self.hold), limits=limits, by=by)
        if self.action == "shift":
            if not self.share:
                raise ConfigurationError(f"RolloutOperator {self.task_id!r}: action 'shift' needs share")
            return rollouts.shift(self.share, by=by)
        if self.action == "rollback":
            reason = self.reason or f"told to by {by}"
            return before if before.verdict == "rolled back" else rollouts.roll_back(reason, version=self.version, by=by)
        return before if before.verdict == "steady" or was_finished else rollouts.finish(by=by)

    def _check(self, status: Status) -> None:
        """A version that was rolled back while this waited is no success."""
        if self.action in ("start", "shift") and status.verdict == "rolled back" and status.base != self.version:
            raise RolledBackError(f"group {status.group!r}: version {status.new!r} was rolled back: {status.reason}")


def facts_of(status: Status) -> dict[str, Any]:
    """What is worth keeping of a status, as JSON data."""
    return {
        "group": status.group,
        "verdict": status.verdict,
        "base": status.base,
        "new": status.new,
        "replaced": status.replaced,
        "reason": status.reason,
        "held": status.held,
        "partitions": len(status.partitions),
        "lag": status.lag,
    }


def _seconds(value: timedelta | float | str) -> float:
    try:
        return value.total_seconds() if isinstance(value, timedelta) else float(value)
    except ValueError:
        raise ConfigurationError(f"hold: expected seconds, got {value!r}") from None
