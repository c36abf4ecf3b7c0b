"""What happens when a pipeline is late: a callback for Airflow's deadline alerts, run in the triggerer."""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["deadline_missed"]

log = logging.getLogger(__name__)


async def deadline_missed(context: dict[str, Any] | None = None, **kwargs: Any) -> None:
    """Log which run missed its deadline, as an error that log-based alerts can match; ``kwargs`` are those given to the callback."""
    run = (context or {}).get("dag_run") or {}
    facts = run if isinstance(run, dict) else {"dag_id": getattr(run, "dag_id", None), "run_id": getattr(run, "run_id", None)}
    log.error("deadline missed: dag %s run %s %s", facts.get("dag_id"), facts.get("run_id"), kwargs or "")
