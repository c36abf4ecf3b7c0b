"""What tests of your own sinks start from: a suite that tries whether a sink keeps the promises. Needs pytest."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("factory_agents.testing.conformance", "factory_agents.testing.deletes")

from factory_agents.testing.conformance import SinkConformance, SinkTarget  # noqa: E402
from factory_agents.testing.deletes import DeletesConformance  # noqa: E402

__all__ = ["DeletesConformance", "SinkConformance", "SinkTarget"]
