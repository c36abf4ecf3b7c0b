"""What a window of events looks like as a whole: counted as it streams by, reported, and merged over shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from operator import methodcaller
from typing import Any

from factory_agents.contracts.conditions import check, parse_condition
from factory_agents.contracts.contract import Contract
from factory_agents.contracts.distinct import DistinctCounter
from factory_agents.contracts.documents import show
from factory_agents.contracts.drift import baselines
from factory_agents.contracts.sql import SQL_MEMORY_MB, WindowTable
from factory_agents.contracts.volumes import VolumeCounter
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import Interval
from factory_agents.text import printable

__all__ = ["WindowStatistics", "merge_reports"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SAMPLES = 5
_LAST = "\U0010ffff", 0, 0
"""Where no record is: after all others."""
_NOT_RUN = 20
_REASON = 200


def _of_dict(name: str) -> Callable[[Any], Any]:
    return methodcaller("get", name)


class WindowStatistics:
    """Counts over the events of one window, in bounded memory.

    ``interval`` is what late, early and fresh are relative to (never the clock). ``duplicates`` are valid events whose id an
    earlier valid one of this window (of this shard) had; without ``count_duplicates`` (a stream without an end) they are not
    known, and neither is what SQL would give, which takes at most ``sql_memory_mb`` of memory.
    ``keyed``: records' keys are looked at, whether they are the ids.
    """

    def __init__(
        self,
        contract: Contract,
        interval: Interval | None = None,
        *,
        count_duplicates: bool = True,
        keyed: bool = False,
        sql_memory_mb: int = SQL_MEMORY_MB,
    ) -> None:
        self._contract = contract
        self._interval = interval
        self._start = _microseconds(interval.start) if interval else None
        self._end = _microseconds(interval.end) if interval else None
        self._samples: list[dict[str, Any]] = []
        self._last_sample: tuple[str, int, int] = _LAST
        self._rules: dict[str, int] = dict.fromkeys((r.name for r in contract.rules), 0)
        self._rules |= {key.rule: 0 for key in contract.foreign_keys}
        self._nulls: dict[str, int] = dict.fromkeys(contract.nulls, 0)
        self._figures = [0 for _ in contract.figures]
        self._ids = DistinctCounter() if count_duplicates and contract.id is not None else None
        self._tuples = {fields: DistinctCounter() if count_duplicates else None for fields in contract.duplicates_of}
        self._volumes = {fields: VolumeCounter() if count_duplicates else None for fields in contract.volumes_of}
        self._history: dict[str, dict[str, Any]] = {}
        self._sql: WindowTable | None = None
        if count_duplicates and contract.queries:
            self._sql = contract.window_table()
            self._sql.open(sql_memory_mb)
        self._looks_at_keys, self._keyed = keyed, keyed
        self._first: int | None = None
        self._last: int | None = None
        self.valid = 0
        self.rejected = 0
        self._late = 0
        self._early = 0
        self._untimed = 0

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields whose values are read besides those of the contract's figures."""
        return () if self._sql is None else self._sql.columns

    @property
    def rows(self) -> int:
        """Events seen."""
        return self.valid + self.rejected

    def add_valid(
        self, events: Sequence[Any], reader: Callable[[str], Callable[[Any], Any]] = _of_dict, keys: Sequence[bytes | None] | None = None
    ) -> None:
        """Count a batch of valid events, of which ``reader`` of a field's name reads its value (None where it is missing).

        ``keys`` are those of their records: where each is its event's id, all events of an id are in one shard.
        """
        self.valid += len(events)
        for name in self._nulls:
            self._nulls[name] += list(map(reader(name), events)).count(None)
        for i, figure in enumerate(self._contract.figures):
            self._figures[i] += figure.count(map(reader(figure.field), events))
        for fields, counter in (*self._tuples.items(), *self._volumes.items()):
            if counter is not None:
                rows = zip(*(map(reader(name), events) for name in fields), strict=True)
                counter.add([repr(row) for row in rows if None not in row])
        if self._sql is not None:
            self._sql.add(events, reader)
        id_ = self._contract.id
        if self._ids is not None and id_ is not None:
            ids = list(map(reader(id_), events))
            self._ids.add([v if type(v) is str else ("", repr(v)) for v in ids if v is not None])
            if self._keyed and keys is not None:
                self._keyed = all(v is None or key == str(v).encode() for v, key in zip(ids, keys, strict=True))

    def add_times(self, times: Sequence[int | None]) -> None:
        """Count the times of a batch of valid events, in microseconds since 1970 UTC."""
        known = [t for t in times if t is not None]
        self._untimed += len(times) - len(known)
        if not known:
            return
        first, last = min(known), max(known)
        self._first = first if self._first is None else min(first, self._first)
        self._last = last if self._last is None else max(last, self._last)
        if self._start is not None and first < self._start:
            self._late += sum(t < self._start for t in known)
        if self._end is not None and last >= self._end:
            self._early += sum(t >= self._end for t in known)

    def add_rejected(self, rules: Iterable[str], reason: str, where: tuple[str, int, int]) -> None:
        """Count an event that broke ``rules``; ``where`` is its topic, partition and offset."""
        self.rejected += 1
        for rule in rules:
            self._rules[rule] = self._rules.get(rule, 0) + 1
        if where < self._last_sample:
            shown = printable(reason[: _REASON + 1])  # it quotes names of the event's fields
            short = shown if len(shown) <= _REASON else shown[: _REASON - 1] + "…"
            sample = dict(zip(("topic", "partition", "offset", "rules", "reason"), (*where, list(rules), short), strict=True))
            self._samples = _first_samples([*self._samples, sample])
            if len(self._samples) == _SAMPLES:
                self._last_sample = _coordinates(self._samples[-1])

    def compare(self, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Take the reports of the windows before this one, the newest last, for conditions on a drift."""
        self._history = baselines((*self._contract.fail_if, *self._contract.warn_if), earlier)

    def report(self) -> dict[str, Any]:
        """The report: JSON-able; shares are None where there is nothing to divide by, figures None where they can't be known.

        ``keyed`` names the id if records' keys are known to be ids. ``sql`` is what each query gives, ``sql_unknown`` why one can't be
        known. ``samples`` are the first rejected events by topic, partition and offset. ``checks`` are the contract's own conditions,
        applied.
        """
        contract, timed = self._contract, self._contract.time is not None
        windowed = timed and self._interval is not None
        return _complete(
            {
                "format": 1,
                "contract": {"name": contract.name, "version": contract.version, "digest": contract.digest},
                "rows": self.rows,
                "valid": self.valid,
                "rejected": self.rejected,
                "rules": self._rules,
                "nulls": self._nulls,
                "missing": self._counted(missing=True),
                "invalid": self._counted(missing=False),
                "duplicates": _repeated(self._ids),
                "duplicates_of": {", ".join(fields): _repeated(counter) for fields, counter in self._tuples.items()},
                **({"volumes": {", ".join(f): _volumes(counter) for f, counter in self._volumes.items()}} if self._volumes else {}),
                **self._answers(),
                **({"history": self._history} if self._history else {}),
                "late": self._late if windowed else None,
                "early": self._early if windowed else None,
                "untimed": self._untimed if timed else None,
                "first_event": _text(self._first),
                "last_event": _text(self._last),
                "window_start": _text(self._start),
                "window_end": _text(self._end),
                "samples": self._samples,
                "shards": 1,
                "keyed": contract.id if self._keyed else "" if self._looks_at_keys else None,
                "not_run": _few([*contract.not_run, *(self._sql.not_run if self._sql is not None else ())]),
            },
            [("fail", c.text) for c in contract.fail_if] + [("warn", c.text) for c in contract.warn_if],
        )

    def _answers(self) -> dict[str, Any]:
        """What SQL gives, and why where it isn't known."""
        queries = self._contract.queries
        if not queries:
            return {}
        answers = dict.fromkeys((q.name for q in queries), None) if self._sql is None else self._sql.answers()
        return {"sql": answers, "sql_unknown": {} if self._sql is None else dict(self._sql.unknown)}

    def _counted(self, *, missing: bool) -> dict[str, int]:
        return {f.name: n for f, n in zip(self._contract.figures, self._figures, strict=True) if f.missing is missing}

    def close(self) -> None:
        """Free memory and temporary files."""
        for counter in (self._ids, *self._tuples.values(), *self._volumes.values()):
            if counter is not None:
                counter.close()
        if self._sql is not None:
            self._sql.close()


def _keyed(parts: Sequence[str | None]) -> str | None:
    """The field by which all shards' records are keyed, "" where some aren't; None where nobody looked at keys."""
    return "" if "" in parts else None if None in parts else parts[0]


def merge_reports(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of a whole window from those of its shards: counts are summed, shares and checks are computed again.

    Only duplicates can differ from a report of the whole: two events with one id that fell into different shards are not seen
    as such (``shards`` says how many there were), unless records are ``keyed`` by it, so that all events of an id are in one shard.
    Raises ConfigurationError for no reports, or reports of different contracts or windows.
    """
    parts = list(reports)
    if not parts or not all(p and "checks" in p for p in parts):
        what = "the validation reports of all shards of a stage"
        raise ConfigurationError(f"expected {what}, got {show(parts)}; is the stage a validate agent, and did it run?")
    first = parts[0]
    for name in ("contract", "window_start", "window_end"):
        for part in parts:
            if part[name] != first[name]:
                what = f"{name} {show(first[name])} and {show(part[name])}"
                raise ConfigurationError(f"reports that differ in their {what} cannot be merged; clear the whole stage")
    merged: dict[str, Any] = {"format": 1, **{name: first[name] for name in ("contract", "window_start", "window_end")}}
    for name in ("rows", "valid", "rejected", "shards", "duplicates", "late", "early", "untimed"):
        counts = [p[name] for p in parts]
        merged[name] = None if None in counts else sum(counts)
    for name in ("rules", "nulls", "missing", "invalid", "duplicates_of"):
        merged[name] = _sum([p.get(name, {}) for p in parts])
    merged |= _of_all(parts)
    merged["keyed"] = _keyed([p.get("keyed") for p in parts])
    merged["not_run"] = first.get("not_run", [])
    merged["first_event"] = min((p["first_event"] for p in parts if p["first_event"]), default=None)
    merged["last_event"] = max((p["last_event"] for p in parts if p["last_event"]), default=None)
    merged["samples"] = _first_samples([s for p in parts for s in p["samples"]])
    return _complete(merged, [(c["level"], c["rule"]) for c in first["checks"]])


def _of_all(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is no count of a shard: events per key and SQL need the whole window in one; earlier windows and references are the same."""
    first = parts[0]
    merged: dict[str, Any] = _sql_of_all(parts) if "sql" in first else {}
    if "volumes" in first:
        merged["volumes"] = first["volumes"] if len(parts) == 1 else dict.fromkeys(first["volumes"])
    if history := next((p["history"] for p in parts if "history" in p), None):
        merged["history"] = history
    if "references" in first:
        merged["references"] = _references_of_all(parts)
    return merged


def _sql_of_all(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What SQL gave, of one shard; of several none can be told."""
    first = parts[0]
    if len(parts) == 1:
        return {"sql": first["sql"], "sql_unknown": first["sql_unknown"]}
    why = "SQL needs the whole window in one shard: plan it with shards=1"
    return {"sql": dict.fromkeys(first["sql"]), "sql_unknown": dict.fromkeys(first["sql"], why)}


def _references_of_all(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the references held; ``digest`` is empty where it changed between the shards."""
    merged = {}
    for name, facts in parts[0]["references"].items():
        same = all(part["references"][name]["digest"] == facts["digest"] for part in parts)
        merged[name] = {**facts, "digest": facts["digest"] if same else ""}
    return merged


def _few(texts: Sequence[str]) -> list[str]:
    more = len(texts) - _NOT_RUN
    return [*texts[:_NOT_RUN], *([f"and {more:,} more: factory contracts show lists them"] if more > 0 else [])]


def _volumes(counter: VolumeCounter | None) -> dict[str, int] | None:
    """The events per key; None where they were not counted."""
    return None if counter is None else counter.volumes()._asdict()


def _repeated(counter: DistinctCounter | None) -> int | None:
    """How many of the values came before; None where they were not counted."""
    return None if counter is None else counter.added - counter.count()


def _sum(counts: Sequence[Mapping[str, int | None]]) -> dict[str, int | None]:
    total: dict[str, int | None] = {}
    for part in counts:
        for name, count in part.items():
            known = total.get(name, 0)
            total[name] = None if count is None or known is None else known + count
    return total


def _complete(counts: dict[str, Any], conditions: Sequence[tuple[Any, str]]) -> dict[str, Any]:
    """Add what follows from the counts."""
    rows, valid = counts["rows"], counts["valid"]
    report = counts | {
        "rejected_rate": _rate(counts["rejected"], rows),
        "null_rates": {name: _rate(count, valid) for name, count in counts["nulls"].items()},
        "duplicate_rate": _rate(counts["duplicates"], valid),
        "late_rate": _rate(counts["late"], valid),
        "freshness_seconds": _freshness(counts["last_event"], counts["window_end"]),
    }
    report["checks"] = [check(report, parse_condition(text), level) for level, text in conditions]
    return report


def _rate(part: int | None, whole: int) -> float | None:
    return None if part is None or not whole else part / whole


def _freshness(last_event: str | None, window_end: str | None) -> float | None:
    """How long before the window's end its newest event happened; an event from beyond the end is fresh."""
    if last_event is None or window_end is None:
        return None
    return max(0.0, (datetime.fromisoformat(window_end) - datetime.fromisoformat(last_event)).total_seconds())


def _coordinates(sample: Mapping[str, Any]) -> tuple[str, int, int]:
    return sample["topic"], sample["partition"], sample["offset"]


def _first_samples(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=_coordinates)[:_SAMPLES]


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _text(microseconds: int | None) -> str | None:
    """ISO-8601 in UTC, always with microseconds: texts sort as their times do."""
    if microseconds is None:
        return None
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")
