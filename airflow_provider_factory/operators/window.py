"""Plans which records of a topic belong to a DAG run, once and for good, and cuts them into shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from airflow.sdk import Asset, BaseOperator

from airflow_provider_factory.assets import asset_topic, topic_argument, topic_name
from airflow_provider_factory.codecs import topic_codec
from airflow_provider_factory.errors import airflow_errors
from airflow_provider_factory.lineage import topic_lineage
from airflow_provider_factory.links import AgentRunLink, InputTopicLink, push_links, run_info_url, topic_url
from airflow_provider_factory.runs import as_bool, bundle_root, data_interval, follows, optional_interval, window_policy
from airflow_provider_factory.settings import option
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import Interval, Window, decode_window
from factory_agents.stage_plan import auto_shards, plan_shards

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

__all__ = ["WindowOperator"]

AfterPause = Literal["carry", "leave"]
NoInterval = Literal["error", "since_last"]


RECORDS_PER_SHARD = 500_000


class WindowOperator(BaseOperator):
    """Turns the run's data interval into offsets per partition (the same ones whenever it runs again), and cuts them into shards.

    XCom is a list with one entry for each shard (at least one, even for an empty hour): map a stage over it with
    ``expand(window=window.output)``, or give all of it to one stage with ``window=window.output``.

    :param topic: the topic's name, or an asset ``kafka://<cluster>/<topic>``. (templated)
    :param codec: what reads the topic's records: ``json``, ``avro``, ``avro?version=3``, your own as ``module:Class``, or a mapping with
        ``name`` and its options; by default what the topics file declares.
    :param shards: the most shards to make; never more than partitions. ``auto``: one for each ``records_per_shard`` records. (templated)
    :param records_per_shard: for ``shards="auto"``: about as many as an agent handles in ten times a pod's start. (templated)
    :param after_pause: what a scheduled run of a ``catchup=False`` DAG does with records since the last scheduled run: ``carry``
        takes them, ``leave`` leaves them to a backfill. Backfilled and manual runs read exactly their interval.
    :param no_interval: what a run without a data interval does: ``error``, or ``since_last``, which reads from the pipeline's last
        window to the end.
    :param accept_loss: continue although records of the window were deleted already, and record the loss. (templated)
    :param timeout: how long to keep trying while others plan windows of the same pipeline.
    :param kafka_conn_id: Airflow connection of the cluster; by default ``[factory] kafka_conn_id``. (templated)

    Example::

        WindowOperator(task_id="window_of_run", topic="raw_events", shards="auto", after_pause="leave")
    """

    template_fields: Sequence[str] = ("topic", "shards", "records_per_shard", "accept_loss", "kafka_conn_id")
    operator_extra_links = (InputTopicLink(), AgentRunLink())
    ui_color = "#dbe7f6"

    def __init__(
        self,
        *,
        topic: str | Asset,
        codec: str | Mapping[str, Any] | None = None,
        shards: int | str = 1,
        records_per_shard: int | str = RECORDS_PER_SHARD,
        after_pause: AfterPause = "carry",
        no_interval: NoInterval = "error",
        accept_loss: bool | str = False,
        timeout: timedelta | float = 120.0,
        kafka_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.topic = topic_argument(topic)
        self.codec = codec
        self.shards = shards
        self.records_per_shard = records_per_shard
        self.after_pause = _one_of(after_pause, ("carry", "leave"), "after_pause")
        self.no_interval = _one_of(no_interval, ("error", "since_last"), "no_interval")
        self.accept_loss = accept_loss
        self.timeout = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
        self.kafka_conn_id = kafka_conn_id
        self.known_links: dict[str, str] = {}
        asset = asset_topic(topic)
        if asset is not None and asset not in self.inlets:
            self.inlets = [*self.inlets, asset]

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Plan the window and return its shards; raises AirflowFailException for what a retry cannot mend."""
        with airflow_errors():
            shards = None if self.shards == "auto" else _count(self.shards, "shards")
            per_shard = _count(self.records_per_shard, "records_per_shard")
            interval = self._interval(context)
            self.log.info("Interval %s", f"[{interval.start}, {interval.end})" if interval else "since the pipeline's last window")
            window = self._plan(context, interval)
            plan = plan_shards(window, shards or auto_shards(window, per_shard))
        self._push_run_info(context, window, plan)
        return plan

    def _interval(self, context: Context) -> Interval | None:
        return optional_interval(context) if self.no_interval == "since_last" else data_interval(context)

    def _plan(self, context: Context, interval: Interval | None) -> Window:
        from airflow_provider_factory.hooks.kafka import FactoryKafkaHook
        from factory_agents.kafka.cuts import plan_window

        carry = window_policy(context, self.after_pause) == "carry"
        codec = topic_codec(self.codec, "codec", topic_name(self.topic), bundle_root(context))
        window = plan_window(
            FactoryKafkaHook(self.kafka_conn_id or option("kafka_conn_id")).config(),
            pipeline=self.dag_id,
            topic=topic_name(self.topic),
            interval=interval,
            run_key="" if interval else str(context["run_id"]),
            prefix=option("prefix"),
            policy="carry" if carry else "index",
            follows=carry and interval is not None and follows(context, interval),
            accept_loss=as_bool(self.accept_loss, "accept_loss"),
            asked=getattr(context.get("dag_run"), "run_after", None),
            keep=option("keep_windows"),
            timeout=self.timeout,
        )
        return msgspec.structs.replace(window, codec=codec)

    def _push_run_info(self, context: Context, window: Window, plan: Sequence[Mapping[str, Any]]) -> None:
        self.log.info("Window %s of %s: up to %s records in %d shard(s)", window.key, window.topic, f"{window.size:,}", len(plan))
        if window.carried:
            self.log.info(
                "Of these, %s record(s) arrived before the interval, since the last scheduled run (a pause)", f"{window.carried:,}"
            )
        if window.lost:
            self.log.warning(
                "Gone from the topic and left out (accept_loss): %s", ", ".join(f"{r.partition}[{r.start}, {r.end})" for r in window.lost)
            )
        for entry in plan:
            ranges = decode_window(dict(entry["window"])).ranges
            shown = ", ".join(f"{r.partition}[{r.start}, {r.end})" for r in ranges[:20]) + (" …" if len(ranges) > 20 else "")
            self.log.info("Shard %d of %d: %s", entry["shard"][0] + 1, entry["shard"][1], shown or "no partition")
        ti = context["ti"]
        facts = {
            "window": window.key,
            "topic": window.topic,
            "records": window.size,
            "carried": window.carried,
            "gap": window.gap,
            "lost": sum(r.end - r.start for r in window.lost),
            "shards": len(plan),
            "plan": plan[0]["plan"],
        }
        ti.xcom_push(key="run_info", value=facts)
        push_links(self, ti, {InputTopicLink.key: topic_url(window.topic), AgentRunLink.key: run_info_url(ti)})

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """The topic as input."""
        return topic_lineage(inputs=[self.topic])


def _one_of(value: str, allowed: Sequence[str], name: str) -> str:
    if value not in allowed:
        raise ConfigurationError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    return value


def _count(value: Any, name: str) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        raise ConfigurationError(f"{name}: expected a number{' or auto' if name == 'shards' else ''}, got {value!r}") from None
    if count < 1:
        raise ConfigurationError(f"{name}: expected at least 1, got {count}")
    return count
