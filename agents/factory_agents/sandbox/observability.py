"""Prometheus, Alertmanager and Jaeger of a sandbox, the programs on the PATH, over a metrics server of its own, on loopback alone."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgspec

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.sandbox import private
from factory_agents.sandbox.processes import alive, last_line, spawn, stop, wait_until
from factory_agents.sandbox.state import ObservabilityState

_PATIENCE = 60.0  # seconds until all must serve
_LIVE_AGENT = "127.0.0.1:9109"
_RULES = Path("deploy/prometheus/rules.yaml")


def start(folder: Path, at: ObservabilityState, bootstrap: str, tell: Callable[[str], None]) -> ObservabilityState:
    """Begin to start them at these ports; ``folder`` keeps their data and settings.

    The rules are those of the current directory's ``deploy/prometheus``, if it has any. Without Jaeger's program the others run alone.

    Raises:
        ConfigurationError: a program is not there.
    """
    prometheus, alertmanager = _program("prometheus"), _program("prometheus-alertmanager", "alertmanager")
    private.tighten_all(private.folder(folder))
    rules = Path.cwd() / _RULES
    jaeger = shutil.which("jaeger")
    tell(
        f"starting Prometheus, Alertmanager{', Jaeger' if jaeger else ''} and a metrics server"
        + ("" if rules.is_file() else f" (no rules: there is no {rules})")
    )
    private.write(folder / "prometheus.json", msgspec.json.encode(_prometheus(at, rules if rules.is_file() else None)))
    private.write(folder / "alertmanager.json", msgspec.json.encode({"route": {"receiver": "none"}, "receivers": [{"name": "none"}]}))
    serve = [sys.executable, "-m", "factory_agents.cli", "metrics", "serve", "--listen", f"{at.host}:{at.metrics_port}", "--every", "5"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KAFKA_")} | {"KAFKA_BOOTSTRAP": bootstrap}
    alerting = [f"--config.file={folder}/alertmanager.json", f"--storage.path={folder}/alerts", "--cluster.listen-address="]
    watching = [f"--config.file={folder}/prometheus.json", f"--storage.tsdb.path={folder}/series"]
    if jaeger:
        private.write(folder / "jaeger.json", msgspec.json.encode(jaeger_settings(at)))
    return msgspec.structs.replace(
        at,
        traces=spawn([jaeger, f"--config=file:{folder}/jaeger.json"], log=_log(folder, "jaeger")) if jaeger else None,
        bootstrap=bootstrap,
        metrics=spawn(serve, log=_log(folder, "metrics"), env=environment),
        alerts=spawn([alertmanager, *alerting, f"--web.listen-address={at.host}:{at.alerts_port}"], log=_log(folder, "alertmanager")),
        process=spawn([prometheus, *watching, f"--web.listen-address={at.host}:{at.port}"], log=log_of(folder)),
    )


def wait_ready(folder: Path, at: ObservabilityState) -> None:
    """Wait until all of them answer.

    Raises:
        UnavailableError: one ended, or doesn't answer after a minute.
    """
    parts = {"prometheus": at.process, "alertmanager": at.alerts, "metrics": at.metrics}
    parts |= {"jaeger": at.traces} if at.traces is not None else {}
    wait_until(lambda: answers(at) or not all(map(alive, parts.values())), _PATIENCE)
    if not answers(at):
        name = next((name for name, process in parts.items() if not alive(process)), "prometheus")
        raise UnavailableError(f"{name} did not start: {last_line(_log(folder, name))} (see {_log(folder, name)})")


def answers(at: ObservabilityState) -> bool:
    """Whether all of them run and serve."""
    ways = [(at.process, at.port, "-/ready"), (at.alerts, at.alerts_port, "-/ready"), (at.metrics, at.metrics_port, "livez")]
    if at.traces is not None:
        ways.append((at.traces, at.traces_port, "api/services"))
    return all(alive(process) and _is_ready(f"http://{at.host}:{port}/{path}") for process, port, path in ways)


def end(at: ObservabilityState | None) -> None:
    """Stop all of them: the metrics server first, so that what it showed last is kept."""
    for process in (at.metrics, at.alerts, at.process, at.traces) if at is not None else ():
        stop(process, (signal.SIGTERM, 10), (signal.SIGKILL, 10))


def log_of(folder: Path) -> Path:
    """Where Prometheus writes its log; the others' are beside it."""
    return _log(folder, "prometheus")


def _log(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"


def _prometheus(at: ObservabilityState, rules: Path | None) -> dict[str, object]:
    jobs = {"factory-metrics": f"{at.host}:{at.metrics_port}", "factory-agents": _LIVE_AGENT}
    return {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": [str(rules)] if rules else [],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"{at.host}:{at.alerts_port}"]}]}]},
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in jobs.items()],
    }


def jaeger_settings(at: ObservabilityState) -> dict[str, object]:
    """Traces come by OTLP over HTTP, and are kept in memory."""
    traces = {"receivers": ["otlp"], "processors": [], "exporters": ["jaeger_storage_exporter"]}
    quiet = {"metrics": {"level": "none"}, "logs": {"level": "warn"}}
    pages = {"http": {"endpoint": f"{at.host}:{at.traces_port}"}, "grpc": {"endpoint": f"{at.host}:0"}}
    return {
        "service": {"extensions": ["jaeger_storage", "jaeger_query"], "pipelines": {"traces": traces}, "telemetry": quiet},
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 100_000}}}},
            "jaeger_query": {"storage": {"traces": "memory"}, **pages},
        },
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"{at.host}:{at.otlp_port}"}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _program(*names: str) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise ConfigurationError(
            f"the sandbox needs {names[-1]} on the PATH: apt-get install prometheus prometheus-alertmanager, or as your system has it"
        )
    return found
