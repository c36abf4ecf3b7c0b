"""A preview shows what would become of the records, or how far it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_factory.page.runs import PreviewRun
from airflow_provider_factory.page.views.preview import previews
from factory_agents.protocol import AgentResult, Counts, Reason, plain

CONF = {"topic": "raw", "contract": "contracts/events.yaml", "pipeline": "p"}
RESULT = plain(
    AgentResult(
        "p", "preview", "k", counts=Counts(consumed=4, forwarded=3, rejected=1), reasons=(Reason("price", "price < 0", 1, "raw-0@3"),)
    )
)


@pytest.mark.parametrize("value", [RESULT, json.dumps(RESULT)], ids=["an object", "its text"])
def test_what_would_become_of_the_records_adds_up(value: Any) -> None:
    (row,) = previews([PreviewRun("r", "success", CONF, value)], ["raw"])
    assert (row.chip, row.topic, row.tried, row.known, row.consumed) == ("whole", "raw", "contracts/events.yaml", True, 4)
    assert sum(p.count for p in row.parts) == 4
    assert "price" in " ".join(row.reasons)
    assert previews([PreviewRun("r", "success", CONF | {"stage": "enrich"}, value)], ["raw"])[0].tried == "enrich"


def test_records_of_another_topic_are_not_shown_whoever_tried_them() -> None:
    assert previews([PreviewRun("r", "success", CONF | {"topic": "payments"}, RESULT)], ["raw"]) == ()


@pytest.mark.parametrize(("state", "chip"), [("running", "running"), ("queued", "running"), ("failed", "failed")])
@pytest.mark.parametrize("value", [None, "{", {"counts": 7}, "null"])
def test_one_that_is_not_over_or_gave_no_result_says_only_how_far_it_is(state: str, chip: str, value: Any) -> None:
    (row,) = previews([PreviewRun("r", state, CONF, value)], ["raw"])
    assert (row.chip, row.known, row.parts) == (chip, False, ())
