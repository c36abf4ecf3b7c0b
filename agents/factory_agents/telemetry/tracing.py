"""Whether runs are traced: as OpenTelemetry's own variables say. Where they aren't, nothing of it is imported."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from factory_agents.telemetry.spans import Traces

__all__ = ["OF_ITS_PROCESS", "TRACE_RATE", "collector_address", "handed_on", "tracing"]

log = logging.getLogger(__name__)

TRACE_RATE = "FACTORY_TRACE_RATE"
"""How many events a second ``ingest`` begins a trace for, in each of its runs; 0 for none."""

OF_ITS_PROCESS = ("OTEL_SERVICE_NAME", "TRACEPARENT")
"""Variables that are about the process that has them, and nothing for an agent that it starts."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS = ("otlp", "otlp_proto_http")  # the second one is what Airflow calls it

_SECRET = ("HEADERS",)
_LOCAL = (*OF_ITS_PROCESS, "OTEL_RESOURCE_ATTRIBUTES", "CERTIFICATE", "CLIENT_KEY")  # files of the machine on which they are set


def _wanted(environ: Mapping[str, str]) -> bool:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter in ("", "none"):
        return not exporter and any(environ.get(name) for name in _ENDPOINTS)
    if exporter not in _EXPORTERS:
        log.warning("no traces: OTEL_TRACES_EXPORTER: expected otlp or none, got %r", exporter)
        return False
    return True


def collector_address(environ: Mapping[str, str]) -> str:
    """Where traces go, without what may be secret in it."""
    try:
        parts = urlsplit(next(filter(None, map(environ.get, _ENDPOINTS)), "http://localhost:4318"))
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "the collector"


def _spoken(environ: Mapping[str, str]) -> bool:
    protocol = next(filter(None, map(environ.get, _PROTOCOLS)), "http/protobuf")
    if protocol != "http/protobuf":
        log.warning("no traces: they are sent by http/protobuf (port 4318 of a collector), and OTEL_EXPORTER_OTLP_PROTOCOL is %r", protocol)
        return False
    endpoint = next(filter(environ.get, _ENDPOINTS), None)
    if endpoint is not None and not environ[endpoint].lower().startswith(("http://", "https://")):
        log.warning("no traces: %s: expected http:// or https:// at the beginning, as in http://localhost:4318", endpoint)
        return False
    return True


@contextmanager
def tracing(service: str, environ: Mapping[str, str] | None = None) -> Iterator[Traces | None]:
    """What writes this process's spans while it runs; None where no traces are wanted, or none can be made, which a warning says.

    They are wanted where an OTLP endpoint is named, or ``OTEL_TRACES_EXPORTER`` is ``otlp``. ``service`` is the service's name unless
    ``OTEL_SERVICE_NAME`` says otherwise. At the end what is left is sent, for two seconds at most.
    """
    environ = os.environ if environ is None else environ
    traces = _open(service, environ) if _wanted(environ) and _spoken(environ) else None
    try:
        yield traces
    finally:
        if traces is not None:
            traces.close()


def _open(service: str, environ: Mapping[str, str]) -> Traces | None:
    try:
        from factory_agents.telemetry.spans import Traces

        return Traces(service, _rate(environ))
    except ImportError:
        log.warning("no traces: OpenTelemetry is not installed: pip install 'factory-agents[tracing]'")
        return None
    except Exception as error:  # a setting that the SDK doesn't take: no reason to do no work
        log.warning("no traces: OpenTelemetry's settings (OTEL_…) can't be used: %s: %s", type(error).__name__, error)
        return None


def _rate(environ: Mapping[str, str]) -> float:
    text = environ.get(TRACE_RATE, "").strip() or "1"
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1_000_000:
        log.warning("%s: expected events a second (a number, 0 or more), got %r; it is 1", TRACE_RATE, text)
        return 1.0
    return rate


def handed_on(environ: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The settings of tracing for an agent on another machine: those that anybody may see, and those that hold secrets."""
    plain, secret = {}, {}
    for name, value in environ.items():
        if not value or not (name.startswith("OTEL_") or name == TRACE_RATE) or name.endswith(_LOCAL):
            continue
        if name.endswith(_SECRET) or (name.endswith("ENDPOINT") and _has_password(value)):
            secret[name] = value
        else:
            plain[name] = value
    return plain, secret


def _has_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    return bool(parts.username or parts.password or parts.query)
