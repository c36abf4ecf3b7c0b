"""The language model of a sandbox: SmolLM2, small enough for a laptop, behind OpenAI's API."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from pathlib import Path

from factory_agents.sandbox import emulators, private
from factory_agents.sandbox.processes import ProcessRecord, spawn
from factory_agents.sandbox.state import MODEL

SERVER = emulators.Emulator("model server", (3, 11))
_PROGRAM = Path(__file__).with_name("model_server.py")


def start(folder: Path, host: str, port: int, key: str, tell: Callable[[str], None]) -> ProcessRecord:
    """Begin to start the model, whose log is in ``folder``; ``key`` is what its clients have to give.

    Raises:
        ConfigurationError: there is no Python that it runs on.
        UnavailableError: its environment could not be built.
    """
    environment = SERVER.build(tell)
    private.tighten_all(private.folder(folder))
    return spawn(
        [str(environment / "bin" / "python"), "-I", str(_PROGRAM), host, str(port), MODEL],
        log=emulators.log_of(folder),
        env=emulators.variables(environment) | {"MODEL_KEY": key},
    )


def answers(host: str, port: int) -> bool:
    """Whether the model is loaded, and answers there."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
