"""Checks a contract at the speed of one thread: the validate agent beside pydantic, jsonschema and a bare decoder, by CPU seconds.

With ``FACTORY_GX_PYTHON``, the Python of an environment that has great-expectations, beside that on a ready frame, too.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import jsonschema
import msgspec
import pydantic
from harness import ROOT, arguments, report, rounds, run_process

from factory_agents.contracts import load_contract
from factory_agents.protocol import AgentRef, AgentRun, Counts
from factory_agents.validate import ValidateTransform

CHUNK = 10_000
CONTRACT = ROOT / "include" / "contracts" / "events.yaml"
MORE_RULES = {
    "small_is_small": 'size_class != "small" or added + deleted < 10',
    "large_is_large": 'size_class != "large" or added + deleted >= 100',
    "known_repo": 'repo in ["fastavro", "msgspec", "librdkafka", "confluent-kafka-python"]',
    "id_begins_with_repo": "event_id.startswith(repo)",
    "id_ends_with_path": "event_id.endswith(path)",
    "short_path": "len(path) < 500",
    "not_ahead": "occurred_at < 1893456000",
    "full_commit": "len(commit) >= 7",
}
"""With the schema's nine fields and the contract's three rules: twenty."""


class Record(NamedTuple):
    """What the agent sees of a Kafka message."""

    data: bytes
    place: int

    def value(self) -> bytes:
        return self.data

    def topic(self) -> str:
        return "bench"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.place


def size_class(added: int | None, deleted: int | None) -> str:
    lines = None if added is None or deleted is None else added + deleted
    return "binary" if lines is None else "small" if lines < 10 else "medium" if lines < 100 else "large"


def records(count: int, bad_percent: int) -> list[Record]:
    """Real changes, each made new by its path; of a hundred, so many break the contract, each in one of four ways."""
    keeps = load_contract(CONTRACT).checker()
    changes = []
    for line in (ROOT / "include" / "data" / "changes.jsonl").read_bytes().splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError):  # some are broken, for the demo's sake
            event = json.loads(line)
            event["language"] = event["path"].rsplit(".", 1)[-1]
            event["size_class"] = size_class(event["added"], event["deleted"])
            if keeps(event):
                changes.append(event)
    found = []
    for i in range(count):
        event = dict(changes[i % len(changes)])
        event["path"] = f"{i}/{event['path']}"
        event["event_id"] = f"{event['repo']}:{event['commit']}:{event['path']}"
        if i % 100 < bad_percent:
            event |= ({"added": -1}, {"repo": 7}, {"occurred_at": "yesterday"}, {"size_class": "huge"})[i % 4]
        found.append(Record(msgspec.json.encode(event), i))
    return found


def by_hand(e: Mapping[str, Any], many: bool) -> bool:
    """The contract's rules as one writes them in Python."""
    added, deleted, size = e.get("added"), e.get("deleted"), e["size_class"]
    if e["event_id"] != f"{e['repo']}:{e['commit']}:{e['path']}" or (added is None) != (deleted is None):
        return False
    if (size == "binary") != (added is None):
        return False
    if not many:
        return True
    lines = 0 if added is None or deleted is None else added + deleted
    if (size == "small" and lines >= 10) or (size == "large" and lines < 100):
        return False
    if e["repo"] not in ("fastavro", "msgspec", "librdkafka", "confluent-kafka-python"):
        return False
    if not e["event_id"].startswith(e["repo"]) or not e["event_id"].endswith(e["path"]):
        return False
    return len(e["path"]) < 500 and e["occurred_at"] < 1893456000 and len(e["commit"]) >= 7


Contestant: TypeAlias = Callable[[list[Record]], int]
"""Says how many events are valid; what it takes to make one (a few milliseconds, once in an agent's life) is not measured."""


def ours(document: Mapping[str, Any]) -> Contestant:
    """The whole agent: decoding, schema, rules, times, nulls, duplicates, report."""
    agent = ValidateTransform(load_contract(document), AgentRun("bench", "validate", AgentRef("validate")))

    def count(events: list[Record]) -> int:
        valid = 0
        for i in range(0, len(events), CHUNK):
            valid += sum(type(output) is bytes for output in agent.process(events[i : i + CHUNK]))  # type: ignore[arg-type]
        agent.finish(Counts(consumed=len(events)))
        agent.close()
        return valid

    return count


def by_pydantic(many: bool, *, why: bool = False) -> Contestant:
    """A strict model from bytes, the rules in a validator; ``why``: with what each bad event breaks, as a dead letter needs it."""
    text = Annotated[str, pydantic.Field(min_length=1)]
    count = Annotated[int, pydantic.Field(ge=0)]

    class Event(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(strict=True)
        event_id: text  # type: ignore[valid-type]
        repo: text  # type: ignore[valid-type]
        commit: Annotated[str, pydantic.Field(pattern="^[0-9a-f]{7,40}$")]
        path: text  # type: ignore[valid-type]
        added: count | None = None  # type: ignore[valid-type]
        deleted: count | None = None  # type: ignore[valid-type]
        occurred_at: count  # type: ignore[valid-type]
        language: str
        size_class: Literal["binary", "small", "medium", "large"]

        @pydantic.model_validator(mode="after")
        def rules(self) -> Event:
            if not by_hand(self.__dict__, many):
                raise ValueError("a rule")
            return self

    def counted(events: list[Record]) -> int:
        valid = 0
        reasons: list[str] = []
        for event in events:
            try:
                Event.model_validate_json(event.value())
                valid += 1
            except pydantic.ValidationError as error:
                if why:
                    reasons.append("; ".join(f"{e['loc']}: {e['msg']}, got {e['input']!r:.60}" for e in error.errors(include_url=False)))
        return valid

    return counted


def by_jsonschema(schema: Mapping[str, Any], many: bool) -> Contestant:
    validator = jsonschema.Draft202012Validator(schema)
    decode = msgspec.json.Decoder().decode
    return lambda events: sum(validator.is_valid(e) and by_hand(e, many) for e in map(decode, (event.value() for event in events)))


def by_great_expectations(python: str, events: list[Record]) -> float:
    """Seconds of CPU, of all its threads, on a frame that is there already."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.writelines(event.value() + b"\n" for event in events)
        file.flush()
        cost = run_process([python, ROOT / "benchmarks" / "peers" / "gx_frame.py", file.name, str(len(events))])
    return float(json.loads(cost.output.strip().splitlines()[-1])["seconds"])


def decoded(events: list[Record]) -> int:
    decode = msgspec.json.Decoder().decode
    return sum(type(decode(event.value())) is dict for event in events)


def measured(contestant: Contestant, events: list[Record], expected: int) -> float:
    began = time.thread_time()
    valid = contestant(events)
    took = time.thread_time() - began
    if valid != expected:
        raise SystemExit(f"expected {expected} valid events, got {valid}")
    return took


def compare(title: str, document: Mapping[str, Any], events: list[Record], bad: int, options: Any) -> None:
    many, valid = len(document["rules"]) > 3, len(events) - bad
    few = events[: max(1, len(events) // 20)]
    few_valid = by_pydantic(many)(few)
    contestants = {
        "validate": lambda _: measured(ours(document), events, valid),
        "decoding alone": lambda _: measured(decoded, events, len(events)),
        "pydantic": lambda _: measured(by_pydantic(many), events, valid),
        "pydantic, saying why": lambda _: measured(by_pydantic(many, why=True), events, valid),
        "jsonschema": lambda _: 20 * measured(by_jsonschema(document["schema"], many), few, few_valid),
    }
    if python := os.environ.get("FACTORY_GX_PYTHON"):
        contestants["Great Expectations"] = lambda _: by_great_expectations(python, events)
    report(title, rounds(options.rounds, contestants), "validate", len(events), "events")


def main() -> None:
    options = arguments(__doc__ or "", events=100_000)
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as in an agent's process
    if options.smoke:
        options.events = 2_000
    import yaml

    document = yaml.safe_load(CONTRACT.read_text())
    twenty = document | {"rules": document["rules"] | MORE_RULES}
    for percent in (0, 1, 10):
        events = records(options.events, percent)
        bad = sum(i % 100 < percent for i in range(len(events)))
        compare(f"Validation, {percent} % bad", document, events, bad, options)
        compare(f"Validation with 20 rules, {percent} % bad", twenty, events, bad, options)
    print("seconds are this thread's, of the CPU", file=sys.stderr)


if __name__ == "__main__":
    main()
