"""A real Kafka broker and a real PostgreSQL on this machine: no Docker, no root, loopback only.

Importing this costs nothing heavy; what the ``sandbox`` extra installs is imported when a part is started.
"""

from __future__ import annotations

from factory_agents.sandbox.sandbox import Sandbox
from factory_agents.sandbox.state import PartStatus, SandboxInfo, SandboxStatus, default_home, read_info

__all__ = ["PartStatus", "Sandbox", "SandboxInfo", "SandboxStatus", "default_home", "read_info"]
