"""Payloads: what goes in comes out, and what was meant for something else is refused as a failure."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from temporalio.api.common.v1 import Payload
from temporalio.exceptions import ApplicationError

from factory_agents.protocol import AgentResult, AgentRun, Interval
from factory_agents.temporal import protocol
from factory_agents.temporal.converter import data_converter
from factory_agents.temporal.protocol import PipelineRequest, PipelineSpec, Progress, SliceOutcome, StageSpec

converter = data_converter.payload_converter

REQUEST = PipelineRequest(
    PipelineSpec(pipeline="p", stages=(StageSpec(name="in", agent="ingest", params={"source": "x", "n": None}),)),
    Interval(datetime(2026, 11, 1, 4, tzinfo=UTC), datetime(2026, 11, 1, 5, tzinfo=UTC)),
)


def test_structs_are_plain_json_that_comes_back_as_it_was() -> None:
    (payload,) = converter.to_payloads([REQUEST])
    assert payload.metadata["encoding"] == b"json/plain"
    assert msgspec.json.decode(payload.data)["spec"]["pipeline"] == "p"
    assert converter.from_payloads([payload], [PipelineRequest]) == [REQUEST]


def test_the_sdks_own_values_pass_too() -> None:
    values = [None, b"\x00\xff", True, "text", {"a": [1, 2.5]}]
    assert converter.from_payloads(converter.to_payloads(values)) == values


@pytest.mark.parametrize("data", [b"{}", b'{"done": 1, "more": 2}', b'"text"', b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_such_payload_fails_for_good(data: bytes) -> None:
    with pytest.raises(ApplicationError, match="expected a payload of the type SliceOutcome") as raised:
        converter.from_payloads([Payload(metadata={"encoding": b"json/plain"}, data=data)], [SliceOutcome])
    assert raised.value.non_retryable
    assert raised.value.type == "UnreadablePayload"


@pytest.mark.parametrize("name", protocol.__all__)
def test_no_payload_is_read_as_another_ones_empty_form(name: str) -> None:
    kind = getattr(protocol, name)
    assert kind.__struct_config__.forbid_unknown_fields
    with pytest.raises(msgspec.ValidationError, match="missing required field"):
        msgspec.json.decode(b"{}", type=kind)


def test_an_old_workers_answer_is_refused() -> None:
    """What a worker of another release answers under the same activity's name."""
    (payload,) = converter.to_payloads([AgentResult("p", "s", "k")])
    with pytest.raises(ApplicationError, match="do client and workers run the same release"):
        converter.from_payloads([payload], [SliceOutcome])


def test_a_request_names_one_window() -> None:
    for broken in ({}, {"interval": REQUEST.interval, "key": "w"}):
        with pytest.raises(ValueError, match="expected an interval, or the name of a window"):
            PipelineRequest(REQUEST.spec, **broken)
    assert PipelineRequest(REQUEST.spec, key="w").window == "w"
    assert REQUEST.window == "2026-11-01T04:00:00.000Z/2026-11-01T05:00:00.000Z"
    assert Progress("w") == msgspec.json.decode(b'{"window": "w"}', type=Progress)
    assert AgentRun.__struct_config__.forbid_unknown_fields
