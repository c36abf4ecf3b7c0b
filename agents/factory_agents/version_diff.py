"""What a new version of an agent does otherwise than the old one: both get the same records of one window, and nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.messages import Message
from factory_agents.protocol import AgentRef, Window
from factory_agents.reject import Reject
from factory_agents.run import build_transform
from factory_agents.runtime.agents import Output, Transform
from factory_agents.runtime.window import process
from factory_agents.text import printable, shortened
from factory_agents.trial import records_of

__all__ = ["Difference", "VersionDiff", "compare", "diff_versions"]

_EXAMPLES = 20
_LONGEST = 300
_UNSEEN = object()


@dataclass(frozen=True)
class Difference:
    """One event that the two versions handle otherwise: what became of it, and which fields differ."""

    where: str
    kind: str
    old: str
    new: str
    fields: tuple[str, ...] = ()


@dataclass
class VersionDiff:
    """Counts of events: ``same``, and those that differ by ``kinds`` (``changed``, or what became of an event: ``forwarded → filtered``).

    They add up to ``records``. ``fields`` counts the changed events by the fields that differ.
    """

    records: int = 0
    same: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    fields: dict[str, int] = field(default_factory=dict)
    examples: list[Difference] = field(default_factory=list)

    @property
    def different(self) -> int:
        """Events that the versions handle otherwise."""
        return sum(self.kinds.values())


def diff_versions(config: KafkaConfig, window: Window, old: str, new: str, *, ignore: Sequence[str] = (), codec: str = "") -> VersionDiff:
    """Run two agents (``module:function``) over a window and compare what they make of each event, but for fields to ``ignore``."""
    with closing(build_transform(AgentRef(old), {}, None)) as one, closing(build_transform(AgentRef(new), {}, None)) as other:
        return compare(one, other, records_of(config, window, codec), ignore=ignore)


def compare(old: Transform, new: Transform, batches: Iterable[Sequence[Message]], *, ignore: Sequence[str] = ()) -> VersionDiff:
    """See ``diff_versions``."""
    result = VersionDiff()
    kinds, names = Counter[str](), Counter[str]()
    ignored = frozenset(ignore)
    for messages in batches:
        if not messages:
            continue
        result.records += len(messages)
        for message, was, now in zip(messages, process(old, messages), process(new, messages), strict=True):
            found = _difference(was, now, ignored)
            if found is None:
                result.same += 1
                continue
            kind, fields = found
            kinds[kind] += 1
            names.update(fields)
            if len(result.examples) < _EXAMPLES:
                where = f"{message.topic()}-{message.partition()}@{message.offset()}"
                result.examples.append(Difference(where, kind, _shown(was), _shown(now), fields))
    result.kinds, result.fields = dict(kinds.most_common()), dict(names.most_common())
    return result


def _difference(old: Output, new: Output, ignored: frozenset[str]) -> tuple[str, tuple[str, ...]] | None:
    """What kind of difference it is and in which fields, or None."""
    was, now = _became(old), _became(new)
    if was != now:
        return f"{was} → {now}", ()
    if isinstance(old, Reject) and isinstance(new, Reject):
        return None if old.rule == new.rule else ("changed", ("(rule)",))
    if old == new:
        return None
    mine, theirs = _records(old), _records(new)
    if len(mine) != len(theirs):
        return "changed", ("(number of outputs)",)
    fields: set[str] = set()
    for (key, value), (other_key, other_value) in zip(mine, theirs, strict=True):
        if key != other_key:
            fields.add("(key)")
        fields.update(_fields(value, other_value))
    fields -= ignored
    return ("changed", tuple(sorted(fields))) if fields else None


def _became(output: Output) -> str:
    if output is None:
        return "filtered"
    return "rejected" if isinstance(output, Reject) else "forwarded"


def _records(output: Output) -> list[tuple[bytes | None, bytes]]:
    several = output if isinstance(output, list) else [output]
    return [record if isinstance(record, tuple) else (None, record) for record in several]  # type: ignore[misc]  # forwarded


def _fields(old: bytes, new: bytes) -> list[str]:
    """The fields that differ of two JSON objects; ``(value)`` where they aren't both objects."""
    if old == new:
        return []
    try:
        was, now = msgspec.json.decode(old), msgspec.json.decode(new)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ["(value)"]
    if not isinstance(was, dict) or not isinstance(now, dict):
        return [] if _same(was, now) else ["(value)"]
    return [name for name in was.keys() | now.keys() if not _same(was.get(name, _UNSEEN), now.get(name, _UNSEEN))]


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _shown(output: Output) -> str:
    if isinstance(output, Reject):
        return printable(shortened(f"{output.rule}: {output.reason}", _LONGEST))
    if output is None:
        return ""
    return printable(shortened(" ".join(value.decode(errors="replace") for _, value in _records(output)), _LONGEST))
