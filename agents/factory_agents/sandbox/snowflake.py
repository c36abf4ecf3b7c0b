"""The Snowflake emulator of a sandbox. It keeps its data in memory: they are gone when it ends."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from factory_agents.sandbox import emulators, private
from factory_agents.sandbox.processes import ProcessRecord, spawn

EMULATOR = emulators.Emulator("Snowflake emulator", (3, 11))
_SERVER = Path(__file__).with_name("snowflake_server.py")


def start(folder: Path, host: str, port: int, tell: Callable[[str], None]) -> ProcessRecord:
    """Begin to start the emulator, whose log and staged files are in ``folder``.

    Raises:
        ConfigurationError: there is no Python that it runs on.
        UnavailableError: its environment could not be built.
    """
    environment = EMULATOR.build(tell)
    private.tighten_all(private.folder(folder))
    files = private.folder(folder / "files")
    return spawn(
        [str(environment / "bin" / "python"), "-I", str(_SERVER), host, str(port)],  # its folder holds a module that is called snowflake
        log=emulators.log_of(folder),
        env=emulators.variables(environment) | {"TMPDIR": str(files)},
    )


def answers(host: str, port: int) -> bool:
    """Whether the emulator answers there."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/", timeout=5):
            return True
    except urllib.error.HTTPError:  # it serves nothing at its root
        return True
    except OSError:
        return False
