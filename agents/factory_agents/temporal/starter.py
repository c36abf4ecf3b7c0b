"""Starts a pipeline for each event of a topic, once, or tells its collector of all; positions are committed once the server has it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from temporalio.client import Client

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.kafka.config import KafkaConfig, kafka_error
from factory_agents.kafka.messages import Message, readable_headers
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import Interval
from factory_agents.telemetry import fields
from factory_agents.telemetry.trace_context import TRACEPARENT
from factory_agents.temporal.client import RefusedError, announce, start
from factory_agents.temporal.protocol import Arrived, CollectRequest, PipelineRequest, PipelineSpec
from factory_agents.temporal.traces import within

__all__ = ["request_of", "run_starter"]

log = logging.getLogger(__name__)

_AT_ONCE, _TOLD_AT_ONCE = 50, 5000
_POLL_SECONDS, _PATIENCE, _CHECK_SECONDS = 0.5, 1.0, 2.0
_ANSWER_SECONDS = 5.0
_LONGEST_ID = 200
_PASSING = (KafkaError._PARTITION_EOF, KafkaError._MAX_POLL_EXCEEDED)


class _Event(msgspec.Struct):
    """What is read of an event; the rest is its agent's business."""

    event_id: Any = None
    window: Any = None


def request_of(spec: PipelineSpec, message: Message, topic_id: str = "") -> PipelineRequest:
    """What an event asks for: the pipeline over its ``window`` (``{"start": …, "end": …}``) or, without one, over all that has come since
    the last window, under the event's id, else its place: its coordinates and the topic's id, as a topic that is created again has the
    same ones once more. Raises ConfigurationError for a window that is none.
    """
    name = f"{message.topic()}-{message.partition()}-{message.offset()}" + (f"-{topic_id}" if topic_id else "")
    try:
        event = msgspec.json.decode(message.value() or b"", type=_Event)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return PipelineRequest(spec, key=name)
    if event.window is not None:
        try:
            return PipelineRequest(spec, msgspec.convert(event.window, Interval))
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"window: expected its start and end: {error}") from None
    id_ = str(event.event_id) if isinstance(event.event_id, str | int) and not isinstance(event.event_id, bool) else ""
    if 0 < len(id_) <= _LONGEST_ID:
        with suppress(ConfigurationError):  # it can name no window
            return PipelineRequest(spec, key=id_)
    return PipelineRequest(spec, key=name)


async def run_starter(
    client: Client,
    spec: PipelineSpec,
    config: KafkaConfig,
    *,
    topic: str,
    group: str,
    stop: asyncio.Event,
    collect: CollectRequest | None = None,
) -> None:
    """Follow the topic until ``stop``. Whatever dies meanwhile, each event starts one workflow: one that is seen again finds its own.

    With ``collect`` the pipeline's collector is told of the events instead, and counts each once.

    Raises a FactoryError where the topic can't be read, was created again meanwhile, or the server refuses this client; one that doesn't
    answer is waited for.
    """
    with Cluster(config) as cluster:
        id_ = (await asyncio.to_thread(cluster.topic, topic)).id
    if collect is None:
        at_once, accept = _AT_ONCE, partial(_start_all, client, spec, id_)
    else:
        at_once, accept = _TOLD_AT_ONCE, partial(_announce, client, collect, id_)
    consumer = config.consumer(group_id=group, auto_offset_reset="earliest")
    try:
        consumer.subscribe([topic])
        log.info("listening", extra=fields(topic=topic, group=group, pipeline=spec.pipeline))
        with Cluster(config, timeout=_ANSWER_SECONDS) as cluster:
            same, checked = partial(_is_same, cluster, topic, id_, stop), time.monotonic()
            while not stop.is_set():
                messages = _read(await asyncio.to_thread(consumer.consume, at_once, _POLL_SECONDS), topic)
                if messages or time.monotonic() > checked + _CHECK_SECONDS:
                    if not await same():
                        break
                    checked = time.monotonic()
                if messages and await accept(messages, stop):
                    failpoints.hit("starter.before-commit")
                    if await same():
                        await asyncio.to_thread(_commit, consumer, messages)
    finally:
        consumer.close()


async def _is_same(cluster: Cluster, topic: str, id_: str, stop: asyncio.Event) -> bool:
    """Whether the topic is the one that is followed; False where it is time to go before Kafka says so. Raises where it is another.

    One that was created again has the old one's places once more, and Kafka has forgotten positions in it: without an answer, no event
    may be named by its place, and no position committed.
    """
    outage = False
    while True:
        try:
            found = (await asyncio.to_thread(cluster.topic, topic)).id
        except UnavailableError as error:
            if not outage:
                log.warning("Kafka does not answer; trying again: %s", error)
            outage = True
            if await _stopped(stop):
                return False
        else:
            break
    if found != id_:
        raise UnavailableError(f"topic {topic!r} was deleted and created again while it was followed; start again, with its first event")
    if outage:
        log.info("Kafka answers again")
    return True


def _read(found: Sequence[Any], topic: str) -> list[Message]:
    messages = []
    for message in cast("Sequence[Message]", found):
        error = message.error()
        if error is None:
            messages.append(message)
        elif error.code() not in _PASSING and not error.retriable():
            raise kafka_error(error, f"reading {topic}", topic=f"READ on topic {topic!r}", group="READ on the group")
    return messages


def _ranges(messages: Iterable[Message]) -> dict[int, tuple[int, int]]:
    ranges: dict[int, tuple[int, int]] = {}
    for message in messages:
        partition, offset = message.partition() or 0, message.offset() or 0
        ranges[partition] = (ranges.get(partition, (offset, 0))[0], offset + 1)
    return ranges


async def _announce(client: Client, request: CollectRequest, topic_id: str, messages: Iterable[Message], stop: asyncio.Event) -> bool:
    """Tell the collector; False where it is time to go before the server has it."""
    word = Arrived(_ranges(messages), topic_id)
    while True:
        try:
            await announce(client, request, word)
        except UnavailableError as error:
            log.warning("the server does not take signals; trying again: %s", error)
            if await _stopped(stop):
                return False
        else:
            return True


async def _stopped(stop: asyncio.Event) -> bool:
    """Wait a moment; whether it is time to go."""
    try:
        await asyncio.wait_for(stop.wait(), _PATIENCE)
    except TimeoutError:
        return False
    return True


async def _start_all(client: Client, spec: PipelineSpec, topic_id: str, messages: Iterable[Message], stop: asyncio.Event) -> bool:
    """Start what is not started yet; False where it is time to go before the server has all of it."""
    waiting = list(messages)
    while waiting:
        done = await asyncio.gather(*(_start(client, spec, topic_id, message) for message in waiting))
        waiting = [message for message, accepted in zip(waiting, done, strict=True) if not accepted]
        if waiting:
            log.warning("the server does not take starts; trying again", extra=fields(events=len(waiting)))
            if await _stopped(stop):
                return False
    return True


async def _start(client: Client, spec: PipelineSpec, topic_id: str, message: Message) -> bool:
    """Whether the event is done with; raises RefusedError where the server takes no event at all."""
    where = f"{message.topic()}-{message.partition()}@{message.offset()}"
    try:
        with within(client, next((value for name, value in readable_headers(message) if name == TRACEPARENT), None)):
            handle = await start(client, request_of(spec, message, topic_id))
        log.info("started", extra=fields(workflow=handle.id, event=where))
    except UnavailableError:
        return False
    except RefusedError:
        raise
    except FactoryError as error:
        log.error("no workflow can be started for an event: %s", error, extra=fields(event=where))
    return True


def _commit(consumer: Consumer, messages: Iterable[Message]) -> None:
    ends: dict[tuple[str, int], int] = {}
    for message in messages:
        ends[str(message.topic()), message.partition() or 0] = (message.offset() or 0) + 1
    try:
        consumer.commit(offsets=[TopicPartition(topic, partition, end) for (topic, partition), end in ends.items()], asynchronous=False)
    except KafkaException as error:
        log.info("positions are not committed, their events will be seen again: %s", error.args[0].str())
