"""Promise 3 where the broker is the one that fails: killed or hanging in the middle of a window.

A lone broker that ends in the middle of a commit (Kafka 4.3.1) sometimes has CompleteCommit in its transaction log without the markers in
the partitions, seen as a last stable offset that stays where it is, or as a manifest that counts more records than can be read: often after
an orderly shutdown (SIGTERM), which is not tried here, seldom when it was killed, which counts as a third party's doing. No client can mend
that; readers of a manifest fail with a DataLossError, and those that wait with a DeadlineError. Other brokers take the partitions over in a
cluster.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from factory_agents.errors import DeadlineError, FactoryError
from tests.integration.test_promise_3_once import check_once
from tests.support import closing
from tests.support.runs import Runs, own_runs
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from factory_agents.sandbox import Sandbox

pytestmark = pytest.mark.slow

EVENTS = 2000


@pytest.fixture
def runs(own_sandbox: Sandbox, prefix: str) -> Iterator[Runs]:
    with own_runs(own_sandbox.info().bootstrap, prefix) as own:
        yield own


def killed(sandbox: Sandbox) -> None:
    pid = sandbox.kafka_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: sandbox.kafka_pid is None, "the broker's end")
    sandbox.up()


def hanging(sandbox: Sandbox) -> None:
    """Longer than a transaction of the test may last, so that it is over when the broker comes back."""
    pid = sandbox.kafka_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(8.0, os.kill, (pid, signal.SIGCONT)).start()


def transaction_never_ends(runs: Runs) -> bool:
    """Whether the ledger holds one that is open, which is longer ago than any may last."""
    topic = f"{runs.prefix}.ledger"
    partitions = range(runs.cluster.topic(topic).partitions)
    return runs.cluster.stable_offset(topic, partitions) != runs.cluster.high_watermark(topic, partitions)


@pytest.mark.parametrize(
    ("disturb", "timeout_ms"),
    [
        (killed, 20_000),
        (hanging, 5000),
        pytest.param(killed, 60_000, marks=pytest.mark.soak),
        pytest.param(killed, 5000, marks=pytest.mark.soak),
        pytest.param(hanging, 60_000, marks=pytest.mark.soak),
    ],
)
def test_a_window_survives_its_broker(runs: Runs, own_sandbox: Sandbox, disturb: Any, timeout_ms: int) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=100, deadline_seconds=60 + timeout_ms / 1000)
    disturbed: list[threading.Thread] = []

    def in_trouble(event: dict[str, Any]) -> dict[str, Any]:
        if event["event_id"] == EVENTS // 2 and not disturbed:
            disturbed.append(threading.Thread(target=disturb, args=(own_sandbox,)))
            disturbed[0].start()
        return event | {"seen": True}

    errors: list[FactoryError] = []
    result = None
    while result is None and len(errors) < 5:  # as an orchestrator retries
        try:
            result = runs.transform(run, in_trouble, config=runs.configured(transaction_timeout_ms=timeout_ms))
        except FactoryError as error:
            if isinstance(error, DeadlineError) and transaction_never_ends(runs):
                closing.met("kafka-lost-marker")
                return
            errors.append(error)
        disturbed[0].join()
    assert all(error.retriable for error in errors), errors
    assert result is not None, errors
    check_once(runs, run, result, range(EVENTS))
