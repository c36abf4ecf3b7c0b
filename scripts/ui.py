"""``make ui``: the whole of Airflow on loopback, over the sandbox, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from airflow_components import NEW_FILES_SOON, Components, free_port, loopback_environment
from airflow_env import ROOT, airflow_environment, prepare, run

from factory_agents.sandbox import Sandbox
from factory_agents.sandbox.airflow import POOL


def main() -> int:
    """Start every component, say where the UI is once all are healthy, and end them all at Ctrl-C or when one ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="port of the web UI on 127.0.0.1 (default: 8080, or a free one where that is taken)")
    port = parser.parse_args().port or free_port(8080)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    sandbox = Sandbox(ROOT / ".factory")
    sandbox.up()
    home = sandbox.home / "airflow"
    environment = (
        airflow_environment(sandbox) | loopback_environment(port, home) | NEW_FILES_SOON | {"AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO"}
    )
    prepare(environment)
    components = Components(environment, home / "components")
    try:
        components.start()
        return _watch(components, stop)
    finally:
        components.down()


def _watch(components: Components, stop: threading.Event) -> int:
    said = False
    while not stop.wait(1.0):
        for name, code in components.ended().items():
            print(f"{name} ended with {code}; see {components.logs / f'{name}.log'}", file=sys.stderr)
            return 1
        if not said and not components.unhealthy():
            said = True
            components.ensure_pool(*POOL)
            print(f"\nAirflow: {components.url}   user admin, password {components.password}", file=sys.stderr)
            print(f"logs: {components.logs}\nCtrl-C ends it.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run(main)
