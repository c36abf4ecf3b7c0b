"""What of a task's arguments its DAG's author wrote, and what whoever starts the run decides."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from airflow_provider_factory.outside import from_outside, names_from_outside

OURS = [
    "s3://bucket/events.jsonl",
    "/data/{day}.csv",
    "s3://bucket/{{ ds }}/{{ data_interval_start.strftime('%H') }}.jsonl",
    "{{ var.value.bucket }}/{{ macros.ds_add(ds, -1) }}.jsonl",
    "{% set day = ds %}{{ day }}.jsonl",
    ["a.jsonl", "{{ ts }}.jsonl"],
    {"on": "id", "file": "{{ ds }}.csv"},
    7,
    None,
    True,
]
THEIRS = [
    "{{ params.source }}",
    "s3://bucket/{{ params['day'] }}.jsonl",
    "{{ dag_run.conf.source }}",
    "{{ dag_run.conf['source'] or ds }}",
    "{{ run_id }}.jsonl",
    "{{ ti.xcom_pull(task_ids='a') }}",
    "{% if params.big %}big.jsonl{% else %}small.jsonl{% endif %}",
    "{{ params.source",
    ["a.jsonl", "{{ params.b }}"],
    [{"on": "id", "file": "{{ params.file }}"}],
    {"{{ params.name }}": 1},
]


@pytest.mark.parametrize("written", OURS, ids=str)
def test_what_the_author_wrote_or_the_schedule_says_is_the_authors(written: Any) -> None:
    assert not from_outside(written)


@pytest.mark.parametrize("written", THEIRS, ids=str)
def test_what_reads_the_run_comes_from_outside(written: Any) -> None:
    assert from_outside(written)


def test_a_param_object_does_and_another_tasks_output_does_not() -> None:
    with DAG("d", schedule=None, params={"source": "a"}) as dag:
        assert from_outside(dag.param("source"))
        assert from_outside([dag.param("source")])
        assert not from_outside(EmptyOperator(task_id="before").output)


def test_parameters_are_told_apart_by_name() -> None:
    written = {"source": "{{ params.source }}", "time_field": "t", "lookups": [{"file": "{{ params.f }}"}]}
    assert names_from_outside(written, {"source": "x", "time_field": "t", "lookups": []}) == {"source", "lookups"}
    assert names_from_outside("{{ params.all | tojson }}", {"a": 1, "b": 2}) == {"a", "b"}
    assert names_from_outside(None, {}) == set()
