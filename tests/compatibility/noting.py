"""Runs an agent, and notes what its fingerprint is made of in the file NOTED."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from factory_agents.run import main
from factory_agents.runtime import session

_digest = session.digest


def digest(value: Any) -> str:
    """As the real one, told on the way."""
    if isinstance(value, dict) and "agent" in value:
        with Path(os.environ["NOTED"]).open("a") as file:
            file.write(msgspec.json.encode(value, order="deterministic").decode() + "\n")
    return _digest(value)


if __name__ == "__main__":
    session.digest = digest
    sys.exit(main())
