"""One client and one thread for all triggers of a cluster."""

from __future__ import annotations

import asyncio
import threading

import pytest

from airflow_provider_factory.clusters import SharedCluster, shared_cluster
from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster

MAIN, OTHER = KafkaConfig("127.0.0.1:1"), KafkaConfig("127.0.0.1:1", {"client.id": "other"})


def test_all_who_mean_the_same_cluster_share_one_until_the_last_leaves() -> None:
    with shared_cluster(MAIN) as first:
        with shared_cluster(KafkaConfig("127.0.0.1:1", {})) as second, shared_cluster(OTHER) as other:
            assert second is first
            assert other is not first
        with shared_cluster(MAIN) as third:
            assert third is first
    with shared_cluster(MAIN) as fresh:
        assert fresh is not first


def test_questions_are_asked_in_one_thread_with_one_client() -> None:
    def who(_: KafkaConfig, cluster: Cluster) -> tuple[int, int]:
        return threading.get_ident(), id(cluster)

    async def ask_all() -> set[tuple[int, int]]:
        with shared_cluster(MAIN) as shared:
            return set(await asyncio.gather(*(shared.ask(who) for _ in range(200))))

    answers = asyncio.run(ask_all())
    assert len(answers) == 1
    assert threading.get_ident() not in {thread for thread, _ in answers}


def test_a_cluster_that_does_not_answer_is_left_alone_for_a_while() -> None:
    times = iter((0.0, 0.0, 1.0, 4.9, 5.1, 5.1, 6.0))  # a question that is asked looks at the clock twice
    asked = []

    def down(*_: object) -> str:
        asked.append(True)
        raise UnavailableError("no broker answered")

    async def ask(shared: SharedCluster) -> None:
        with pytest.raises(UnavailableError, match="no broker answered"):
            await shared.ask(down)

    shared = SharedCluster(MAIN, clock=lambda: next(times))
    for _ in range(5):
        asyncio.run(ask(shared))
    shared.close()
    assert len(asked) == 2
    assert next(times, None) is None


def test_a_clients_surprise_is_waited_out_and_a_wrong_question_is_not() -> None:
    def surprise(*_: object) -> str:
        raise RuntimeError("handle destroyed")

    def wrong(*_: object) -> str:
        raise ConfigurationError("unknown topic")

    async def ask() -> None:
        with shared_cluster(MAIN) as shared:
            with pytest.raises(UnavailableError, match="RuntimeError: handle destroyed"):
                await shared.ask(surprise)
            with pytest.raises(ConfigurationError):
                await shared.ask(wrong)

    asyncio.run(ask())
