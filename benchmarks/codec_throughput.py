"""One agent process over a topic of Avro and one of Protobuf: decode, set a field, encode, exactly once; beside its peers in one run."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import msgspec
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from harness import ROOT, arguments, bench_sandbox, filled_window, peers_python, report, run_agent, run_process, timed

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, CodecRef, Window

PARTITIONS = 4
PEERS = ROOT / "benchmarks" / "peers"
sys.path.insert(0, str(PEERS))

import schemas  # noqa: E402  # the peers' own, beside them

Timed = tuple[float, float]


def encoder(kind: str, schema_id: int) -> Callable[[dict[str, Any]], bytes]:
    """What writes an event as a producer elsewhere does."""
    prefix = schemas.prefix(kind, schema_id)
    if kind == "protobuf":
        message = schemas.protobuf_class()
        return lambda event: prefix + bytes(message(**event).SerializeToString())
    schema = fastavro.parse_schema(schemas.AVRO)

    def encode(event: dict[str, Any]) -> bytes:
        out = BytesIO()
        out.write(prefix)
        fastavro.schemaless_writer(out, schema, event)
        return out.getvalue()

    return encode


def ours(config: KafkaConfig, url: str, window: Window, target: str, kind: str) -> Timed:
    """The built-in ``enrich`` without a function; the seconds that its result says, and those of CPU of the whole process."""
    run = AgentRun(target, "enrich", AgentRef("enrich"), window=window, output_topic=target, output_codec=CodecRef(kind))
    done, cost = run_agent(config, run, SCHEMA_REGISTRY_URL=url)
    if done.counts.produced != window.size:
        raise SystemExit(f"expected {window.size} events, {done.counts.produced} were produced, {done.counts.rejected} rejected")
    return done.seconds, cost.cpu


def peer(python: Path, script: str, *given: str) -> Timed:
    """A peer's script in its environment; the seconds that it says, and those of CPU that the process took in all."""
    cost = run_process([python, PEERS / script, *given])
    return float(json.loads(cost.output.strip().splitlines()[-1])["seconds"]), cost.cpu


def race(kind: str, text: str, events: int, turns: int, config: KafkaConfig, url: str) -> None:
    """Fill a topic of one kind, race over it, report."""
    cluster = Cluster(config)
    client = SchemaRegistryClient({"url": url})
    source = f"bench-{kind}-{uuid.uuid4().hex[:8]}"

    def register(topic: str) -> int:
        return int(client.register_schema(f"{topic}-value", Schema(text, kind.upper())))

    schema_id = register(source)
    window = filled_window(config, source, events, PARTITIONS, encode=encoder(kind, schema_id))
    window = msgspec.structs.replace(window, codec=CodecRef(kind))

    def target(name: str, n: int) -> str:
        topic = f"{source}-{name}-{n}"
        cluster.create(topic, PARTITIONS, settings={"retention.ms": "-1"})
        register(topic)
        return topic

    here, peers = Path(sys.executable), peers_python()
    given = (config.bootstrap, source)
    known: dict[str, Callable[[int], Timed]] = {
        "factory": lambda n: ours(config, url, msgspec.structs.replace(window, name=f"bench-{n}"), target("factory", n), kind),
        "bare loop": lambda n: peer(here, "bare_codec.py", *given, target("bare", n), str(events), kind, str(schema_id)),
        "quix streams": lambda n: peer(peers, "quix_codec.py", *given, target("quix", n), str(events), kind, url),
    }

    seconds, ratios = timed(turns, known, "factory")
    report(f"{kind} throughput", seconds, "factory", events, "events", {"cpu_ratios": ratios})


def main() -> None:
    """Each kind in turn."""
    options = arguments(__doc__ or "", events=500_000)
    info = bench_sandbox(with_registry=True).info()
    for kind, text in schemas.texts().items():
        race(kind, text, 20_000 if options.smoke else options.events, options.rounds, KafkaConfig(info.bootstrap), info.registry_url or "")


if __name__ == "__main__":
    main()
