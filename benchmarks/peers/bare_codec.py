"""A hand-written confluent-kafka loop with fastavro or Protobuf's own classes: one schema, known beforehand, no registry asked."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable

import fastavro
import schemas
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

bootstrap, source, target, total, kind, schema_id = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5], int(sys.argv[6])
prefix = schemas.prefix(kind, schema_id)


def avro() -> Callable[[bytes], bytes]:
    schema = fastavro.parse_schema(schemas.AVRO)
    read, write, start = fastavro.schemaless_reader, fastavro.schemaless_writer, len(prefix)

    def handle(value: bytes) -> bytes:
        stream = io.BytesIO(value)
        stream.seek(start)
        event = read(stream, schema, None)
        event["enriched"] = True
        out = io.BytesIO()
        out.write(prefix)
        write(out, schema, event)
        return out.getvalue()

    return handle


def protobuf() -> Callable[[bytes], bytes]:
    read, start = schemas.protobuf_class().FromString, len(prefix)

    def handle(value: bytes) -> bytes:
        event = read(value[start:])
        event.enriched = True
        return prefix + event.SerializeToString()

    return handle


handle = {"avro": avro, "protobuf": protobuf}[kind]()
consumer = Consumer(
    {
        "bootstrap.servers": bootstrap,
        "group.id": f"bench-{target}",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 20,
        "fetch.queue.backoff.ms": 10,
        "queued.min.messages": 50_000,
        "queued.max.messages.kbytes": 32_768,
    }
)
producer = Producer(
    {
        "bootstrap.servers": bootstrap,
        "transactional.id": f"bench-{target}",
        "linger.ms": 5,
        "compression.type": "lz4",
        "queue.buffering.max.messages": 500_000,
        "queue.buffering.max.kbytes": 262_144,
        "delivery.report.only.error": True,
    }
)
began = time.monotonic()
partitions = len(consumer.list_topics(source).topics[source].partitions)
consumer.assign([TopicPartition(source, p, 0) for p in range(partitions)])
producer.init_transactions()
headers = [("writer", b"bench/0123456789abcdef/1")]
done = in_transaction = 0
positions: dict[int, int] = {}


def commit() -> None:
    offsets = [TopicPartition(source, p, o) for p, o in positions.items()]
    producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())
    producer.commit_transaction()


producer.begin_transaction()
while done < total:
    for message in consumer.consume(10_000, 0.03):
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                continue
            raise SystemExit(str(error))
        message.headers()
        partition = message.partition()
        while True:
            try:
                producer.produce(target, handle(message.value()), message.key(), partition=partition, headers=headers)
                break
            except BufferError:
                producer.poll(0.05)
        positions[partition] = message.offset() + 1
        done += 1
        in_transaction += 1
    if in_transaction >= 100_000:
        commit()
        in_transaction = 0
        producer.begin_transaction()
commit()
print(json.dumps({"seconds": time.monotonic() - began}))
