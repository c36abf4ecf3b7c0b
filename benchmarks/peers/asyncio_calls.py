"""A hand-written consumer with slow calls: 64 at once by asyncio, batch by batch, at least once."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from confluent_kafka import Consumer, Message, Producer
from latency import latency

bootstrap, source, target, total = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
consumer = Consumer(
    {
        "bootstrap.servers": bootstrap,
        "group.id": f"bench-{target}",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
    }
)
producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "compression.type": "lz4"})


async def call(turn: asyncio.Semaphore, message: Message) -> bytes:
    event = json.loads(message.value() or b"")
    async with turn:
        await asyncio.sleep(latency(event["event_id"]))
    event["enriched"] = True
    return json.dumps(event).encode()


async def main() -> None:
    turn, done, began = asyncio.Semaphore(64), 0, 0.0
    consumer.subscribe([source])
    while done < total:
        messages = [m for m in consumer.consume(1024, 0.05) if m.error() is None]
        began = began or (time.monotonic() if messages else 0.0)
        for message, value in zip(messages, await asyncio.gather(*(call(turn, m) for m in messages)), strict=True):
            producer.produce(target, value, message.key())
        producer.flush()
        if messages:
            consumer.commit(asynchronous=False)
        done += len(messages)
    consumer.close()
    print(json.dumps({"seconds": time.monotonic() - began}))


asyncio.run(main())
