"""A hand-written consumer that asks a model: 64 calls at once by asyncio and aiohttp, batch by batch, at least once."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp
from confluent_kafka import Consumer, Message, Producer

bootstrap, source, target, total, url = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
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
SCHEMA = {"type": "object", "properties": {"label": {"enum": ["even", "odd"]}}, "required": ["label"]}


async def ask(client: aiohttp.ClientSession, turn: asyncio.Semaphore, message: Message) -> tuple[Message, bytes]:
    event = json.loads(message.value() or b"")
    question = {
        "model": "m",
        "messages": [{"role": "user", "content": f"What kind is this? {event['event_id']}"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    }
    async with turn, client.post(f"{url}/chat/completions", json=question) as response:
        response.raise_for_status()
        completion = await response.json()
    event["answer"] = json.loads(completion["choices"][0]["message"]["content"])
    return message, json.dumps(event).encode()


async def main() -> None:
    turn, done, began = asyncio.Semaphore(64), 0, time.monotonic()
    consumer.subscribe([source])
    async with aiohttp.ClientSession() as client:
        while done < total:
            messages = [m for m in consumer.consume(256, 0.05) if m.error() is None]
            for message, value in await asyncio.gather(*(ask(client, turn, m) for m in messages)):
                producer.produce(target, value, message.key())
            producer.flush()
            if messages:
                consumer.commit(asynchronous=False)
            done += len(messages)
    consumer.close()
    print(json.dumps({"seconds": time.monotonic() - began}))


asyncio.run(main())
