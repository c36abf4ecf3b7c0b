"""What tests of your own sinks start from: a suite that tries whether a sink keeps the promises. Needs pytest."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("factory_agents.testing.conformance")

from factory_agents.testing.conformance import SinkConformance, SinkTarget  # noqa: E402

__all__ = ["SinkConformance", "SinkTarget"]
