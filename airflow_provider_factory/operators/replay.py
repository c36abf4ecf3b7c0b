"""Replays dead letters into a topic, each exactly once, whatever becomes of the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from airflow.sdk import Asset, BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_factory.assets import topic_argument, topic_name
from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.lineage import topic_lineage
from airflow_provider_factory.runs import as_bool, bundle_root, order, places
from airflow_provider_factory.settings import option
from factory_agents.errors import ConfigurationError
from factory_agents.text import count

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from factory_agents.runtime.dead_letters import Selection
    from factory_agents.runtime.replays import ReplayResult, Through

__all__ = ["ReplayOperator"]

_MOST_REFUSED = 100


class ReplayOperator(BaseOperator):
    """Writes the events of dead letters to a topic again. The ledger says which were replayed, in the same transactions as the events.

    So a retry, a second run or a clear takes only the letters that are left, and a task that is ended half-way loses none: nothing is ever
    deleted. Letters of attempts that failed are left out unless ``attempt`` includes them, since a retry sees their events again.

    ``through`` a mended agent or contract, its outputs are written, and what it rejects stays a letter. It begins with 100 events, and
    fails without retries once more per cent than ``stop_above`` come back.

    XCom is what was done: letters ``replayed``, those replayed ``before``, events that were ``returned``, and which events the target
    ``refused`` (the first 100, and how many more); if there are any of the last, the task fails without retries.

    :param topic: the dead-letter topic. (templated)
    :param to: the topic to write to: the pipeline's first, whose next window takes the events. (templated)
    :param pipeline: only this pipeline's letters. (templated)
    :param stage: only this stage's. (templated)
    :param rule: only those that broke this rule. (templated)
    :param window: only those of this window. (templated)
    :param positions: only these letters, each ``partition@offset``; empty for all. (templated)
    :param attempt: ``finished``, ``unfinished``, ``live``, ``unknown`` or ``all``; empty for finished and live ones. (templated)
    :param since: only letters written at this time or later, ISO 8601. (templated)
    :param until: only letters written before this time, ISO 8601. (templated)
    :param limit: most letters to replay; 0 for all. (templated)
    :param rate: most events a second; 0 for no limit. (templated)
    :param through: an agent that the events pass first: ``validate``, ``enrich``, or ``module:function``. (templated)
    :param agent_params: that agent's parameters, such as its contract. (templated)
    :param stop_above: with ``through``: the share of rejected events, in per cent, that ends the replay. (templated)
    :param input_codec: with ``through``: reads the events; by default as the topics file declares.
    :param output_codec: with ``through``: writes its outputs; by default as the topics file declares.
    :param again: include letters that were replayed before; a retry leaves out those that this task has replayed, a clear includes them.
        (templated)
    :param count_only: write nothing, only say what would be replayed. (templated)
    :param kafka_conn_id: Airflow connection of the cluster; by default ``[factory] kafka_conn_id``. (templated)

    Example::

        ReplayOperator(task_id="replay", topic="enriched_events.dead", to="raw_events", rule="required")
    """

    template_fields: Sequence[str] = (
        "topic",
        "to",
        "pipeline",
        "stage",
        "rule",
        "window",
        "positions",
        "attempt",
        "since",
        "until",
        "limit",
        "rate",
        "through",
        "agent_params",
        "stop_above",
        "again",
        "count_only",
        "kafka_conn_id",
    )
    ui_color = "#f6e7db"

    def __init__(
        self,
        *,
        topic: str | Asset,
        to: str | Asset,
        pipeline: str = "",
        stage: str = "",
        rule: str = "",
        window: str = "",
        positions: Sequence[str] | str = (),
        attempt: str = "",
        since: str = "",
        until: str = "",
        limit: int | str = 0,
        rate: float | str = 0.0,
        through: str = "",
        agent_params: Mapping[str, Any] | None = None,
        stop_above: float | str = "",
        input_codec: str | Mapping[str, Any] | None = None,
        output_codec: str | Mapping[str, Any] | None = None,
        again: bool | str = False,
        count_only: bool | str = False,
        kafka_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.topic = topic_argument(topic)
        self.to = topic_argument(to)
        self.pipeline = pipeline
        self.stage = stage
        self.rule = rule
        self.window = window
        self.positions = positions
        self.attempt = attempt
        self.since = since
        self.until = until
        self.limit = limit
        self.rate = rate
        self.through = through
        self.agent_params = agent_params
        self.stop_above = stop_above
        self.input_codec = input_codec
        self.output_codec = output_codec
        self.again = again
        self.count_only = count_only
        self.kafka_conn_id = kafka_conn_id
        self._stopped = False

    def execute(self, context: Context) -> dict[str, Any]:
        """Replay, and return what was done; raises AirflowFailException for what a retry cannot mend."""
        with airflow_errors():
            again = as_bool(self.again, "again") and _repetition(context)
            result = self._replay(self._selection(), bundle_root(context), again=again)
        done: dict[str, Any] = msgspec.to_builtins(result)
        refused = list(result.refused)
        if result.returned:
            self.log.warning("%s events were rejected again, and stay letters: %s", f"{result.returned:,}", result.reasons)
        done["refused"], done["refused_count"] = refused[:_MOST_REFUSED], len(refused)
        self.log.info(
            "%s events %s from %s to %s; %s were replayed before, %s older letters about the same events, %s of other attempts",
            f"{result.replayed:,}",
            "would go" if result.dry_run else "went",
            result.topic,
            result.to,
            f"{result.before:,}",
            f"{result.superseded:,}",
            f"{result.others:,}",
        )
        if refused:
            context["ti"].xcom_push(key="return_value", value=done)
            for reason in refused[:_MOST_REFUSED]:
                self.log.error("not replayed: %s", reason)
            raise AirflowFailException(
                f"{count(len(refused), 'event')} not replayed, {result.replayed:,} replayed; the first: {refused[0]}"
            )
        if result.stopped:
            context["ti"].xcom_push(key="return_value", value=done)
            raise AirflowFailException(f"stopped: {result.stopped}; {count(result.replayed, 'event')} written")
        return done

    def on_kill(self) -> None:
        """Stop after the transaction under way: what was committed stays, the next run takes the rest."""
        self._stopped = True

    def _selection(self) -> Selection:
        from factory_agents.runtime.dead_letters import Selection

        positions = self.positions.split(",") if isinstance(self.positions, str) else self.positions
        return Selection(
            rule=self.rule,
            stage=self.stage,
            pipeline=self.pipeline,
            window=self.window,
            attempt=self.attempt,
            since=_time(self.since, "since"),
            until=_time(self.until, "until"),
            limit=int(_number(self.limit, "limit")),
            positions=frozenset(str(position).strip() for position in positions if str(position).strip()),
        )

    def _replay(self, selection: Selection, root: Path | None, *, again: bool | str) -> ReplayResult:
        from airflow_provider_factory.codecs import topic_codec
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
        from factory_agents.runtime.replays import ReplayedBeforeError, ReplayResult, replay_letters

        topic, to, count_only = topic_name(self.topic), topic_name(self.to), as_bool(self.count_only, "count_only")
        with self._way(to, root) as through:
            try:
                return replay_letters(
                    FactoryKafkaHook(self.kafka_conn_id or option("kafka_conn_id")).config(),
                    topic,
                    to,
                    selection,
                    prefix=option("prefix"),
                    again=again,
                    dry_run=count_only,
                    rate=_number(self.rate, "rate"),
                    through=through,
                    codec_of=lambda name: topic_codec(None, "codec", name, root),
                    stop=lambda: self._stopped,
                )
            except ReplayedBeforeError as error:
                self.log.info("nothing is left: %s", error)
                return ReplayResult(topic, to, 0, error.count, 0, count_only)

    def _way(self, to: str, root: Path | None) -> AbstractContextManager[Through | None]:
        """The agent that events pass before they are written, if there is one."""
        if not self.through:
            given = [self.stop_above, self.input_codec, self.output_codec, *(self.agent_params or {}).values()]
            if any(value not in ("", None) for value in given):
                raise ConfigurationError("agent_params, stop_above, input_codec and output_codec are about the agent that through names")
            return nullcontext()
        from airflow_provider_factory.codecs import topic_codec
        from factory_agents.contracts import pack_contract, untrusted_contract
        from factory_agents.mended import through_agent

        params = dict(self.agent_params or {})
        if isinstance(params.get("contract"), str):  # it may come from whoever started the run
            params["contract"] = pack_contract(untrusted_contract(params["contract"], places(root)))
        return through_agent(
            self.through,
            params,
            lambda topic: topic_codec(self.input_codec, "input_codec", topic, root),
            topic_codec(self.output_codec, "output_codec", to, root),
            to,
            stop_above=_number(self.stop_above, "stop_above") if str(self.stop_above) else None,
        )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """The dead-letter topic as input, the other one as output."""
        return topic_lineage(inputs=[self.topic], outputs=[self.to])


def _repetition(context: Context) -> str:
    """What a repetition is called: the same for a task's retries, another one once it is cleared, or its run made again under its name."""
    ti, told = context["ti"], order(context)
    return " ".join((ti.dag_id, ti.task_id, told.task, str(told.tries), str(told.began)))


def _number(value: Any, name: str) -> float:
    try:
        number = float(value or 0)
    except (TypeError, ValueError):
        raise ConfigurationError(f"{name}: expected a number, got {value!r}") from None
    if not 0 <= number < float("inf"):
        raise ConfigurationError(f"{name}: expected 0 or more, got {value!r}")
    return number


def _time(value: Any, name: str) -> datetime | None:
    from factory_agents.options import parse_time

    return parse_time(str(value), name) if value else None
