"""The seed design's DAG: four BashOperators in a row, each a kafka-python agent; topics and table come from the environment."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

agent = f"{os.environ.get('SEED_PYTHON', 'python')} {os.environ.get('SEED_AGENT', 'seed_agent.py')}"
name = os.environ.get("SEED_NAME", "seed")

with DAG("seed_pipeline", schedule=None, start_date=datetime(2018, 5, 1, tzinfo=UTC), catchup=False):
    ingest = BashOperator(task_id="ingest_events", bash_command=f"{agent} ingest {os.environ.get('SEED_FILE', '')} {name}-raw")
    enrich = BashOperator(task_id="enrich_events", bash_command=f"{agent} enrich {name}-raw {name}-enriched")
    validate = BashOperator(task_id="validate_events", bash_command=f"{agent} validate {name}-enriched {name}-valid")
    publish = BashOperator(task_id="publish_results", bash_command=f"{agent} publish {name}-valid {name.replace('-', '_')}")
    ingest >> enrich >> validate >> publish
