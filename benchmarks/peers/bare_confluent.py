"""A hand-written confluent-kafka loop, tuned: batch reads, transactions of 100,000, headers read and written, orjson."""

from __future__ import annotations

import json
import sys
import time

import msgspec
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

bootstrap, source, target, total = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
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
decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
began = time.monotonic()
partitions = len(consumer.list_topics(source).topics[source].partitions)
consumer.assign([TopicPartition(source, p, 0) for p in range(partitions)])
producer.init_transactions()
headers = [("writer", b"bench/0123456789abcdef/1")]
done = in_transaction = 0
first = 0.0
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
        first = first or time.monotonic()
        event = decode(message.value())
        event["enriched"] = True
        partition = message.partition()
        while True:
            try:
                producer.produce(target, encode(event), message.key(), partition=partition, headers=headers)
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
print(json.dumps({"seconds": time.monotonic() - began, "first": first}))
