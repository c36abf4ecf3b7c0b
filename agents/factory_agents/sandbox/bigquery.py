"""The BigQuery emulator of a sandbox."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from pathlib import Path

from factory_agents.sandbox import emulators, private
from factory_agents.sandbox.processes import ProcessRecord, spawn
from factory_agents.sandbox.state import BIGQUERY_PROJECT

_EXTENSIONS = ("ducklake", "icu", "spatial")
EMULATOR = emulators.Emulator(
    "BigQuery emulator",
    (3, 13),
    "from duckdb_extensions import import_extension; " + "; ".join(f"import_extension({name!r})" for name in _EXTENSIONS),
)


def start(folder: Path, host: str, port: int, grpc_port: int, tell: Callable[[str], None]) -> ProcessRecord:
    """Begin to start the emulator whose data are in ``folder``.

    Raises:
        ConfigurationError: there is no Python that it runs on.
        UnavailableError: its environment could not be built.
    """
    environment = EMULATOR.build(tell)
    private.tighten_all(private.folder(folder))
    command = [str(environment / "bin" / "local-bigquery"), "serve", "--host", host, "--port", str(port), "--grpc-port", str(grpc_port)]
    return spawn(
        [*command, "--project", BIGQUERY_PROJECT, "--data-dir", str(folder / "data")],
        log=emulators.log_of(folder),
        env=emulators.variables(environment),
    )


def answers(host: str, port: int) -> bool:
    """Whether the emulator answers there."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/bigquery/v2/projects/{BIGQUERY_PROJECT}/datasets", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
