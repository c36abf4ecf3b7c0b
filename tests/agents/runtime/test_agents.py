"""``@agent`` and what drives it: parameters, outputs, ids and keys, rejects, batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.errors import AgentCrashedError, AgentError, ConfigurationError, UnavailableError
from factory_agents.runtime.agents import AgentFunction, FunctionTransform, Output, Reject, agent, as_agent
from factory_agents.runtime.window import process


def messages(*events: object) -> list[Message]:
    return [Message(value=e if isinstance(e, bytes) or e is None else json.dumps(e).encode()) for e in events]


def plain(outputs: Sequence[Output]) -> list[Any]:
    """Values decoded, rejects by their rule."""
    return [json.loads(o) if isinstance(o, bytes) else o.rule if isinstance(o, Reject) else o for o in outputs]


def run(function: AgentFunction, *events: object, **params: Any) -> list[Any]:
    return plain(function.bind(params).process(messages(*events)))


class TestDecorator:
    def test_the_function_can_be_called_as_before(self) -> None:
        @agent
        def f(event: dict[str, Any]) -> dict[str, Any]:
            return event | {"a": 1}

        assert f({}) == {"a": 1}
        assert (f.name, f.batch, f.key, len(f.version)) == ("f", False, None, 12)

    def test_a_version_given_is_kept_and_a_bare_function_is_an_agent(self) -> None:
        assert agent(version="2", name="n")(lambda event: event).version == "2"
        assert as_agent(messages, "x").name == "messages"
        with pytest.raises(AgentError, match="x: expected a function or an @agent, got str"):
            as_agent("f", "x")


class TestParameters:
    @staticmethod
    @agent
    def f(event: dict[str, Any], limit: int, span: timedelta = timedelta(1), tag="t") -> dict[str, Any]:  # type: ignore[no-untyped-def]
        return event | {"limit": limit, "span": span.total_seconds(), "tag": tag}

    def test_they_are_converted_to_their_annotations_and_defaults_stand(self) -> None:
        assert run(self.f, {}, limit="5", span="PT1M") == [{"limit": 5, "span": 60, "tag": "t"}]

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({}, "parameter 'limit' is required"),
            ({"limit": 1, "limt": 2}, "unknown parameter 'limt'; did you mean 'limit'"),
            ({"limit": "x"}, "parameter 'limit': "),
            ({"limit": 1, "span": "soon"}, "parameter 'span': "),
        ],
    )
    def test_what_does_not_fit_names_the_parameter(self, params: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            self.f.bind(params)

    def test_a_function_that_takes_any_gets_all(self) -> None:
        @agent
        def f(event: dict[str, Any], **params: Any) -> dict[str, Any]:
            return event | params

        assert run(f, {}, a=1, b="x") == [{"a": 1, "b": "x"}]

    def test_two_sets_of_parameters_are_two_identities(self) -> None:
        assert self.f.bind({"limit": 1}).identity != self.f.bind({"limit": 2}).identity
        assert self.f.bind({"limit": "1"}).identity == self.f.bind({"limit": 1}).identity


class TestOutputs:
    def test_none_filters_and_several_of_one_id_get_numbers(self) -> None:
        @agent
        def f(event: dict[str, Any]) -> Any:
            return {0: None, 1: [event], 2: [event, dict(event), {"event_id": "own"}, {}], 3: []}[event["n"]]

        outputs = f.bind({}).process(messages(*({"event_id": "e", "n": n} for n in range(4))))
        assert outputs[0] is outputs[3] is None
        assert [json.loads(o)["event_id"] for o in outputs[1]] == ["e"]  # type: ignore[union-attr, arg-type]
        assert [json.loads(o).get("event_id") for o in outputs[2]] == ["e-1", "e-2", "own", "e-4"]  # type: ignore[union-attr, arg-type]

    @pytest.mark.parametrize("batch", [False, True])
    @pytest.mark.parametrize(
        ("ids", "expected"),
        [
            (["e/a", "e/b"], ["e/a", "e/b"]),
            ([1, 2.5, "x"], [1, 2.5, "x"]),
            (["same", "same"], ["same", "same"]),  # the agent says so
            (["e", "b"], ["e-1", "b"]),
            ([None, "b", "e"], ["e-1", "b", "e-3"]),
            (["e", "e-1", "e-4", None], ["e-5", "e-1", "e-4", "e-8"]),
        ],
    )
    def test_several_keep_ids_of_their_own(self, batch: bool, ids: list[Any], expected: list[Any]) -> None:
        several = [{"event_id": i, "n": n} for n, i in enumerate(ids)]
        f = agent(batch=True)(lambda events: [several]) if batch else agent(lambda event: several)
        (outputs,) = f.bind({}).process(messages({"event_id": "e"}))
        assert [json.loads(o)["event_id"] for o in outputs] == expected  # type: ignore[union-attr, arg-type]

    def test_several_of_an_event_without_an_id_stay_as_they_are(self) -> None:
        (outputs,) = agent(lambda event: [{"id": 1}, {"id": 2}]).bind({}).process(messages({"id": 7}))
        assert [json.loads(o) for o in outputs] == [{"id": 1}, {"id": 2}]  # type: ignore[union-attr, arg-type]

    def test_another_id_field_is_numbered_instead(self) -> None:
        @agent(id_field="id")
        def f(event: dict[str, Any]) -> Any:
            return [event, dict(event)]

        (outputs,) = f.bind({}).process(messages({"id": 7, "event_id": "e"}))
        assert [json.loads(o) for o in outputs] == [{"id": f"7-{n}", "event_id": "e"} for n in (1, 2)]  # type: ignore[union-attr, arg-type]

    def test_a_key_is_the_value_of_its_field(self) -> None:
        @agent(key="user")
        def f(event: dict[str, Any]) -> dict[str, Any]:
            return event

        outputs = f.bind({}).process(messages({"user": "é"}, {"user": 7}, {"user": None}, {}))
        assert [o[0] for o in outputs[:2]] == ["é".encode(), b"7"]  # type: ignore[index]
        assert [o.rule for o in outputs[2:] if isinstance(o, Reject)] == ["key", "key"]

    def test_what_is_no_event_is_rejected_and_so_is_what_the_function_refuses(self) -> None:
        @agent
        def f(event: dict[str, Any]) -> Any:
            if "no" in event:
                raise Reject("not wanted", rule="wanted")
            return event["give"]

        events = [b"{", b"[1]", None, b"\xff", {"no": 1}, {"give": 5}, {"give": {"ok": 1}}, {}, {"give": [1]}]
        assert run(f, *events) == ["decode"] * 4 + ["wanted", "agent-error", {"ok": 1}, "agent-error", "agent-error"]

    def test_the_reason_names_the_agent_and_the_error(self) -> None:
        @agent(name="divide")
        def f(event: dict[str, Any]) -> Any:
            return 1 / event["n"]

        (reject,) = f.bind({}).process(messages({"n": 0}))
        assert isinstance(reject, Reject)
        assert reject.reason == "divide raised ZeroDivisionError: division by zero"

    @pytest.mark.parametrize("batch", [False, True])
    def test_memory_that_is_out_is_no_event_of_its_own_fault(self, batch: bool) -> None:
        @agent(batch=batch)
        def f(event: Any) -> Any:
            raise MemoryError

        with pytest.raises(MemoryError):
            f.bind({}).process(messages({"n": 1}, {"n": 2}))
        with pytest.raises(AgentCrashedError, match=r"agent 'f', 2 records .*: out of memory.*a retry resumes") as caught:
            process(f.bind({}), messages({"n": 1}, {"n": 2}))
        assert caught.value.retriable


class TestBatch:
    @staticmethod
    def poisoned(calls: list[int]) -> AgentFunction:
        @agent(batch=True)
        def f(events: list[dict[str, Any]]) -> list[Any]:
            calls.append(len(events))
            for event in events:
                event["touched"] = event.get("touched", 0) + 1
                if event["n"] < 0:
                    raise ValueError(event["n"])
            return [Reject("odd", rule="odd") if e["n"] % 2 else e for e in events]

        return f

    @given(st.lists(st.integers(-3, 9) | st.just("bad"), max_size=40))
    def test_only_the_events_that_make_it_raise_are_rejected(self, numbers: list[Any]) -> None:
        events = [b"{" if n == "bad" else {"n": n} for n in numbers]
        expected = ["decode" if n == "bad" else "agent-error" if n < 0 else "odd" if n % 2 else {"n": n, "touched": 1} for n in numbers]
        assert run(self.poisoned([]), *events) == expected

    def test_one_call_suffices_where_none_raises(self) -> None:
        calls: list[int] = []
        run(self.poisoned(calls), *({"n": 2 * n} for n in range(100)))
        assert calls == [100]

    def test_one_poison_event_costs_calls_in_the_logarithm(self) -> None:
        calls: list[int] = []
        run(self.poisoned(calls), *({"n": -1 if n == 77 else 2 * n} for n in range(1024)))
        assert len(calls) <= 21

    def test_another_number_of_results_is_a_broken_agent(self) -> None:
        @agent(batch=True)
        def f(events: list[dict[str, Any]]) -> list[Any]:
            return events[1:]

        with pytest.raises(AgentError, match="a batch of 2 events must give 2 results, got 1"):
            run(f, {}, {})


class TestPrepare:
    @staticmethod
    def prepare(events: Sequence[dict[str, Any]]) -> list[dict[str, Any] | Reject]:
        return [Reject("two", rule="prepared") if event["n"] == 2 else event | {"prepared": True} for event in events]

    @pytest.mark.parametrize("batch", [False, True])
    def test_the_agent_sees_prepared_events_and_none_that_was_rejected(self, batch: bool) -> None:
        def one(event: Any) -> Any:
            return event

        transform = FunctionTransform(agent(batch=batch)(one), {}, prepare=self.prepare)
        assert plain(transform.process(messages({"n": 1}, b"x", {"n": 2}, {"n": 3}))) == [
            {"n": 1, "prepared": True}, "decode", "prepared", {"n": 3, "prepared": True},
        ]  # fmt: skip

    @pytest.mark.slow
    @pytest.mark.parametrize("batch", [False, True])
    @pytest.mark.parametrize("prepared", [False, True])
    def test_an_outage_goes_through(self, batch: bool, prepared: bool) -> None:
        @agent(batch=batch)
        def f(event: Any) -> Any:
            raise UnavailableError("down")

        with pytest.raises(UnavailableError):
            FunctionTransform(f, {}, prepare=list if prepared else None).process(messages({"n": 1}, {"n": 2}))
