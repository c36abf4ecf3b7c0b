"""Airflow's common.ai over a topic: its operator, one event after the other, or its agent within one task, 64 calls at once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from typing import Literal

bootstrap, source, target, total, url, how = *sys.argv[1:4], int(sys.argv[4]), sys.argv[5], sys.argv[6]
os.environ["AIRFLOW_CONN_BENCH_MODEL"] = json.dumps(
    {"conn_type": "pydanticai", "password": "none", "host": url, "extra": {"model": "openai-chat:m"}}
)

from airflow.providers.common.ai.hooks.pydantic_ai import PydanticAIHook  # noqa: E402  # after the connection is in the environment
from airflow.providers.common.ai.operators.llm import LLMOperator  # noqa: E402
from confluent_kafka import Consumer, Message, Producer  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from pydantic_ai import NativeOutput  # noqa: E402

logging.disable(logging.WARNING)  # each call is logged in six lines


class Label(BaseModel):
    """What an answer must be."""

    label: Literal["even", "odd"]


def question(event: dict[str, object]) -> str:
    return f"What kind is this? {event['event_id']}"


def one_by_one(messages: list[Message]) -> list[bytes]:
    """An operator for each event, as its mapped tasks would run it; that Airflow schedules and starts each of them isn't counted."""
    done = []
    for n, message in enumerate(messages):
        event = json.loads(message.value() or b"")
        ask = LLMOperator(
            task_id=f"ask_{n}", prompt=question(event), llm_conn_id="bench_model", output_type=NativeOutput(Label), serialize_output=True
        )
        done.append(json.dumps(event | {"answer": ask.execute({})}).encode())
    return done


async def at_once(messages: list[Message]) -> list[bytes]:
    """The hook's agent in one task."""
    agent = PydanticAIHook.get_hook("bench_model").create_agent(output_type=NativeOutput(Label), instructions="")
    turn = asyncio.Semaphore(64)

    async def ask(message: Message) -> bytes:
        event = json.loads(message.value() or b"")
        async with turn:
            answer = await agent.run(question(event))
        return json.dumps(event | {"answer": answer.output.model_dump()}).encode()

    return await asyncio.gather(*map(ask, messages))


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
consumer.subscribe([source])
began, messages = time.monotonic(), list[Message]()
while len(messages) < total:
    messages += [m for m in consumer.consume(256, 0.05) if m.error() is None]
for message, value in zip(messages, one_by_one(messages) if how == "operator" else asyncio.run(at_once(messages)), strict=True):
    producer.produce(target, value, message.key())
producer.flush()
consumer.commit(asynchronous=False)
consumer.close()
print(json.dumps({"seconds": time.monotonic() - began}))
