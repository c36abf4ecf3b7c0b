"""Judges an agent before it ships: over golden events, whose outputs are known, and two of its variants over one window side by side."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import msgspec

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.messages import Message
from factory_agents.paths import resolve_path
from factory_agents.protocol import AgentRef, AgentResult, Counts, merge_results
from factory_agents.reject import Reject
from factory_agents.run import build_transform
from factory_agents.runtime.agents import Output
from factory_agents.runtime.dependencies import InterruptedBatchError
from factory_agents.trial import records_of

__all__ = ["Difference", "Evaluation", "FieldScore", "Limits", "compare_results", "evaluate", "read_golden"]

_AT_ONCE = 500
_EXAMPLES = 5
_PATIENCE = 120.0


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a golden file: an event, and what the agent has to make of it, field by field (other fields don't matter)."""

    event: dict[str, Any]
    expected: dict[str, Any]


class FieldScore(msgspec.Struct, frozen=True):
    """How often one field of the output was as expected."""

    field: str
    right: int
    of: int

    @property
    def accuracy(self) -> float:
        """The share of right ones."""
        return self.right / self.of if self.of else 1.0


class Wrong(msgspec.Struct, frozen=True):
    """One output that isn't as expected: the golden file's line, the field (or the rule that rejected the event), both values."""

    line: int
    field: str
    expected: Any
    got: Any


class Evaluation(msgspec.Struct, frozen=True):
    """What an agent made of golden events. ``rejected`` is by rule; ``p50`` and ``p95`` are seconds of one call of a model."""

    agent: str
    version: str
    events: int
    accuracy: float
    fields: tuple[FieldScore, ...]
    rejected: dict[str, int]
    asked: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    p50: float
    p95: float
    examples: tuple[Wrong, ...] = ()

    @property
    def invalid_rate(self) -> float:
        """The share of events that were rejected."""
        return sum(self.rejected.values()) / self.events if self.events else 0.0


class Limits(msgspec.Struct, frozen=True):
    """What an evaluation has to reach; ``accuracy`` by field, ``*`` for all of them together."""

    accuracy: Mapping[str, float] = {}
    max_invalid: float = 1.0
    max_p95: float = 0.0
    max_cost: float = 0.0

    def broken(self, found: Evaluation) -> list[str]:
        """Each limit that isn't kept, for a person."""
        scores = {score.field: score.accuracy for score in found.fields} | {"*": found.accuracy}
        lines = []
        for name, least in self.accuracy.items():
            if name not in scores:
                raise ConfigurationError(
                    f"--min-accuracy {name}: the golden file expects nothing of this field; it has {', '.join(scores)}"
                )
            if scores[name] < least:
                lines.append(f"accuracy({name}) is {scores[name]:.1%}, below {least:.1%}")
        if found.invalid_rate > self.max_invalid:
            lines.append(f"{found.invalid_rate:.1%} of the events were rejected, above {self.max_invalid:.1%}")
        if self.max_p95 and found.p95 > self.max_p95:
            lines.append(f"p95 of a call is {found.p95:.2f} s, above {self.max_p95:g} s")
        if self.max_cost and found.cost > self.max_cost:
            lines.append(f"it cost {found.cost:g}, above {self.max_cost:g}")
        return lines


@dataclass(frozen=True, slots=True)
class _Record:
    """A golden event, as a record."""

    file: str
    line: int
    text: bytes
    expected: dict[str, Any]

    def value(self) -> bytes:
        return self.text

    def key(self) -> None:
        return None

    def topic(self) -> str:
        return self.file

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.line


def read_golden(path: str) -> list[_Record]:
    """A golden file: JSON lines with ``event`` and ``expected``. Raises ConfigurationError with the line that is none."""
    records = []
    for number, line in enumerate(resolve_path(path, "golden file").read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            golden = msgspec.json.decode(line, type=Golden)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(f'{path}:{number}: expected {{"event": …, "expected": …}}: {error}') from None
        records.append(_Record(path, number, msgspec.json.encode(golden.event), dict(_flat(golden.expected))))
    if not records:
        raise ConfigurationError(f"golden file {path!r}: it holds no events")
    return records


def evaluate(agent: str, params: Mapping[str, Any], golden: Sequence[_Record]) -> Evaluation:
    """Run an agent over golden events and compare. A model is asked about each of them; nothing is read from a log or written.

    Raises what the agent raises for its parameters, and where its model is away.
    """
    transform: Any = build_transform(AgentRef(agent), dict(params), None)
    counts, outputs = Counts(), list[Output]()
    with closing(transform):
        rest = iter(golden)
        while batch := list(islice(rest, _AT_ONCE)):
            outputs += _outputs(transform, cast("Sequence[Message]", batch))
        side = getattr(transform, "log", None)
        if side is not None:
            side.take(counts)
        seconds = sorted(getattr(transform, "seconds", ()))
    scores, rejected, wrong = _score(golden, outputs)
    right, of = sum(score.right for score in scores), sum(score.of for score in scores)
    return Evaluation(
        agent=transform.name,
        version=transform.version,
        events=len(golden),
        accuracy=right / of if of else 1.0,
        fields=scores,
        rejected=rejected,
        asked=counts.asked,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        cost=counts.cost,
        p50=_quantile(seconds, 0.5),
        p95=_quantile(seconds, 0.95),
        examples=tuple(wrong[:_EXAMPLES]),
    )


def _outputs(transform: Any, messages: Sequence[Message]) -> list[Output]:
    """What becomes of the events; where something that the agent calls is down, it is waited for, for a while."""
    outputs: list[Output] = []
    until = time.monotonic() + _PATIENCE
    while len(outputs) < len(messages):
        try:
            outputs += transform.process(messages[len(outputs) :])
        except InterruptedBatchError as interrupted:
            if time.monotonic() > until:
                raise
            outputs += interrupted.outputs
            time.sleep(interrupted.seconds)
    return outputs


def _score(golden: Sequence[_Record], outputs: Sequence[Output]) -> tuple[tuple[FieldScore, ...], dict[str, int], list[Wrong]]:
    """An event that was rejected, or gave nothing, is wrong in every field."""
    right: Counter[str] = Counter()
    of: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    wrong: list[Wrong] = []
    for record, output in zip(golden, outputs, strict=True):
        got = {} if isinstance(output, Reject) else _fields_of(output)
        if isinstance(output, Reject):
            rejected[output.rule] += 1
            wrong.append(Wrong(record.line, output.rule, record.expected, output.reason))
        for name, expected in record.expected.items():
            of[name] += 1
            if name in got and got[name] == expected:
                right[name] += 1
            elif not isinstance(output, Reject):
                wrong.append(Wrong(record.line, name, expected, got.get(name)))
    return tuple(FieldScore(name, right[name], n) for name, n in of.items()), dict(rejected), wrong


def _fields_of(output: Output) -> dict[str, Any]:
    """The fields of the first event that came out, by their dotted names."""
    first = output[0] if isinstance(output, list) and output else output
    value = first[1] if isinstance(first, tuple) else first
    event = msgspec.json.decode(value) if isinstance(value, bytes) else {}
    return dict(_flat(event)) if isinstance(event, dict) else {}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _quantile(values: Sequence[float], share: float) -> float:
    return round(values[min(len(values) - 1, int(len(values) * share))], 4) if values else 0.0


class Difference(msgspec.Struct, frozen=True):
    """Two results over the same window, side by side: events in both, in one alone, and how many differ, by field."""

    both: int
    only_first: int
    only_second: int
    fields: dict[str, int]
    counts: tuple[dict[str, int], dict[str, int]]
    cost: tuple[float, float]
    examples: tuple[Wrong, ...] = ()


def compare_results(config: KafkaConfig, first: Sequence[AgentResult], second: Sequence[AgentResult], id_field: str) -> Difference:
    """What two stages made of the same records; events are matched by their id.

    Raises WindowError for results that are no complete sets, ConfigurationError for those of different input.
    """
    if _inputs(first) != _inputs(second):
        raise ConfigurationError("the results are not of the same records: run both over one window (the same --since and --until)")
    events = [_events(config, results, id_field) for results in (first, second)]
    fields: Counter[str] = Counter()
    examples: list[Wrong] = []
    both = events[0].keys() & events[1].keys()
    for n, key in enumerate(sorted(both, key=str)):
        one, other = events[0][key], events[1][key]
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                fields[name] += 1
                if len(examples) < _EXAMPLES:
                    examples.append(Wrong(n, f"{key}: {name}", one.get(name), other.get(name)))
    counts = [_sum(results) for results in (first, second)]
    return Difference(
        len(both),
        len(events[0].keys() - both),
        len(events[1].keys() - both),
        dict(fields.most_common()),
        (counts[0].told(), counts[1].told()),
        (counts[0].cost, counts[1].cost),
        tuple(examples),
    )


def _inputs(results: Sequence[AgentResult]) -> list[Any]:
    return sorted((r.topic_id, part.partition, part.start, part.end) for x in results if (r := x.input) is not None for part in r.ranges)


def _sum(results: Sequence[AgentResult]) -> Counts:
    counts = Counts()
    for result in results:
        counts.add(result.counts)
    return counts


def _events(config: KafkaConfig, results: Sequence[AgentResult], id_field: str) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for batch in records_of(config, merge_results(results)):
        for message in batch:
            fields = dict(_flat(msgspec.json.decode(message.value() or b"{}")))
            found[fields.get(id_field, f"{message.partition()}@{message.offset()}")] = fields
    return found
