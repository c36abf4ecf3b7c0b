"""A small pipeline, ingest → enrich → validate → publish, whose every attempt may be killed, stopped or left behind as a zombie."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Interval, Order, Shard, Window, merge_results, shard_window
from tests.chaos.agents import enrich
from tests.support.runs import Attempt, Rec, Runs

HOUR = msgspec.convert({"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T01:00:00Z"}, Interval)
STAGES = ("ingest", "enrich", "validate", "publish")
_PARTITIONS = 3
_MOST_ATTEMPTS = 30
_LONGEST_LIFE = 1.5
"""Seconds: about what an attempt takes on a busy machine."""

_CONTRACT: dict[str, Any] = {
    "name": "numbers",
    "version": 1,
    "id": "event_id",
    "time": "at",
    "time_unit": "s",
    "schema": {
        "type": "object",
        "required": ["event_id", "n", "at", "text", "size"],
        "properties": {
            "event_id": {"type": "string"},
            "n": {"type": "integer", "maximum": 10_000},
            "at": {"type": "integer"},
            "text": {"type": "string"},
            "size": {"enum": ["small", "large"]},
        },
    },
    "rules": {"not_unlucky": "n % 29 != 11"},
}

_SESSION = ["start.after-init", "chunk.before-ledger", "chunk.before-commit", "chunk.after-commit"]
POINTS = {
    "ingest": [*_SESSION, "chunk.after-produce"],
    "enrich": [*_SESSION, "chunk.after-read", "chunk.after-produce"],
    "validate": [*_SESSION, "chunk.after-read", "chunk.after-produce"],
    "publish": [
        *_SESSION,
        "sink.before-commit",
        "sink.after-commit",
        "postgres.claimed",
        "postgres.copying",
        "postgres.before-merge",
        "postgres.before-commit",
        "postgres.committed",
    ],
}
"""The failpoints that an attempt at each stage may pass."""


@dataclass
class Tally:
    """What a round did to its attempts, and the story of it for a failure's message."""

    kills: int = 0
    zombies: int = 0
    attempts: int = 0
    story: list[str] = field(default_factory=list)

    def tell(self, line: str) -> None:
        self.story.append(line)


@dataclass(frozen=True)
class Expected:
    """What one look at the source says must be where, without agents, windows or retries."""

    ingested: list[dict[str, Any]]
    enriched: list[dict[str, Any]]
    valid: list[dict[str, Any]]
    dead: dict[str, int]

    @classmethod
    def of(cls, good: list[dict[str, Any]], malformed: int) -> Expected:
        enriched: list[dict[str, Any]] = []
        unlucky = 0
        for event in good:
            try:
                outcome = enrich(event)
            except Exception:
                unlucky += 1
                continue
            if isinstance(outcome, list):
                enriched += [e | {"event_id": f"{e['event_id']}-{n}"} for n, e in enumerate(outcome, 1)]
            elif outcome is not None:
                enriched.append(outcome)
        valid = [e for e in enriched if e["n"] % 29 != 11]
        return cls(good, enriched, valid, {"ingest": malformed, "enrich": unlucky, "validate": len(enriched) - len(valid)})


class Pipeline:
    """One hour of one pipeline, run stage by stage as an orchestrator would, while ``rng`` disturbs it."""

    def __init__(self, runs: Runs, database_url: str, folder: Path, rng: random.Random) -> None:
        self.runs, self.rng, self.tally = runs, rng, Tally()
        self.database_url = database_url
        self.table = f"t_{runs.prefix.replace('-', '_')}"
        self.source = folder / "events.jsonl"
        self.expected = self._fill(rng.choice([60, 150, 400]))
        self.topics = {s: runs.topic(s, partitions=_PARTITIONS) for s in STAGES[:-1]}
        self.shards = rng.choice([1, 2])
        self.chunk = rng.choice([7, 25, 100])
        self.clears = 0
        self.results: dict[str, list[AgentResult]] = {}
        self.tally.tell(f"{len(self.expected.ingested)} events, {self.shards} shards, chunks of {self.chunk}")

    def _fill(self, count: int) -> Expected:
        start = HOUR.start_ms // 1000
        good = [{"event_id": f"e{n}", "n": n, "at": start + n % 3600, "text": f"event {n} ✓"} for n in range(count)]
        lines = [json.dumps(event) for event in good]
        malformed = self.rng.randint(0, 3)
        for n in range(malformed):
            lines.insert(self.rng.randint(1, len(lines)), '{"event_id": broken' + "x" * n)
        self.source.write_text("\n".join(lines) + "\n")
        return Expected.of(good, malformed)

    # Running

    def run(self, kills: int) -> None:
        """All stages, disturbed; then, cleared at a random stage, again, until ``kills`` attempts have been killed."""
        first = 0
        while True:
            for stage in STAGES[first:]:
                self._stage(stage)
            self.check()
            if self.tally.kills >= kills:
                return
            first = self.rng.randrange(len(STAGES))
            self.clears += 1
            self.tally.tell(f"cleared from {STAGES[first]} on")

    def _stage(self, stage: str) -> None:
        work = self._work(stage)
        self.results[stage] = [self._finish(stage, run) for run in work]

    def _work(self, stage: str) -> list[AgentRun]:
        """What the orchestrator asks for: one run a shard."""
        refs = {"enrich": AgentRef("tests.chaos.agents:enrich")}
        params: dict[str, dict[str, Any]] = {
            "ingest": {"source": str(self.source), "time_field": "at"},
            "validate": {"contract": _CONTRACT},
            "publish": {"contract": _CONTRACT, "table": self.table},
        }
        run = AgentRun(
            self.runs.prefix,
            stage,
            refs.get(stage, AgentRef(stage)),
            params=params.get(stage, {}),
            interval=HOUR if stage == "ingest" else None,
            output_topic=self.topics.get(stage, ""),
            prefix=self.runs.prefix,
            chunk_records=self.chunk,
            order=Order("run", tries=self.clears, clears=self.clears),
            max_rejected="100 %",
        )
        if stage == "ingest":
            return [run]
        window = merge_results(self.results[STAGES[STAGES.index(stage) - 1]])
        windows: Sequence[Window] = shard_window(window, self.shards) if stage == "enrich" else [window]
        of = len(windows)
        return [msgspec.structs.replace(run, window=w, shard=Shard(i, of)) for i, w in enumerate(windows)]

    def _attempt(self, run: AgentRun, failpoints: str = "") -> Attempt:
        self.tally.attempts += 1
        return self.runs.attempt(run, failpoints, secrets={"DATABASE_URL": self.database_url})

    def _finish(self, stage: str, run: AgentRun) -> AgentResult:
        """Disturbed attempts, some of them left as zombies that wake up at a time of their own; then attempts until one succeeds."""
        zombies: list[Attempt] = []
        for _ in range(self.rng.randint(1, 3)):
            attempt = self.rng.choice([self._killed_at_point, self._killed_at_point, self._killed_any_time, self._stopped])(stage, run)
            if attempt.process.poll() is None:
                zombies.append(attempt)
            if zombies and self.rng.random() < 0.4:
                self._wake(zombies.pop(0))
        for _ in range(_MOST_ATTEMPTS):
            attempt = self._attempt(run)
            while zombies and self.rng.random() < 0.7:  # some meet the attempt that is to succeed
                self._wake(zombies.pop(0))
            if attempt.wait() == 0:
                break
            assert attempt.process.returncode == 75, self._failed(attempt)
            self.tally.tell(f"{stage} {run.shard.key}: fenced, tried again")
        else:
            raise AssertionError(self._failed(attempt))
        for zombie in zombies:
            self._wake(zombie)
        return attempt.result

    def _killed_at_point(self, stage: str, run: AgentRun) -> Attempt:
        point = f"{self.rng.choice(POINTS[stage])}=kill@{self.rng.choice([1, 1, 2, 3])}"
        attempt = self._attempt(run, point)
        return self._ended(attempt, f"{stage} {run.shard.key}: {point}")

    def _killed_any_time(self, stage: str, run: AgentRun) -> Attempt:
        seconds = self.rng.uniform(0.2, _LONGEST_LIFE)
        attempt = self._attempt(run)
        if not _ends_within(attempt, seconds):
            attempt.signal(signal.SIGKILL)
        return self._ended(attempt, f"{stage} {run.shard.key}: killed after {seconds:.2f} s")

    def _stopped(self, stage: str, run: AgentRun) -> Attempt:
        """Stopped at a failpoint or at any time: a zombie, unless it was done before."""
        if self.rng.random() < 0.5:
            point = f"{self.rng.choice(POINTS[stage])}=stop@{self.rng.choice([1, 1, 2])}"
            attempt = self._attempt(run, point)
            _until_stopped_or_ended(attempt)
        else:
            point = f"stopped after {(seconds := self.rng.uniform(0.2, _LONGEST_LIFE)):.2f} s"
            attempt = self._attempt(run)
            if not _ends_within(attempt, seconds):
                attempt.signal(signal.SIGSTOP)
        if attempt.process.poll() is not None:
            return self._ended(attempt, f"{stage} {run.shard.key}: {point}")
        self.tally.zombies += 1
        self.tally.tell(f"{stage} {run.shard.key}: {point}, a zombie")
        return attempt

    def _ended(self, attempt: Attempt, what: str) -> Attempt:
        code = attempt.wait()
        assert code in (0, 75, -signal.SIGKILL), self._failed(attempt)
        self.tally.kills += code == -signal.SIGKILL
        self.tally.tell(f"{what}: {code}")
        return attempt

    def _wake(self, zombie: Attempt) -> None:
        zombie.signal(signal.SIGCONT)
        code = zombie.wait()
        assert code in (0, 75), self._failed(zombie)
        self.tally.tell(f"a zombie of {zombie.run.stage} woke: {code}")

    def _failed(self, attempt: Attempt) -> str:
        return "\n".join([*self.tally.story, f"attempt at {attempt.run.stage}: {attempt.process.returncode}", attempt.log])

    # Judging

    def check(self) -> None:
        """No event lost, none doubled, by id and content: in every topic by its manifests, in the dead letters, in the table."""
        expected, told = self.expected, "\n".join(self.tally.story)
        for stage, events in (("ingest", expected.ingested), ("enrich", expected.enriched), ("validate", expected.valid)):
            found = self._in_manifests(stage, lambda r: [r.manifest])
            assert _sorted(r.event for r in found) == _sorted(events), f"{stage}\n{told}"
            assert len(self._in_manifests(stage, lambda r: [r.dead_letters] if r.dead_letters else [])) == expected.dead[stage], told
        columns = ("event_id", "n", "text", "size")
        query = sql.SQL("SELECT event_id, n, text, size FROM {}").format(sql.Identifier(self.table))
        with psycopg.connect(self.database_url) as database:
            rows = database.execute(query).fetchall()
        assert sorted(rows) == sorted(tuple(e[c] for c in columns) for e in expected.valid), told
        (published,) = self.results["publish"]
        assert published.counts.consumed == published.counts.written == len(expected.valid), told

    def _in_manifests(self, stage: str, of: Callable[[AgentResult], Iterable[Any]]) -> list[Rec]:
        return [record for result in self.results[stage] for manifest in of(result) for record in self.runs.manifest(manifest)]


def _sorted(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(events, key=lambda e: str(e["event_id"]))


def _ends_within(attempt: Attempt, seconds: float) -> bool:
    try:
        attempt.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _until_stopped_or_ended(attempt: Attempt) -> None:
    stat = Path(f"/proc/{attempt.process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] not in "TZ":
        _ends_within(attempt, 0.05)
        if attempt.process.returncode is not None:
            return
