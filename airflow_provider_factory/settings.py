"""The ``[factory]`` section of Airflow's configuration, read where it is needed: no value is fixed when a DAG file is parsed."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from airflow.sdk.configuration import conf

from airflow_provider_factory.get_provider_info import get_provider_info
from factory_agents.errors import ConfigurationError

__all__ = ["CREDENTIALS", "RUNNERS", "Credentials", "Runner", "credentials", "option", "option_seconds", "retry_delay", "runner"]

Runner = Literal["process", "kubernetes"]
RUNNERS: tuple[Runner, ...] = ("process", "kubernetes")
Credentials = Literal["secret", "connections", "none"]
CREDENTIALS: tuple[Credentials, ...] = ("secret", "connections", "none")

_DEFAULTS: dict[str, str] = {name: o["default"] for name, o in get_provider_info()["config"]["factory"]["options"].items()}


def option(name: str) -> str:
    """One option as text: the environment, then ``airflow.cfg``, then the documented default."""
    value = conf.get("factory", name, fallback=_DEFAULTS[name])
    return str(value).strip() if value is not None else _DEFAULTS[name]


def option_seconds(name: str) -> float:
    """An option that is a number of seconds; raises ConfigurationError for anything else."""
    text = option(name)
    try:
        seconds = float(text)
    except ValueError:
        raise ConfigurationError(f"[factory] {name}: expected seconds (a number), got {text!r}") from None
    if seconds < 0:
        raise ConfigurationError(f"[factory] {name}: expected seconds, 0 or more, got {text}")
    return seconds


def runner(wanted: str | None = None) -> Runner:
    """Where an agent runs: what the task says, else the configuration; raises ConfigurationError for an unknown one."""
    value = wanted or option("runner")
    if value not in RUNNERS:
        raise ConfigurationError(
            f"runner: expected one of {', '.join(RUNNERS)}, got {value!r}; see [factory] runner, or the task's argument"
        )
    return value


def credentials(wanted: str | None = None) -> Credentials:
    """Where a pod's credentials come from: what the task says, else the configuration; raises ConfigurationError for an unknown place."""
    value = wanted or option("credentials")
    if value not in CREDENTIALS:
        raise ConfigurationError(f"credentials: expected one of {', '.join(CREDENTIALS)}, got {value!r}; see [factory] credentials")
    return value


def retry_delay() -> timedelta:
    """``[factory] retry_delay``, for a DAG's ``default_args``: five minutes, unless the configuration shortens it."""
    return timedelta(seconds=option_seconds("retry_delay"))
