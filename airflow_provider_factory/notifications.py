"""What happens when a run is late: a deadline alert for a DAG, and the callback that it runs in the triggerer."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from typing import Any

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from airflow_provider_factory.settings import option

__all__ = ["deadline_missed", "late_after"]

log = logging.getLogger(__name__)


def late_after(interval: timedelta) -> DeadlineAlert | None:
    """A DAG's ``deadline``: an alert for a run that has not ended this long after it was queued.

    None where ``[factory] deadlines`` is off, and in ``airflow dags test``, which fails on
    any deadline when the run succeeds (Airflow #73428).
    """
    if option("deadlines").lower() not in ("true", "1") or sys.argv[1:3] == ["dags", "test"]:
        return None
    return DeadlineAlert(reference=DeadlineReference.DAGRUN_QUEUED_AT, interval=interval, callback=AsyncCallback(deadline_missed))


async def deadline_missed(context: dict[str, Any] | None = None, **kwargs: Any) -> None:
    """Log which run missed its deadline, as an error that log-based alerts can match; ``kwargs`` are those given to the callback."""
    run = (context or {}).get("dag_run") or {}
    facts = run if isinstance(run, dict) else {"dag_id": getattr(run, "dag_id", None), "run_id": getattr(run, "run_id", None)}
    log.error("deadline missed: dag %s run %s %s", facts.get("dag_id"), facts.get("run_id"), kwargs or "")
