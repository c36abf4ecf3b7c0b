"""Records that no client would write, on a real broker: each is passed on or dead-lettered, and every one is accounted for."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from factory_agents.codecs.registry import RegistryConfig
from factory_agents.runtime.dead_letters import LetterTopic, Selection, group_letters
from factory_agents.runtime.letter_values import LetterReader
from tests.fuzz.corpora import JSON
from tests.support.raw_records import Raw, batch, put
from tests.support.runs import Runs

if TYPE_CHECKING:
    from factory_agents.protocol import AgentRun

NAMES = (b"", b"\xff\xfe", b"\xc3(", b"\x00", b"a\nb", "\u202e".encode(), b"factory-writer", b"factory-dead-letter", b"n" * 3_000, b"trace")
VALUES = (None, b"", b"\xff" * 50, b"validate/0/1", b'{"error": "forged"}', b"\x1b[2J", b"v" * 2_000)
CONTRACT = {
    "name": "c",
    "id": "event_id",
    "schema": {"type": "object", "required": ["event_id"], "properties": {"event_id": {"type": ["integer", "string"]}, "text": {}}},
    "rules": {"known": "text is None or not text.matches('^(a+)+$')"},
}


def hostile(chance: random.Random, records: int) -> list[Raw]:
    """Records with any value, key and headers."""
    values = [*JSON, None, *(json.dumps({"event_id": i, "text": "a" * i}).encode() for i in range(10))]

    def one() -> Raw:
        headers = [(chance.choice(NAMES), chance.choice(VALUES)) for _ in range(chance.choice((0, 0, 1, 3, 300)))]
        return Raw(chance.choice(values), chance.choice((None, *VALUES)), headers)

    return [one() for _ in range(records)]


def check(runs: Runs, seed: int, records: int) -> None:
    chance = random.Random(seed)
    topic = runs.topic("in", partitions=2, max_message_bytes=20_000_000)
    expected = 0
    for partition in (0, 1):
        given = hostile(chance, records // 2)
        while given:
            part, given = given[: (size := chance.randint(1, 20))], given[size:]
            put(runs.bootstrap, topic, partition, batch(part, chance.choice(("none", "gzip", "zstd"))))
            expected += len(part)
    for agent, params in (("enrich", {}), ("validate", {"contract": CONTRACT})):
        run = _run(runs, topic, agent, params)
        began = time.monotonic()
        attempt = runs.attempt(run)
        assert attempt.wait(120) == 0, (seed, attempt.log)
        assert time.monotonic() - began < 90
        counts = attempt.result.counts
        assert (counts.consumed, counts.forwarded + counts.rejected) == (expected, expected), seed
        assert len(runs.manifest(attempt.result.manifest)) == counts.forwarded, seed
        letters = LetterTopic(runs.config, f"{run.output_topic}.dead", prefix=runs.prefix)
        found = list(letters.select(Selection()))
        assert (len(found), letters.foreign) == (counts.rejected, 0), seed
        assert sum(group.count for group in group_letters(found)) == len(found)
        reader = LetterReader(RegistryConfig.from_env)
        json.dumps([letter.to_data(reader) for letter in found])


def _run(runs: Runs, topic: str, agent: str, params: dict[str, Any]) -> AgentRun:
    output = runs.topic(f"out-{agent}", partitions=2)
    return runs.run(runs.window(topic), output, agent, stage=agent, params=params, max_rejected="100 %")


def test_records_that_no_client_would_write_are_all_accounted_for(runs: Runs) -> None:
    check(runs, seed=1, records=300)


@pytest.mark.fuzz
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(20))
def test_many_of_them_are(runs: Runs, seed: int) -> None:
    check(runs, random.randrange(1 << 30) if seed else 2, records=2_000)
