"""The commit of a chunk, its request or its answer lost or held on the way: whatever the client believes, the ledger decides."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from factory_agents.errors import FactoryError
from factory_agents.kafka.config import KafkaConfig
from tests.chaos.kafka_proxy import END_TXN, PRODUCE, KafkaProxy
from tests.integration.test_promise_3_once import check_once
from tests.support.agents import mark
from tests.support.runs import Runs
from tests.support.waiting import wait_for

EVENTS, CHUNK = 200, 50
FATES: list[Any] = ["request lost", "answer lost"]


@pytest.fixture
def proxy(bootstrap: str) -> Iterator[KafkaProxy]:
    own = KafkaProxy(bootstrap)
    yield own
    own.close()


def through(proxy: KafkaProxy, **values: str) -> KafkaConfig:
    return KafkaConfig(proxy.bootstrap, {k.replace("_", "."): v for k, v in values.items()})


@pytest.mark.parametrize("nth", [1, 3, 4])
@pytest.mark.parametrize("fate", FATES)
def test_a_lost_commit_is_asked_again_and_counts_once(runs: Runs, proxy: KafkaProxy, fate: Any, nth: int) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    trouble = proxy.trouble(END_TXN, fate, nth)
    result = runs.transform(run, mark, config=through(proxy))
    assert trouble.came.is_set()
    check_once(runs, run, result, range(EVENTS))


@pytest.mark.parametrize("fate", FATES)
def test_lost_records_are_sent_again_and_count_once(runs: Runs, proxy: KafkaProxy, fate: Any) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    trouble = proxy.trouble(PRODUCE, fate, 2)
    result = runs.transform(run, mark, config=through(proxy))
    assert trouble.came.is_set()
    check_once(runs, run, result, range(EVENTS))


@pytest.mark.parametrize("fate", ["request held", "answer held"])
def test_an_attempt_killed_while_its_commit_is_on_the_way_is_completed(runs: Runs, proxy: KafkaProxy, fate: Any) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    trouble = proxy.trouble(END_TXN, fate, 3)
    attempt = runs.attempt(run, secrets={"KAFKA_BOOTSTRAP": proxy.bootstrap})
    wait_for(trouble.came.is_set, "the commit")
    attempt.signal(signal.SIGKILL)
    attempt.wait()
    result = runs.transform(run, mark)
    assert result.resumed
    trouble.release.set()
    check_once(runs, run, result, range(EVENTS))


def test_a_commit_that_arrives_after_a_newer_attempt_took_over_commits_nothing(runs: Runs, proxy: KafkaProxy) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    trouble = proxy.trouble(END_TXN, "request held", 3)
    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(runs.transform, run, mark, config=through(proxy))
        wait_for(trouble.came.is_set, "the commit")
        result = runs.transform(run, mark)
        trouble.release.set()
        with pytest.raises(FactoryError) as failed:
            older.result(60)
    assert failed.value.retriable
    check_once(runs, run, result, range(EVENTS))


@pytest.mark.parametrize("fate", ["request held", "answer held"])
def test_a_commit_held_past_the_transaction_timeout_is_settled_by_the_retry(runs: Runs, proxy: KafkaProxy, fate: Any) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    trouble = proxy.trouble(END_TXN, fate, 2)
    out = run.output_topic
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(runs.transform, run, mark, config=through(proxy, transaction_timeout_ms="1000"))
        wait_for(trouble.came.is_set, "the commit")
        ended = lambda: runs.cluster.stable_offset(out, range(4)) == runs.cluster.high_watermark(out, range(4))  # noqa: E731
        wait_for(ended, "the transaction to end")
        trouble.release.set()
        error = first.exception(120)
    assert error is None or (isinstance(error, FactoryError) and error.retriable), error
    check_once(runs, run, runs.transform(run, mark), range(EVENTS))
