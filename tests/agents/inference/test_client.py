"""A model at an OpenAI-compatible endpoint, asked directly and through pydantic-ai: over HTTP, with whatever a server may answer."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.inference.client import ModelUnavailableError, open_client, refused
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.agents.inference.conftest import SCHEMA, MakeRun, asked
from tests.support.model_server import PAUSE, ModelServer
from tests.support.runs import Runs

pytestmark = pytest.mark.parametrize("model", ["m", "openai:m"], ids=["direct", "pydantic-ai"])
"""``openai:m`` at an endpoint goes through pydantic-ai and OpenAI's own client."""


class Scripted(ModelServer):
    """Answers what ``reply`` says: status, headers, body; None: as the stand-in does."""

    def __init__(self, reply: Callable[[str], tuple[int, str, dict[str, Any] | bytes] | None]) -> None:
        super().__init__()
        self._scripted = reply

    async def _reply(self, request: dict[str, Any]) -> tuple[int, str, dict[str, Any] | bytes]:
        said = self._scripted(str(request["messages"][-1]["content"]))
        if said is None:
            return await super()._reply(request)
        self.requests.append(request)
        return said


def about(text: str, *answer: Any) -> Callable[[str], Any]:
    return lambda question: answer if text in question else None


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "code": "x"}}


def says(**message: Any) -> dict[str, Any]:
    """A whole answer with such a message."""
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None, **message}}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


@pytest.mark.slow
def test_it_is_told_the_schema_and_the_parameters_and_what_it_took_is_counted(model: str) -> None:
    prompt = {"name": "kind@1.md", "text": "---\nsystem: You classify.\n---\nWhat kind is this? {{ text }}"}
    with ModelServer() as server:
        found = asked(server, 3, model=model, prompt=prompt, parameters={"temperature": 0, "max_tokens": 9})
        assert (found.forwarded, found.counts.asked) == (3, 3)
        assert (found.counts.prompt_tokens, found.counts.completion_tokens) == server.tokens
        request = server.requests[0]
    assert (request["model"], request["temperature"]) == ("m", 0)
    assert 9 in (request.get("max_tokens"), request.get("max_completion_tokens"))
    assert request["response_format"]["json_schema"]["schema"] == SCHEMA
    assert [m["role"] for m in request["messages"]] == ["system", "user"]
    assert request["messages"][0]["content"] == "You classify."


def test_faults_lose_nothing(runs: Runs, infer_run: MakeRun, model: str) -> None:
    with ModelServer(limited=0.1, failed=0.05, cut=0.05, hung=0.01) as server:
        run = infer_run(runs.filled(100), runs.topic("out"), server, model=model, repair=True, timeout=4, concurrency=16)
        result = execute(RunContext(runs.config), run)
        assert server.cut > 0
        assert (result.counts.forwarded, result.counts.rejected, result.counts.asked) == (100, 0, server.calls)
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(100))


@pytest.mark.slow
def test_a_pause_that_it_asks_for_is_kept(model: str) -> None:
    told: list[float] = []

    def first(_: str) -> Any:
        told.append(time.monotonic())
        return (429, "retry-after: 0.5\r\n", error("slow down")) if len(told) == 1 else None

    with Scripted(first) as server:
        found = asked(server, 1, model=model)
        assert len(told) == 2, "it is asked once more, by us and not by a client of somebody else's"
        assert server.calls == 1
    assert (found.forwarded, found.counts.asked) == (1, 1)
    assert told[1] - told[0] >= 0.5


@pytest.mark.slow
def test_a_pause_that_is_longer_than_patience_ends_the_attempt_after_few_calls(model: str) -> None:
    with Scripted(about("event", 429, "retry-after: 3600\r\n", error("come back tomorrow"))) as server:
        with pytest.raises(UnavailableError, match="asked for a pause of 3600 s"):
            asked(server, 20, model=model, patience=1)
        assert len(server.requests) <= 2 * 8


@pytest.mark.slow
def test_a_question_that_it_does_not_take_is_a_dead_letter(model: str) -> None:
    statuses = {1: 400, 2: 413, 3: 422}

    def refuses(question: str) -> Any:
        status = statuses.get(int(question.rpartition(" ")[2]))
        return status and (status, "", error("too long for me"))

    with Scripted(refuses) as server:
        found = asked(server, 5, model=model)
    assert found.forwarded == 2
    assert {n: reject.rule for n, reject in found.rejected.items()} == dict.fromkeys(statuses, "refused_by_model")
    assert all("too long for me" in reject.reason for reject in found.rejected.values())


@pytest.mark.slow
def test_what_it_refuses_to_say_is_a_dead_letter_with_its_words(model: str) -> None:
    said = {2: says(refusal="I cannot help with that"), 3: says(content="I cannot help with that")}

    def refuses(question: str) -> Any:
        words = said.get(int(question.rpartition(" ")[2]))
        return words and (200, "", words)

    with Scripted(refuses) as server:
        found = asked(server, 5, model=model, patience=5)
    assert found.forwarded == 3
    assert {n: reject.rule for n, reject in found.rejected.items()} == dict.fromkeys(said, "invalid_output")
    assert all("I cannot help with that" in reject.reason for reject in found.rejected.values())
    assert found.counts.asked == 5, "it was paid for"


def http(body: bytes, head: bytes = b"", status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return status + b"\r\ncontent-type: application/json\r\n" + (head or b"content-length: %d\r\n" % len(body)) + b"\r\n" + body


def usage(**tokens: Any) -> dict[str, Any]:
    return says(content='{"label": "odd"}') | {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2} | tokens}


DEEP = "[" * 10_000 + "]" * 10_000
GOOD = json.dumps(says(content='{"label": "odd"}')).encode()
ANSWERS: dict[str, tuple[Any, str]] = {
    "nothing": (says(content=""), "invalid_output"),
    "null": (says(content=None), "invalid_output"),
    "a tool's call": (
        says(tool_calls=[{"id": "1", "type": "function", "function": {"name": "rm", "arguments": "{}"}}]),
        "invalid_output",
    ),
    "nested": (says(content=f'{{"label": {DEEP}}}'), "invalid_output"),
    "no number": (says(content='{"label": NaN}'), "invalid_output"),
    "of another type": (says(content='{"label": 7}'), "invalid_output"),
    "a list": (says(content='["odd"]'), "invalid_output"),
    "two": (says(content='{"label": "odd"} {"label": "even"}'), "invalid_output"),
    "half a letter": (says(content='{"label": "\ud800"}'), "invalid_output"),
    "doubled keys": (says(content='{"label": 1, "label": "odd"}'), ""),
    "fenced": (says(content='```json\n{"label": "odd"}\n```'), ""),
    "fenced longer": (says(content='````json\n{"label": "odd"}\n````'), ""),
    "fenced at its start": (says(content='```json\n{"label": "odd"}'), ""),
    "nothing in a fence": (says(content="```json\n```"), "invalid_output"),
    "tokens below zero": (usage(prompt_tokens=-1_000_000), ""),
    "tokens without end": (usage(prompt_tokens=10**30), "unavailable"),
    "tokens in words": (usage(prompt_tokens="many"), "unavailable"),
    "no tokens": (usage(prompt_tokens=None, completion_tokens=None), ""),
    "a page": (http(b"<html>Please log in</html>"), "unavailable"),
    "an empty body": (http(b""), "unavailable"),
    "nested all over": (http(DEEP.encode()), "unavailable"),
    "nested beside": (http(GOOD[:-1] + b', "x": ' + DEEP.encode() + b"}"), "unavailable"),
    "no text": (http(b"\xff\xfe\x00"), "unavailable"),
    "cut in the body": (http(GOOD[:50], b"content-length: %d\r\n" % len(GOOD)), "unavailable"),
    "cut in the head": (b"HTTP/1.1 200 OK\r\ncontent-le", "unavailable"),
    "nothing at all": (b"", "unavailable"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "unavailable"),
    "a length below zero": (http(GOOD, b"content-length: -1\r\n"), "unavailable"),
    "a chunk of no size": (http(b"zz\r\nx\r\n", b"transfer-encoding: chunked\r\n"), "unavailable"),
    "wait, for ever": (b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000, "unavailable"),
    "without a length, in parts": (http(GOOD[:40] + PAUSE + GOOD[40:], b"connection: close\r\n"), ""),
    "a trickle": (http(GOOD[:9] + PAUSE * 40, b"content-length: 4000\r\n"), "unavailable"),
}
"""Hostile answers, and by which rule the event is rejected; empty: it isn't."""


@pytest.mark.slow
def test_hostile_answers_cost_their_own_events_at_most(model: str) -> None:
    cases = {name: case for name, case in ANSWERS.items() if case[1] != "unavailable"}
    answers = [answer for answer, _ in cases.values()]

    def scripted(question: str) -> Any:
        number = int(question.rpartition(" ")[2]) if "event" in question else len(answers)
        return (200, "", answers[number]) if number < len(answers) else None

    with Scripted(scripted) as server:
        found = asked(server, len(cases) + 20, model=model, budget={"window_tokens": 10**6}, retries=0)
    expected = {name: rule for name, (_, rule) in cases.items()}
    if model != "m":
        expected["no tokens"] = "unavailable"  # pydantic-ai wants a count
    rules = {n: reject.rule for n, reject in found.rejected.items()}
    assert {name: rules.get(n, "") for n, name in enumerate(cases)} == expected
    assert found.forwarded == len(cases) + 20 - len(rules)
    assert found.counts.prompt_tokens >= 20 * 20


@pytest.mark.parametrize("name", [name for name, (_, rule) in ANSWERS.items() if rule == "unavailable"])
def test_what_is_no_answer_is_an_outage_and_no_events_fault(model: str, name: str) -> None:
    async def ask(url: str) -> None:
        client = open_client(model, endpoint=url, key_variable="NONE", schema=SCHEMA, settings={}, timeout=1)
        try:
            async with asyncio.timeout(0.3 if name == "a trickle" else 5):
                await client.ask("", ["event"])
        finally:
            await client.close()

    with Scripted(about("event", 200, "", ANSWERS[name][0])) as server, pytest.raises((ModelUnavailableError, TimeoutError)):
        asyncio.run(ask(server.url))


@pytest.mark.slow
def test_an_event_whose_answer_is_none_is_bad_by_itself(model: str) -> None:
    with Scripted(about("event 2", 200, "", ANSWERS["a page"][0])) as server:
        found = asked(server, 5, model=model, retries=0)
    assert {n: reject.rule for n, reject in found.rejected.items()} == {2: "unavailable"}


def test_another_address_gets_neither_key_nor_data(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_MODEL_API_KEY", "sk-secret-123")
    with ModelServer() as other:
        location = f"location: {other.url}/chat/completions\r\n"
        for status in (301, 302, 307, 308):
            with Scripted(about("event", status, location, {})) as server, pytest.raises(ConfigurationError, match="another address"):
                asked(server, 2, model=model)
        assert other.requests == []


def test_what_no_other_question_mends_ends_the_attempt_without_its_key(
    model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FACTORY_MODEL_API_KEY", "sk-secret-123")
    caplog.set_level(logging.DEBUG)
    for status in (401, 403, 404):
        with Scripted(about("event", status, "", error("no"))) as server, pytest.raises(ConfigurationError, match=f"{status}") as raised:
            asked(server, 2, model=model)
        assert "sk-secret" not in str(raised.value) + caplog.text


def test_a_key_from_a_file_may_end_its_line_and_one_that_no_header_holds_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelServer() as server:
        monkeypatch.setenv("FACTORY_MODEL_API_KEY", " sk-secret-123\n")
        assert asked(server, 2, model=model).forwarded == 2
        for key in ("sk-secret\r\nx: y", "sk-secret\x00", "sk-secr\u00e9t"):
            monkeypatch.setattr("os.environ", {**os.environ, "FACTORY_MODEL_API_KEY": key})
            with pytest.raises(ConfigurationError, match="FACTORY_MODEL_API_KEY: a key is one line") as raised:
                asked(server, 2, model=model)
            assert "secr" not in str(raised.value)


def test_a_huge_answer_is_no_huge_dead_letter(model: str) -> None:
    with Scripted(about("event 2", 200, "", says(content="\x01💥" * 500_000))) as server:
        found = asked(server, 5, model=model)
    assert found.forwarded == 4
    (reject,) = found.rejected.values()
    assert reject.rule == "invalid_output"
    assert len(reject.reason) < 101_000


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("7", 7), ("", 1), ("soon", 1), ("-3", 0), ("nan", 1), ("1e99", 3600), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)
def test_a_pause_is_a_number_or_a_date_and_never_for_ever(model: str, retry_after: str, seconds: float) -> None:
    limited = refused(model, 429, retry_after, "x")
    assert getattr(limited, "seconds", None) == seconds
