"""One client and few threads for all triggers of a cluster, and nobody held up by what is slow about somebody else's topic."""

from __future__ import annotations

import asyncio
import threading

import pytest

from airflow_provider_factory.clusters import Client, SharedCluster, shared_cluster
from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.kafka.config import KafkaConfig

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


def test_questions_about_one_topic_are_asked_one_after_the_other_with_one_client_and_not_by_the_loop() -> None:
    inside: list[int] = []

    def who(client: Client) -> tuple[bool, int, int]:
        inside.append(1)
        others = len(inside) - 1
        inside.pop()
        return threading.current_thread() is threading.main_thread(), others, id(client)

    async def ask_all() -> set[tuple[bool, int, int]]:
        with shared_cluster(MAIN) as shared:
            return set(await asyncio.gather(*(shared.ask("t", who) for _ in range(200))))

    assert [answer[:2] for answer in asyncio.run(ask_all())] == [(False, 0)]


def test_what_is_slow_holds_up_nobody_else() -> None:
    """Questions about a topic whose leader hangs, and as many as there may be that read records: others are answered meanwhile."""
    go = threading.Event()

    def slow(_: Client) -> str:
        assert go.wait(30)
        return "slow"

    async def ask_all() -> tuple[list[str], list[str]]:
        with shared_cluster(MAIN) as shared:
            waiting = [shared.ask("sick", slow) for _ in range(20)] + [shared.read(slow) for _ in range(20)]
            held_up = [asyncio.ensure_future(each) for each in waiting]
            await asyncio.sleep(0)
            quick = await asyncio.gather(*(shared.ask(f"well-{n % 5}", lambda _: "quick") for n in range(50)))
            assert not any(each.done() for each in held_up)
            go.set()
            return quick, await asyncio.gather(*held_up)

    quick, slow_ones = asyncio.run(ask_all())
    assert (quick, slow_ones) == (["quick"] * 50, ["slow"] * 40)


def test_a_cluster_that_does_not_answer_is_left_alone_for_a_while() -> None:
    times = iter((0.0, 0.0, 1.0, 1.9, 2.1, 2.1, 3.0))  # a question that is asked looks at the clock twice
    asked = []

    def down(*_: object) -> str:
        asked.append(True)
        raise UnavailableError("no broker answered")

    async def ask(shared: SharedCluster) -> None:
        with pytest.raises(UnavailableError, match="no broker answered"):
            await shared.ask("t", down)

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
                await shared.ask("t", surprise)
            with pytest.raises(ConfigurationError):
                await shared.ask("t", wrong)

    asyncio.run(ask())
