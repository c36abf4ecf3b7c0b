"""Topics, windows and attempts of a pipeline that nobody else uses, and readers that share no code with what they judge."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Manifest, PartitionRange, Window, decode_result, encode
from factory_agents.runtime.agents import Transform, agent
from factory_agents.runtime.loading import load_agent_ref
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.window import run_transform
from tests.support import warm
from tests.support.agents import mark
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Rec:
    """A record as it lies in a topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes | None]
    timestamp: int

    @property
    def event(self) -> dict[str, Any]:
        return dict(json.loads(self.value or b""))

    @property
    def id(self) -> Any:
        return self.event["event_id"]

    @property
    def dead_letter(self) -> dict[str, Any]:
        return dict(json.loads(self.headers["factory-dead-letter"] or b""))


def events(n: int, start: int = 0, **more: Any) -> list[bytes]:
    """Events with the ids from ``start`` on."""
    return [json.dumps({"event_id": i, "text": f"event {i}", **more}).encode() for i in range(start, start + n)]


class Attempt:
    """One attempt at a run in a process of its own, as an orchestrator starts it."""

    def __init__(self, run: AgentRun, environment: dict[str, str], command: Sequence[str]) -> None:
        self.run = run
        self._folder = tempfile.TemporaryDirectory()
        self._result = Path(self._folder.name) / "result.json"
        self.process = warm.start([*command, "--result", str(self._result)], cwd=ROOT, env=environment, stdin=subprocess.PIPE)
        assert self.process.stdin is not None
        self.process.stdin.write(encode(run) + b"\n")
        self.process.stdin.flush()
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self.lines: list[str] = []
        self._reader.start()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode(errors="replace").rstrip())

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait(self, timeout: float = 60) -> int:
        """The exit status; negative for a signal."""
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_stopped(self) -> None:
        """Until the process is stopped (SIGSTOP)."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the process to be stopped")

    @property
    def result(self) -> AgentResult:
        assert self._result.exists(), self.log
        return decode_result(self._result.read_bytes())

    def end(self) -> None:
        """Kill what is left of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()
        self._folder.cleanup()


@contextlib.contextmanager
def own_runs(bootstrap: str, prefix: str) -> Iterator[Runs]:
    """Runs on a broker that isn't the shared one."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})

    def topic(name: str = "t", partitions: int = 4, **config: object) -> str:
        create_topic(admin, f"{prefix}.{name}", partitions, **config)
        return f"{prefix}.{name}"

    own = Runs(bootstrap, prefix, topic, admin)
    yield own
    own.close()


class Runs:
    """What a test does with the runtime: fill topics, run agents over windows of them, read what came of it."""

    def __init__(self, bootstrap: str, prefix: str, make_topic: Callable[..., str], admin: AdminClient) -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix
        self.topic = make_topic
        self.admin = admin
        self.config = KafkaConfig(bootstrap)
        self.cluster = Cluster(self.config)
        self._attempts: list[Attempt] = []
        self._made: set[str] = set()

    def close(self) -> None:
        for attempt in self._attempts:
            attempt.end()
        for future in self.admin.delete_topics(sorted({f"{self.prefix}.ledger", *self._made})).values():
            future.exception()

    def configured(self, **values: object) -> KafkaConfig:
        """A configuration with more keys: ``transaction_timeout_ms=1000``."""
        return KafkaConfig(self.bootstrap, {k.replace("_", "."): str(v) for k, v in values.items()})

    def produce(self, topic: str, values: Iterable[bytes | None], *, partition: int | None = None, **more: Any) -> None:
        """Write records; without a partition they go round all of them."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 1, "log_level": 0, "message.max.bytes": 20_000_000})
        partitions = self.cluster.topic(topic).partitions
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        for i, value in enumerate(values):
            p = i % partitions if partition is None else partition
            producer.produce(topic, value, partition=p, on_delivery=delivered, **more)
            if i % 10_000 == 9_999:
                producer.flush(60)
        assert producer.flush(60) == 0
        assert not failed, failed

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete what lies before an offset, as retention does."""
        place = TopicPartition(topic, partition, offset)
        self.admin.delete_records([place])[TopicPartition(topic, partition)].result()

    def window(self, topic: str, name: str = "w", pipeline: str = "") -> Window:
        """All that is in the topic now."""
        facts = self.cluster.topic(topic)
        starts = self.cluster.log_start(topic, range(facts.partitions))
        ends = self.cluster.high_watermark(topic, range(facts.partitions))
        ranges = tuple(PartitionRange(p, starts[p], ends[p]) for p in range(facts.partitions) if ends[p] > starts[p])
        return Window(pipeline or self.prefix, topic, facts.id, ranges, name=name)

    def filled(self, n: int, partitions: int = 4, name: str = "in") -> Window:
        """A new topic with n events, as a window."""
        topic = self.topic(name, partitions=partitions)
        self.produce(topic, events(n))
        return self.window(topic)

    def run(self, window: Window | None, output: str = "", name: str = "tests.support.agents:mark", **more: Any) -> AgentRun:
        run = AgentRun(self.prefix, "stage", AgentRef(name), window=window, output_topic=output, prefix=self.prefix)
        run = msgspec.structs.replace(run, **more)
        self._made.add(f"{run.output_topic or (window.topic if window else '')}.dead")
        return run

    def transform(
        self,
        run: AgentRun,
        function: Callable[..., Any] | Transform = mark,
        *,
        config: KafkaConfig | None = None,
        **context: Any,
    ) -> AgentResult:
        """Run a function (or a transform, or a class of them) here and now; a function under the name and version that the run names."""

        def make() -> Transform:
            if isinstance(function, type):
                return function()  # type: ignore[no-any-return]
            if not callable(function):
                return function
            theirs = load_agent_ref(run.agent)
            return agent(name=theirs.name, version=theirs.version)(function).bind(run.params)

        return run_transform(RunContext(config or self.config, **context), run, make)

    def attempt(
        self, run: AgentRun, failpoints: str = "", command: Sequence[str] = (), secrets: Mapping[str, str] | None = None, **values: object
    ) -> Attempt:
        """Start an attempt as a process; ``secrets`` go into its environment, more keywords are Kafka settings."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "FACTORY_"))}
        environment |= self.configured(**values).to_env() | {"FACTORY_FAILPOINTS": failpoints, "PYTHONUNBUFFERED": "1", **(secrets or {})}
        attempt = Attempt(run, environment, command or (sys.executable, "-m", "factory_agents.run"))
        self._attempts.append(attempt)
        return attempt

    def killed(self, run: AgentRun, failpoints: str, **values: object) -> None:
        """An attempt that a failpoint kills."""
        attempt = self.attempt(run, failpoints, **values)
        assert attempt.wait() == -signal.SIGKILL, attempt.log

    def finished(self, run: AgentRun, **values: object) -> AgentResult:
        """An attempt that succeeds."""
        attempt = self.attempt(run, **values)
        assert attempt.wait() == 0, attempt.log
        return attempt.result

    def outlast_a_transaction(self, timeout_ms: int = 1000) -> None:
        """Until the broker has given up a transaction that may last so long and is begun now: any that was begun before it is over, too."""
        topic = self.topic("outlast", partitions=1)
        settings = {"transactional.id": topic, "transaction.timeout.ms": timeout_ms, "log_level": 0}
        producer = Producer({"bootstrap.servers": self.bootstrap, **settings})
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(topic, b"x", partition=0)
        assert producer.flush(60) == 0
        wait_for(lambda: self.cluster.stable_offset(topic, [0])[0] > 0, "the broker to give the transaction up")

    def manifest(self, manifest: Manifest | None) -> list[Rec]:
        """See ``read_manifest``."""
        return read_manifest(self.bootstrap, manifest)

    def everything(self, topic: str) -> list[Rec]:
        """Every committed record of a topic, waiting for open transactions."""
        ends = self.cluster.high_watermark(topic, range(self.cluster.topic(topic).partitions))
        return read_ranges(self.bootstrap, topic, {p: (0, end) for p, end in ends.items()})

    def read(self, topic: str, partition: int, start: int, end: int) -> list[Rec]:
        """The committed records of an offset range; see ``read_ranges``."""
        return read_ranges(self.bootstrap, topic, {partition: (start, end)})


def read_manifest(bootstrap: str, manifest: Manifest | None) -> list[Rec]:
    """The committed records that a manifest names, and no others; fails unless they are as many as it says."""
    assert manifest is not None
    ranges = {part.partition: (part.start, part.end) for part in manifest.ranges}
    read = read_ranges(bootstrap, manifest.topic, ranges)
    found = [r for r in read if r.headers.get("factory-writer") == manifest.writer.encode()]
    counts = {part.partition: sum(r.partition == part.partition for r in found) for part in manifest.ranges}
    assert counts == {part.partition: part.count for part in manifest.ranges}, f"{manifest.topic} holds {counts}, not {manifest.ranges}"
    return found


def read_ranges(bootstrap: str, topic: str, ranges: Mapping[int, tuple[int, int]]) -> list[Rec]:
    """The committed records of an offset range of each partition, in their order: by one client, since each is a burden to the broker."""
    positions = {p: start for p, (start, end) in ranges.items() if start < end}
    found: dict[int, list[Rec]] = {p: [] for p in sorted(positions)}
    if not positions:
        return []
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "test",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 20,
            "log_level": 0,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, p, position) for p, position in positions.items()])
        while any(position < ranges[p][1] for p, position in positions.items()):
            message = consumer.poll(30)
            assert message is not None, f"{topic} stands at {positions} of {dict(ranges)}"
            p, error = message.partition() or 0, message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                positions[p] = max(positions[p], message.offset() or 0)
                continue
            positions[p] = (message.offset() or 0) + 1
            if positions[p] <= ranges[p][1]:
                found[p].append(_rec(message))
    finally:
        consumer.close()
    return [r for of_partition in found.values() for r in of_partition]


def _rec(message: Message) -> Rec:
    headers: Any = message.headers()
    return Rec(
        message.partition() or 0,
        message.offset() or 0,
        message.key(),  # type: ignore[arg-type]
        message.value(),  # type: ignore[arg-type]
        dict(headers or ()),
        message.timestamp()[1],
    )
