"""Links on a task: what its agent was told, its topics in your Kafka console, its pod. Their targets are pushed when the agent starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import attrs
from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf
from airflow.sdk.execution_time.xcom import XCom

from airflow_provider_factory.settings import option
from factory_agents.protocol import AgentResult

__all__ = [
    "AgentRunLink",
    "InputTopicLink",
    "OutputTopicLink",
    "PodLink",
    "ReportLink",
    "pod_url",
    "push_links",
    "report_url",
    "run_info_url",
    "topic_url",
]


class _PushedLink(BaseOperatorLink):
    """A link whose target ``push_links`` pushes under ``xcom_key``; an empty target shows no link."""

    key: ClassVar[str]

    @property
    def xcom_key(self) -> str:
        """Where the target is kept."""
        return self.key

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The target, or an empty text where none was pushed."""
        known: Mapping[str, str] | None = getattr(operator, "known_links", None)
        if known is not None:
            return known.get(self.key, "")
        value = XCom.get_value(key=self.key, ti_key=ti_key)
        return value if isinstance(value, str) else ""


@attrs.define()
class AgentRunLink(_PushedLink):
    """The task's XCom page, with the facts of the run: window, shard, transactional id, where it runs."""

    name: str = "Agent run"
    key: ClassVar[str] = "run_info_link"


@attrs.define()
class InputTopicLink(_PushedLink):
    """The input topic in your Kafka console (``[factory] topic_url``)."""

    name: str = "Input topic"
    key: ClassVar[str] = "factory_input_link"


@attrs.define()
class OutputTopicLink(_PushedLink):
    """The output topic in your Kafka console (``[factory] topic_url``)."""

    name: str = "Output topic"
    key: ClassVar[str] = "factory_output_link"


@attrs.define()
class PodLink(_PushedLink):
    """The agent's pod in your cluster's console (``[factory] pod_url``)."""

    name: str = "Pod"
    key: ClassVar[str] = "factory_pod_link"


@attrs.define()
class ReportLink(_PushedLink):
    """The validation report of the window, on the Factory page."""

    name: str = "Validation report"
    key: ClassVar[str] = "factory_report_link"


def push_links(operator: Any, ti: Any, links: Mapping[str, str]) -> None:
    """Push the targets of a task's links for whoever looks while it runs.

    They are also kept with the operator: at the task's end Airflow asks for every link, and where one was not pushed it would log an error.
    """
    operator.known_links = {**getattr(operator, "known_links", {}), **links}
    for key, target in links.items():
        if target:
            ti.xcom_push(key=key, value=target)


def topic_url(topic: str) -> str:
    """Where a topic is shown; empty where no console is configured, or there is no topic."""
    return _filled(option("topic_url"), {"topic": topic, "cluster": option("cluster")}) if topic else ""


def pod_url(namespace: str, pod: str) -> str:
    """Where a pod is shown; empty where no console is configured."""
    return _filled(option("pod_url"), {"namespace": namespace, "pod": pod})


def report_url(dag_id: str, result: AgentResult) -> str:
    """Where the Factory page shows the validation report of a result's window."""
    query = urlencode({"key": result.key, "stage": result.stage}, quote_via=quote)
    return f"{_base_url()}/factory/pipelines/{quote(dag_id, safe='')}/report?{query}"


def _base_url() -> str:
    return str(conf.get("api", "base_url", fallback="") or "").rstrip("/")


def run_info_url(ti: Any) -> str:
    """The XCom page of a task instance in Airflow's UI."""
    base = _base_url()
    mapped = f"/mapped/{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ""
    return f"{base}/dags/{quote(ti.dag_id, safe='')}/runs/{quote(ti.run_id, safe='')}/tasks/{quote(ti.task_id, safe='')}{mapped}/xcom"


def _filled(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        template = template.replace("{" + name + "}", quote(value, safe=""))
    return template
