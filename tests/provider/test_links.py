"""Links are pushed when an agent starts, are safe whatever a name holds, and are missing rather than wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_factory import links


class Pushed:
    """A task instance that keeps what is pushed."""

    def __init__(self, **fields: Any) -> None:
        self.dag_id, self.run_id, self.task_id, self.map_index = "clicks", "scheduled__2026-03-01T05:00:00+00:00", "enrich", -1
        self.pushed: dict[str, str] = {}
        vars(self).update(fields)

    def xcom_push(self, key: str, value: str) -> None:
        self.pushed[key] = value


def test_a_console_is_configured_once_and_names_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__FACTORY__TOPIC_URL", "https://console/{cluster}/topics/{topic}?q={topic}")
    monkeypatch.setenv("AIRFLOW__FACTORY__CLUSTER", "east/1")
    monkeypatch.setenv("AIRFLOW__FACTORY__POD_URL", "https://k8s/{namespace}/{pod}")
    assert links.topic_url("a/b?c#{cluster}") == "https://console/east%2F1/topics/a%2Fb%3Fc%23%7Bcluster%7D?q=a%2Fb%3Fc%23%7Bcluster%7D"
    assert links.pod_url("ns", "pod/../x") == "https://k8s/ns/pod%2F..%2Fx"


def test_without_a_console_or_a_topic_there_is_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__FACTORY__TOPIC_URL", raising=False)
    assert links.topic_url("raw") == ""
    monkeypatch.setenv("AIRFLOW__FACTORY__TOPIC_URL", "https://console/{topic}")
    assert links.topic_url("") == ""


@pytest.mark.parametrize(("map_index", "mapped"), [(-1, ""), (None, ""), (0, "/mapped/0"), (7, "/mapped/7")])
def test_a_mapped_tasks_page_is_its_own(monkeypatch: pytest.MonkeyPatch, map_index: int | None, mapped: str) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow/x/")
    url = links.run_info_url(Pushed(map_index=map_index))
    assert url == f"https://airflow/x/dags/clicks/runs/scheduled__2026-03-01T05%3A00%3A00%2B00%3A00/tasks/enrich{mapped}/xcom"


def test_what_is_empty_is_not_pushed_and_not_looked_for_at_the_end() -> None:
    operator, ti = SimpleNamespace(), Pushed()
    links.push_links(operator, ti, {"factory_input_link": "https://console/raw"})
    links.push_links(operator, ti, {"factory_output_link": ""})
    assert ti.pushed == {"factory_input_link": "https://console/raw"}
    assert links.InputTopicLink().get_link(operator, ti_key=None) == "https://console/raw"
    assert links.OutputTopicLink().get_link(operator, ti_key=None) == ""
    assert links.PodLink().get_link(operator, ti_key=None) == "", "asking Airflow for one that was never pushed would log an error"
