"""A Jaeger of a test's own, where its program is there, and what it tells of traces."""

from __future__ import annotations

import signal
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from factory_agents.sandbox.observability import jaeger_settings
from factory_agents.sandbox.processes import alive, free_port, last_line, spawn, stop
from factory_agents.sandbox.state import ObservabilityState
from tests.support.tools import find_tool
from tests.support.waiting import wait_for

PROGRAM = find_tool("jaeger")


@dataclass(frozen=True)
class Jaeger:
    """Where it shows traces, and where it takes them."""

    url: str
    otlp_url: str

    def traces(self, service: str, **query: str) -> list[dict[str, Any]]:
        """The traces in which a service has spans, as its own pages get them."""
        asked = urllib.parse.urlencode({"service": service, "limit": "1000", **query})
        with urllib.request.urlopen(f"{self.url}/api/traces?{asked}", timeout=10) as answer:
            found: list[dict[str, Any]] = msgspec.json.decode(answer.read())["data"]
        return found


@contextmanager
def jaeger(folder: Path) -> Iterator[Jaeger]:
    """Run it as the sandbox does, on free ports."""
    assert PROGRAM is not None
    at = ObservabilityState(port=0, alerts_port=0, metrics_port=0, traces_port=free_port("127.0.0.1"), otlp_port=free_port("127.0.0.1"))
    settings, log = folder / "jaeger.json", folder / "jaeger.log"
    settings.write_bytes(msgspec.json.encode(jaeger_settings(at)))
    process = spawn([PROGRAM, f"--config=file:{settings}"], log=log)
    started = Jaeger(f"http://127.0.0.1:{at.traces_port}", f"http://127.0.0.1:{at.otlp_port}")

    def ready() -> bool:
        assert alive(process), last_line(log)
        try:
            return started.traces("nobody") == []
        except OSError:
            return False

    try:
        wait_for(ready, "Jaeger to answer", 60)
        yield started
    finally:
        stop(process, (signal.SIGTERM, 10), (signal.SIGKILL, 5))
