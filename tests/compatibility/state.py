"""What a release leaves behind: topics, the ledger, tables and a group's position, written to a file and laid out from it again.

``make`` runs a pipeline and keeps the state: ``python -m tests.compatibility.state COMMIT`` in a checkout of that commit writes
``data/COMMIT.json``. Names and ids are kept as placeholders; offsets, and with them the places of the transactions' markers, are the same
when the state is laid out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.ledger import LEDGER_PARTITIONS, LEDGER_SETTINGS, partition_of
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Interval, encode
from factory_agents.runtime.agents import agent
from factory_agents.runtime.live import LiveSettings, run_live
from factory_agents.runtime.session import RunContext
from tests.support.databases import own_database
from tests.support.runs import Runs
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

DATA = Path(__file__).parent / "data"
TOPICS = ("raw", "sized", "sized.dead", "live")
EACH = 20
"""Events an hour."""

HOURS = [Interval(datetime(2026, 11, 1, h, tzinfo=UTC), datetime(2026, 11, 1, h + 1, tzinfo=UTC)) for h in (4, 5, 6)]
CONTRACT = {
    "name": "sized",
    "version": 1,
    "id": "event_id",
    "schema": {
        "type": "object",
        "properties": {"event_id": {"type": "integer"}, "text": {"type": "string"}, "size": {"type": "integer"}},
        "required": ["event_id", "text", "size"],
    },
}


@agent(version="1")
def size(event: dict[str, Any]) -> dict[str, Any]:
    """One in ten is rejected: the text is missing."""
    return event | {"size": len(event["text"])}


@dataclass
class Pipeline:
    """The pipeline, as its orchestrator would run it, in this release or another."""

    runs: Runs
    url: str
    notes: dict[str, str] = field(default_factory=dict)

    def name(self, topic: str) -> str:
        return f"{self.runs.prefix}.{topic}"

    @property
    def group(self) -> str:
        return f"{self.runs.prefix}.live-size"

    @property
    def address(self) -> str:
        """The database, as fingerprints name it."""
        return self.url.partition("@")[2]

    @property
    def table(self) -> str:
        return "landed"

    def window(self, hour: int) -> Any:
        return plan_window(
            self.runs.config,
            pipeline=self.runs.prefix,
            topic=self.name("raw"),
            interval=HOURS[hour],
            prefix=self.runs.prefix,
            policy="carry",
        )

    def size(self, hour: int) -> AgentRun:
        ref = AgentRef("tests.compatibility.state:size")
        return self.runs.run(self.window(hour), self.name("sized"), str(ref.name), stage="size", chunk_records=4)

    def publish(self, result: AgentResult) -> AgentRun:
        from factory_agents.protocol import merge_results

        return AgentRun(
            self.runs.prefix,
            "publish",
            AgentRef("publish"),
            params={"contract": CONTRACT, "table": self.table},
            window=merge_results([result]),
            prefix=self.runs.prefix,
        )

    def finished(self, run: AgentRun, command: Sequence[str] = ()) -> AgentResult:
        """An attempt that succeeds."""
        attempt = self.runs.attempt(run, command=command, secrets={"DATABASE_URL": self.url, **self.notes})
        assert attempt.wait() == 0, attempt.log
        return attempt.result

    def live(self, until: int) -> None:
        """The live agent, until it has handled so many events of the topic in all."""
        stop = threading.Event()
        failed: list[BaseException] = []

        def work() -> None:
            try:
                context = RunContext(self.runs.config, stop=stop.is_set)
                live = LiveSettings(self.name("raw"), self.name("live"), self.group, prefix=self.runs.prefix)
                run_live(context, size.bind({}), live)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_for(lambda: bool(failed) or self.position()[0] >= until, "the live agent has handled them")
        stop.set()
        thread.join(60)
        assert not failed, failed

    def position(self) -> tuple[int, str]:
        """Where the group stands, and what it says beside it."""
        asked = ConsumerGroupTopicPartitions(self.group, [TopicPartition(self.name("raw"), 0)])
        (found,) = self.runs.admin.list_consumer_group_offsets([asked])[self.group].result().topic_partitions
        return found.offset, found.metadata or ""

    def stand(self, offset: int, metadata: str = "") -> None:
        """Put the group there; its coordinator may be elected only now."""
        place = TopicPartition(self.name("raw"), 0, offset, metadata)

        def set_there() -> bool:
            wanted = [ConsumerGroupTopicPartitions(self.group, [place])]
            (altered,) = self.runs.admin.alter_consumer_group_offsets(wanted)[self.group].result().topic_partitions
            return altered.error is None

        wait_for(set_there, "the group to stand there")
        assert self.position() == (offset, metadata)

    def hour(self, hour: int) -> None:
        """An hour's events, one in ten without its text."""
        for n in range(hour * EACH, (hour + 1) * EACH):
            event = {"event_id": n} | ({} if n % 10 == 7 else {"text": f"event {n}"})
            self.runs.produce(self.name("raw"), [json.dumps(event).encode()], partition=0, timestamp=self.stamp(n))

    @staticmethod
    def stamp(n: int) -> int:
        """When an event arrives, in milliseconds."""
        return HOURS[n // EACH].start_ms + (n % EACH) * 1000

    def rows(self) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(f"SELECT event_id, text, size FROM {self.table} ORDER BY event_id").fetchall()


def make(pipeline: Pipeline, folder: Path) -> dict[str, Any]:
    """Two hours: one of them landed, one left off in its midst; live, the first. Then all that is there."""
    runs, noted = pipeline.runs, folder / "noted"
    noting = (sys.executable, "-m", "tests.compatibility.noting")
    pipeline.notes["NOTED"] = str(noted)
    pipeline.hour(0)
    pipeline.live(EACH)
    pipeline.hour(1)
    sized = pipeline.size(0)
    first = pipeline.finished(sized, noting)
    publish = pipeline.publish(first)
    landed = pipeline.finished(publish, noting)
    unfinished = pipeline.size(1)
    left_off = runs.attempt(unfinished, "chunk.before-commit=kill@4", noting, pipeline.notes, transaction_timeout_ms=1000)
    assert left_off.wait() == -signal.SIGKILL, left_off.log
    runs.outlast_a_transaction()
    offset, metadata = pipeline.position()
    state = {
        "fingerprints": noted.read_text().splitlines(),
        "logs": {name: log(runs, pipeline.name(name), 0) for name in TOPICS},
        "ledger": log(runs, f"{runs.prefix}.ledger", partition_of(runs.prefix.encode())),
        "live": {"offset": offset, "metadata": metadata},
        "runs": {"size": json.loads(encode(sized)), "publish": json.loads(encode(publish)), "left off": json.loads(encode(unfinished))},
        "results": {"size": json.loads(encode(first)), "publish": json.loads(encode(landed))},
        "rows": pipeline.rows(),
        "tables": dump(pipeline),
    }
    text = json.dumps(state, ensure_ascii=False)
    for number, line in enumerate(state["fingerprints"]):
        text = text.replace(_digest(line), f"@fingerprint {number}@")
    text = text.replace(runs.prefix, "@prefix@").replace(pipeline.address, "@database@")
    for name in TOPICS:
        text = text.replace(runs.cluster.topic(pipeline.name(name)).id, f"@{name}@")
    kept: dict[str, Any] = json.loads(text)
    return kept


def _digest(text: str) -> str:
    """As fingerprints were made of their text from the first release on: written here a second time on purpose."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def log(runs: Runs, topic: str, partition: int) -> list[dict[str, Any]]:
    """Every record of a partition, those of dropped transactions too, with its offset."""
    config = {"bootstrap.servers": runs.bootstrap, "group.id": "t", "enable.partition.eof": True, "isolation.level": "read_committed"}
    consumer = Consumer(config | {"enable.auto.commit": False, "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, partition, 0)])
    found = []
    while True:
        message = consumer.poll(30)
        assert message is not None
        error = message.error()
        if error is not None:
            assert error.code() == KafkaError._PARTITION_EOF, error
            consumer.close()
            return found
        record: dict[str, Any] = {"offset": message.offset(), "at": message.timestamp()[1]}
        for name, part in (("key", message.key()), ("value", message.value())):
            record[name] = part.decode() if part is not None else None
        record["headers"] = [[name, value.decode()] for name, value in message.headers() or ()]
        found.append(record)


_COLUMNS = """
    SELECT format('%%I %%s%%s%%s%%s', attname, format_type(atttypid, atttypmod),
                  CASE WHEN attcollation <> typcollation THEN format(' COLLATE %%I', collname) END,
                  CASE attidentity WHEN 'a' THEN ' GENERATED ALWAYS AS IDENTITY' WHEN 'd' THEN ' GENERATED BY DEFAULT AS IDENTITY' END,
                  CASE WHEN attnotnull THEN ' NOT NULL' END)
    FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid LEFT JOIN pg_collation ON pg_collation.oid = attcollation
    WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_KEYS = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %(table)s::regclass AND contype = 'p'"
_INDEXES = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %(table)s::regclass AND NOT indisprimary"
_SERIALS = "SELECT attname FROM pg_attribute WHERE attrelid = %(table)s::regclass AND attidentity <> ''"


def dump(pipeline: Pipeline) -> dict[str, Any]:
    """The database's tables: how they are made, and their rows. (There is no pg_dump of the server's version.)"""
    tables = {}
    with psycopg.connect(pipeline.url) as connection:
        for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall():

            def ask(query: str, table: str = name) -> list[str]:
                return [row[0] for row in connection.execute(query, {"table": f"public.{table}"})]

            made = [f"CREATE TABLE public.{name} ({', '.join([*ask(_COLUMNS), *ask(_KEYS)])})", *ask(_INDEXES)]
            rows = connection.execute(f"SELECT coalesce(jsonb_agg(t), '[]') FROM public.{name} AS t").fetchone()
            assert rows is not None
            tables[name] = {"made": made, "rows": rows[0], "counted": ask(_SERIALS)}
    return tables


def _fill(connection: psycopg.Connection, name: str, table: dict[str, Any]) -> None:
    for statement in table["made"]:
        connection.execute(statement)
    connection.execute(
        f"INSERT INTO public.{name} OVERRIDING SYSTEM VALUE SELECT * FROM jsonb_populate_recordset(NULL::public.{name}, %s)",
        [json.dumps(table["rows"])],
    )
    for column in table["counted"]:
        connection.execute(f"SELECT setval(pg_get_serial_sequence('public.{name}', '{column}'), max({column})) FROM public.{name}")


def lay_out(state: dict[str, Any], pipeline: Pipeline) -> dict[str, Any]:
    """Bring the state into being; returns it with the names and ids of now."""
    runs = pipeline.runs
    for name in TOPICS:
        create_topic(runs.admin, pipeline.name(name), 1, **{"retention.ms": "-1"})
    create_topic(runs.admin, f"{runs.prefix}.ledger", LEDGER_PARTITIONS, **LEDGER_SETTINGS)
    text = json.dumps(state, ensure_ascii=False)
    for name in TOPICS:
        text = text.replace(f"@{name}@", runs.cluster.topic(pipeline.name(name)).id)
    text = text.replace("@prefix@", runs.prefix).replace("@database@", pipeline.address)
    for number in range(len(state["fingerprints"])):  # one may stand in the next: a stage reads what another wrote
        text = text.replace(f"@fingerprint {number}@", _digest(json.loads(text)["fingerprints"][number]))
    now: dict[str, Any] = json.loads(text)
    for name, records in now["logs"].items():
        write(runs, pipeline.name(name), 0, records)
    write(runs, f"{runs.prefix}.ledger", partition_of(runs.prefix.encode()), now["ledger"])
    pipeline.stand(now["live"]["offset"], now["live"]["metadata"])
    with psycopg.connect(pipeline.url, autocommit=True) as connection:
        for name, table in now["tables"].items():
            _fill(connection, name, table)
        connection.execute(
            "UPDATE public.factory_publishes SET relations = ARRAY[format('%s/%s', oid, pg_relation_filenode(oid))] FROM pg_class"
            f" WHERE oid = 'public.{pipeline.table}'::regclass AND relations IS NOT NULL"
        )
    return now


def write(runs: Runs, topic: str, partition: int, records: list[dict[str, Any]]) -> None:
    """The records at their offsets. Where some are missing, transactions ended, or were dropped: others fill these places."""
    settings = {"bootstrap.servers": runs.bootstrap, "linger.ms": 1}
    whole = [record["offset"] for record in records] == list(range(len(records)))  # nobody wrote them in a transaction
    producer = Producer(settings if whole else settings | {"transactional.id": f"{topic}.laid-out"})
    if not whole:
        producer.init_transactions(30)
        producer.begin_transaction()
    at = 0
    for record in records:
        while at < record["offset"]:
            if record["offset"] - at > 1:
                producer.produce(topic, b"{}", b"pad|", partition=partition, headers=[("factory-writer", b"nobody")])
                at += 1
            producer.commit_transaction(30)
            producer.begin_transaction()
            at += 1
        key, value = (record[part].encode() if record[part] is not None else None for part in ("key", "value"))
        headers = [(name, text.encode()) for name, text in record["headers"]]
        producer.produce(topic, value, key, partition=partition, headers=headers, timestamp=record["at"])
        at += 1
    if not whole:
        producer.commit_transaction(30)
    assert producer.flush(60) == 0


def stored() -> Iterator[Path]:
    """The states that are kept."""
    yield from sorted(DATA.glob("*.json"))


def main(commit: str) -> int:
    """Write the state that this checkout leaves to ``data/COMMIT.json``."""
    from factory_agents.sandbox import Sandbox

    info = Sandbox(Path(os.environ["FACTORY_HOME"])).info()
    prefix = f"former{secrets.token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": info.bootstrap})
    made: list[str] = []

    def topic(name: str, partitions: int = 1, **config: object) -> str:
        made.append(f"{prefix}.{name}")
        create_topic(admin, made[-1], partitions, **config)
        return made[-1]

    with own_database(info.database_url, "former") as url, tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(Runs(info.bootstrap, prefix, topic, admin), url)
        for name in TOPICS:
            topic(name, **{"retention.ms": "-1"})
        try:
            state = make(pipeline, Path(folder))
        finally:
            pipeline.runs.close()
            for future in admin.delete_topics(made).values():
                future.exception()
    DATA.mkdir(exist_ok=True)
    (DATA / f"{commit}.json").write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n")
    print(f"{DATA / commit}.json: {len(state['ledger'])} ledger records")
    return 0


if __name__ == "__main__":
    assert re.fullmatch(r"[\w.]+", sys.argv[1])
    sys.exit(main(sys.argv[1]))
