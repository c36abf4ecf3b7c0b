"""Every metric is declared once, and the page says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory_agents.telemetry.metrics import FAMILIES, encoder

PAGE = Path(__file__).resolve().parents[3] / "docs/telemetry.md"


def test_the_page_lists_every_metric_as_it_is_declared() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(("| `agent_", "| `factory_", "| `kafka_"))]
    assert rows == [f"| `{of.name}` | {of.kind} | {', '.join(of.labels)} | {of.help} |" for of in FAMILIES.values()]


@pytest.mark.parametrize(
    "accept", ["", "text/plain", "application/openmetrics-text;version=1.0.0", "application/openmetrics-text; version=abc"]
)
def test_every_metric_can_be_told_in_each_format(accept: str) -> None:
    encode, _ = encoder(accept)
    hostile = 'a"b\\c\nd'
    text = encode({(of.name, (hostile,) * len(of.labels)): (1.0,) * of.width for of in FAMILIES.values()}).decode()
    for of in FAMILIES.values():
        assert f"# TYPE {of.name.removesuffix('_total')}" in text
    assert 'a\\"b\\\\c\\nd' in text


def test_a_histograms_buckets_are_told_added_up() -> None:
    (of,) = [of for of in FAMILIES.values() if of.name == "factory_run_seconds"]
    encode, _ = encoder("")
    text = encode({(of.name, ("a", "p", "s")): (1.0, 2.0, *[0.0] * (of.width - 4), 3.0, 99.5)}).decode()
    assert 'factory_run_seconds_bucket{agent="a",le="1.0",pipeline="p",stage="s"} 3.0' in text
    assert 'factory_run_seconds_count{agent="a",pipeline="p",stage="s"} 6.0' in text
    assert 'factory_run_seconds_sum{agent="a",pipeline="p",stage="s"} 99.5' in text
