"""Headers of records, hostile ones included."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import factory_agents
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.messages import UNREADABLE_HEADERS, Message, drop_headers, headers_of, readable_headers
from tests.conftest import TopicFactory
from tests.support.log import reading, window_over
from tests.support.raw_records import Raw, batch, put


def test_names_that_are_no_utf8_cost_a_record_its_headers_and_nothing_else(bootstrap: str, topic: TopicFactory) -> None:
    name, config = topic(partitions=1), KafkaConfig(bootstrap)
    hostile = [
        Raw(b"1", b"k", [(b"ok", b"a"), (b"\xff\xfe", b"b"), (b"\x80", None)]),
        Raw(b"2", None, [(b"\xed\xa0\x80", b"half a surrogate")]),
    ]
    fine = [Raw(b"3", None, [(b"\xc3\xa9", b"\xff"), (b"", None), (b"a\0b", b"")]), Raw(b"4")]
    put(bootstrap, name, 0, batch(hostile + fine))
    messages: list[Message] = []
    with reading(config, window_over(config, name, {0: 4})) as reader:
        reader.seek({}, {})
        while not reader.done:
            messages += reader.batch(10, time.monotonic() + 30, lambda: False)
    gc.freeze()  # what the whole session holds need not be walked 200 times
    for _ in range(200):  # a second look at what the client made of them would crash
        assert [readable_headers(m) for m in messages] == [[], [], [("é", b"\xff"), ("", None), ("a", b"")], []]
        gc.collect()
    gc.unfreeze()
    assert [(m.key(), m.value()) for m in messages] == [(b"k", b"1"), (None, b"2"), (None, b"3"), (None, b"4")]


def test_they_are_told_where_the_interpreter_has_specialized_the_call(bootstrap: str, topic: TopicFactory) -> None:
    name, config = topic(partitions=1), KafkaConfig(bootstrap)
    put(bootstrap, name, 0, batch([Raw(b"", None, [(b"ok", b"1")])] * 500 + [Raw(b"", None, [(b"\xff", b"1"), (b"ok", b"2")])] * 10))
    with reading(config, window_over(config, name, {0: 510})) as reader:
        reader.seek({}, {})
        messages: list[Message] = []
        while not reader.done:
            messages += reader.batch(1000, time.monotonic() + 30, lambda: False)
    unreadable = 0
    for message in messages:
        try:
            headers_of(message)
        except UNREADABLE_HEADERS:
            drop_headers(message)
            unreadable += 1
    assert unreadable == 10


def test_nothing_calls_the_method_itself() -> None:
    source = Path(factory_agents.__file__).parent
    assert [p for p in source.rglob("*.py") if ".headers()" in p.read_text()] == []
