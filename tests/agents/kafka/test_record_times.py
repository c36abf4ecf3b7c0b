"""What a person reads who asked for an interval in which a topic has no records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from confluent_kafka import Producer

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.record_times import why_empty
from factory_agents.protocol import Interval
from tests.support.runs import Runs

FIRST = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=6)  # younger than any retention
LAST = FIRST + timedelta(hours=1)
ASKED = Interval(datetime(2018, 6, 5, 8, tzinfo=UTC), datetime(2018, 6, 5, 9, tzinfo=UTC))


def test_the_newest_record_is_told_not_the_transaction_that_wrote_it(runs: Runs) -> None:
    topic = runs.topic("in")
    producer = Producer({"bootstrap.servers": runs.bootstrap, "transactional.id": f"{topic}.writer", "log_level": 0})
    producer.init_transactions()
    producer.begin_transaction()
    for partition, moment in enumerate((FIRST, LAST)):
        producer.produce(topic, b"{}", partition=partition, timestamp=int(moment.timestamp() * 1000))
    producer.commit_transaction()
    hint = why_empty(runs.config, topic, ASKED)
    assert f"topic '{topic}' has no records from 2018-06-05T08:00:00+00:00 to 2018-06-05T09:00:00+00:00: " in hint
    assert f"those that it holds are of {FIRST.isoformat()} to {LAST.isoformat()}. " in hint


def test_there_is_no_hint_without_a_record_or_an_answer(runs: Runs) -> None:
    assert why_empty(runs.config, runs.topic("in"), ASKED) == ""
    assert why_empty(runs.config, f"{runs.prefix}.none", ASKED) == ""
    assert why_empty(KafkaConfig("127.0.0.1:1"), "t", ASKED) == ""
