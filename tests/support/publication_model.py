"""Histories of publications for hypothesis, and the model of what they leave."""

from __future__ import annotations

from hypothesis import strategies as st

from factory_agents.testing.model import Model
from factory_agents.testing.records import W1, W2, W3, event

__all__ = ["EVENTS", "PUBLICATIONS", "Model"]

EVENTS = st.builds(
    event,
    st.sampled_from("abcdef"),
    st.text("xyz", max_size=2),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([None, "2026-11-01T00:00:00Z", "2026-11-01T00:30:00Z"]),
)
PUBLICATIONS = st.tuples(
    st.sampled_from([W1, W2, W3]),
    st.integers(1, 3).flatmap(lambda of: st.tuples(st.integers(0, of - 1), st.just(of))),
    st.integers(1, 3),
    st.lists(st.tuples(EVENTS, st.integers(0, 1), st.integers(0, 2)), max_size=8),
)
