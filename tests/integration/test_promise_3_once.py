"""Promise 3: the outputs of a fingerprint are committed once, with the ledger record that speaks of them, whatever dies in between."""

from __future__ import annotations

import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from factory_agents.errors import AgentCrashedError, DeadlineError, FencedError, StoppedError
from factory_agents.kafka.ledger import Ledger, StageRecord
from factory_agents.protocol import AgentRun, Shard, Window, merge_results, shard_window
from tests.support.agents import mark
from tests.support.observers import Recorder
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

EVENTS, CHUNK = 400, 100

KILL_POINTS = [
    "start.after-init@1",
    "chunk.after-read@1",
    "chunk.after-read@9",
    "chunk.after-produce@1",
    "chunk.after-produce@9",
    "chunk.before-ledger@1",
    "chunk.before-ledger@3",
    "chunk.before-commit@1",
    "chunk.before-commit@4",
    "chunk.after-commit@1",
    "chunk.after-commit@4",
]


def kill(point: str) -> str:
    name, _, nth = point.partition("@")
    return f"{name}=kill@{nth}"


def record_of(runs: Runs, run: AgentRun) -> StageRecord | None:
    """What is in the ledger of a run."""
    view = Ledger(runs.config, runs.cluster, prefix=run.prefix, pipeline=run.pipeline).read(deadline=time.monotonic() + 30)
    found = [r for r in view.of(StageRecord) if (r.stage, r.window, r.shard) == (run.stage, run.key, run.shard)]
    return found[-1] if found else None


def check_once(runs: Runs, run: AgentRun, result: Any, ids: Any = range(EVENTS)) -> None:
    """Each event of the window is in the manifest once, with its content, and nothing else was ever committed."""
    records = runs.manifest(result.manifest)
    assert sorted(r.id for r in records) == list(ids)
    assert all(r.event == {"event_id": r.id, "text": f"event {r.id}", "seen": True} for r in records)
    assert len(runs.everything(run.output_topic)) == len(records)
    assert result.counts.consumed == result.counts.forwarded == result.counts.produced == len(records)
    found = record_of(runs, run)
    assert found is not None
    assert found.result is not None
    assert found.result.manifest == result.manifest


@pytest.mark.parametrize("point", KILL_POINTS)
def test_an_attempt_killed_anywhere_is_completed_by_the_next_one(runs: Runs, point: str) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    runs.killed(run, kill(point))
    check_once(runs, run, runs.transform(run, mark))


@pytest.mark.parametrize("seed", range(4))
def test_attempts_killed_at_random_again_and_again_lose_and_double_nothing(runs: Runs, seed: int) -> None:
    hammer(runs, random.Random(seed), rounds=3)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 117))
def test_many_attempts_killed_at_random(runs: Runs, seed: int) -> None:
    hammer(runs, random.Random(seed), rounds=3)


def hammer(runs: Runs, rng: random.Random, rounds: int) -> None:
    chunk = rng.choice([7, 50, 100, 1000])
    name = rng.choice(["mark_by_calls", "mark"])  # one by one, or with calls in flight beyond each commit
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), f"tests.support.agents:{name}", chunk_records=chunk)
    points = sorted({p.partition("@")[0] for p in KILL_POINTS})
    for _ in range(rounds):
        attempt = runs.attempt(run, f"{rng.choice(points)}=kill@{rng.randint(1, 5)}")
        assert attempt.wait() in (0, -signal.SIGKILL), attempt.log
    check_once(runs, run, runs.finished(run))


@pytest.mark.parametrize("point", ["chunk.after-read@9", "chunk.after-produce@9", "chunk.before-ledger@2", "chunk.before-commit@2"])
def test_a_zombie_that_wakes_after_its_successor_is_done_is_fenced_and_commits_nothing(runs: Runs, point: str) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    zombie = runs.attempt(run, kill(point).replace("kill", "stop"))
    zombie.wait_stopped()
    result = runs.transform(run, mark)
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == 75, zombie.log
    assert zombie.result.error is not None
    assert zombie.result.error.type == "FencedError"
    assert zombie.result.error.retriable
    check_once(runs, run, result)


def test_a_zombie_stopped_past_the_transaction_timeout_is_fenced_by_another_version_too(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    zombie = runs.attempt(run, "chunk.before-commit=stop@2", transaction_timeout_ms=1000)
    zombie.wait_stopped()
    out = run.output_topic
    wait_for(lambda: runs.cluster.stable_offset(out, range(4)) == runs.cluster.high_watermark(out, range(4)), "the transaction to expire")
    other = msgspec.structs.replace(run, agent=msgspec.structs.replace(run.agent, version="another"))
    result = runs.transform(other, mark)
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == 75, zombie.log
    assert sorted(r.id for r in runs.manifest(result.manifest)) == list(range(EVENTS))
    found = record_of(runs, run)
    assert found is not None
    assert found.answer() == result
    # and when the orchestrator still tries the old version again, it is redone
    again = runs.transform(run, mark)
    assert again.generation > result.generation
    assert sorted(r.id for r in runs.manifest(again.manifest)) == list(range(EVENTS))


def test_a_zombie_that_had_only_fenced_and_not_yet_read_the_ledger_finds_the_work_done(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    zombie = runs.attempt(run, "start.after-init=stop")
    zombie.wait_stopped()
    result = runs.transform(run, mark)
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == 0, zombie.log
    assert zombie.result.reused
    check_once(runs, run, result)


def test_a_transaction_that_outlived_its_timeout_is_retried_by_the_orchestrator(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    attempt = runs.attempt(run, "chunk.before-commit=stop@2", transaction_timeout_ms=1000)
    attempt.wait_stopped()
    out = run.output_topic
    wait_for(lambda: runs.cluster.stable_offset(out, range(4)) == runs.cluster.high_watermark(out, range(4)), "the transaction to expire")
    attempt.signal(signal.SIGCONT)
    assert attempt.wait() == 75, attempt.log
    assert attempt.result.error is not None
    assert "s, longer than transaction.timeout.ms=1000 allows: the broker gave it up" in attempt.result.error.message
    result = runs.finished(run)
    assert result.resumed
    check_once(runs, run, result)


def test_two_attempts_at_once_make_one_output(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=20)
    attempts = [runs.attempt(run), runs.attempt(run)]
    codes = sorted(a.wait() for a in attempts)
    assert codes in ([0, 0], [0, 75]), "\n".join(a.log for a in attempts)
    check_once(runs, run, next(a.result for a in attempts if a.process.returncode == 0))


def test_an_aborted_chunk_takes_a_new_producer_unless_a_newer_attempt_took_over(runs: Runs) -> None:
    """Aborting tells a zombie that it is one: it must not fence its successor back."""
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=CHUNK)
    seen: list[int] = []

    def overtaken(event: dict[str, Any]) -> dict[str, Any]:
        seen.append(event["event_id"])
        if len(seen) == 150:  # in the middle of the second chunk, the first part of which is sent already
            newer.append(runs.transform(run, mark))
        return event | {"seen": True}

    newer: list[Any] = []
    with pytest.raises(FencedError):
        runs.transform(run, overtaken)
    check_once(runs, run, newer[0])


def test_parallel_runs_of_different_pipelines_stages_windows_and_shards_do_not_meet(runs: Runs) -> None:
    out = runs.topic("out")
    window = runs.filled(EVENTS)
    shards = shard_window(window, 2)
    all_runs = [
        runs.run(shards[0], out, shard=Shard(0, 2), chunk_records=30),
        runs.run(shards[1], out, shard=Shard(1, 2), chunk_records=30),
        runs.run(window, out, stage="other", chunk_records=30),
        runs.run(msgspec.structs.replace(window, name="v"), out, chunk_records=30),
        runs.run(window, out, pipeline=f"{runs.prefix}-b", chunk_records=30),
    ]
    with ThreadPoolExecutor(len(all_runs)) as pool:
        results = list(pool.map(runs.transform, all_runs))
    first, second, *whole = [sorted(r.id for r in runs.manifest(result.manifest)) for result in results]
    assert sorted(first + second) == list(range(EVENTS))
    assert whole == [list(range(EVENTS))] * 3


def test_interleaved_shards_form_the_next_window_without_loss_or_doubles(runs: Runs) -> None:
    out, final = runs.topic("out", partitions=1), runs.topic("final")
    shards = shard_window(runs.filled(EVENTS), 4)
    work = [runs.run(w, out, shard=Shard(i, 4), chunk_records=10) for i, w in enumerate(shards)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(runs.transform, work))
    window = merge_results(results)
    assert len(window.ranges) == 1
    result = runs.transform(runs.run(window, final, stage="next"))
    check_once(runs, runs.run(window, final, stage="next"), result)
    assert result.counts.skipped == 0


def test_a_large_window_resumes_in_the_middle_with_the_counts_of_the_whole(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=50)
    seen: list[int] = []

    def once_broken(event: dict[str, Any]) -> dict[str, Any]:
        seen.append(event["event_id"])
        if len(seen) == 220:
            raise MemoryError
        return event | {"seen": True}

    with pytest.raises(AgentCrashedError, match="out of memory"):
        runs.transform(run, once_broken)
    found = record_of(runs, run)
    assert found is not None
    assert found.progress is not None
    assert found.progress.counts.consumed == 200
    assert len(runs.everything(run.output_topic)) == 200
    before = len(seen)
    result = runs.transform(run, once_broken)
    assert result.resumed
    assert len(seen) - before == EVENTS - 200
    check_once(runs, run, result)


def test_an_agent_slower_than_the_transaction_timeout_succeeds(runs: Runs) -> None:
    """The transaction of what came before is committed while the agent is busy."""
    run = runs.run(runs.filled(40, partitions=1), runs.topic("out"))
    observed = Recorder()

    def slow(event: dict[str, Any]) -> dict[str, Any]:
        if event["event_id"] == 30:
            wait_for(lambda: observed.commits, "what was handled before to be committed")
            runs.outlast_a_transaction()
        return event | {"seen": True}

    config = runs.configured(transaction_timeout_ms=1000)
    result = runs.transform(run, slow, config=config, observer=observed)
    assert observed.commits[0] < 30
    check_once(runs, run, result, range(40))


def test_an_agent_slow_at_every_event_succeeds_and_commits_on_its_way(runs: Runs) -> None:
    run = runs.run(runs.filled(12, partitions=1), runs.topic("out"))
    observed = Recorder()

    def slow(event: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.25)
        return event | {"seen": True}

    config = runs.configured(transaction_timeout_ms=1000)
    result = runs.transform(run, slow, config=config, observer=observed)
    assert len(observed.commits) > 3
    check_once(runs, run, result, range(12))


def test_a_window_that_waits_for_somebody_elses_transaction_keeps_none_of_its_own_open(runs: Runs) -> None:
    """Else it would expire while the other one is waited for."""
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, events(10))
    foreign = Producer({"bootstrap.servers": runs.bootstrap, "transactional.id": f"{runs.prefix}.foreign", "log_level": 0})
    foreign.init_transactions(30)
    foreign.begin_transaction()
    foreign.produce(topic, events(1, 10)[0], partition=0)
    foreign.flush(60)
    run = runs.run(runs.window(topic), runs.topic("out"))
    observed = Recorder()

    def end_later() -> None:
        wait_for(lambda: observed.commits, "what comes before it to be committed")
        runs.outlast_a_transaction()  # of our own
        foreign.commit_transaction(10)

    thread = threading.Thread(target=end_later)
    thread.start()
    config = runs.configured(transaction_timeout_ms=1000)
    result = runs.transform(run, config=config, observer=observed)
    thread.join()
    assert observed.commits[0] == 10
    check_once(runs, run, result, range(11))


def test_sigterm_commits_what_is_handled_and_the_retry_goes_on_from_there(runs: Runs) -> None:
    run = runs.run(runs.filled(40, partitions=1), runs.topic("out"))
    asked, released, answered = threading.Event(), threading.Event(), threading.Event()

    def busy(event: dict[str, Any]) -> dict[str, Any]:
        if event["event_id"] == 30:
            asked.set()
            released.wait(60)
            answered.set()
        return event | {"seen": True}

    with pytest.raises(StoppedError) as stopped:
        runs.transform(run, busy, stop=asked.is_set)
    assert not answered.is_set(), "the call was waited for"
    released.set()
    assert stopped.value.retriable
    done = len(runs.everything(run.output_topic))
    assert 0 < done < 40
    result = runs.transform(run, mark)
    assert result.resumed
    check_once(runs, run, result, range(40))


def test_a_process_asked_to_stop_by_sigterm_or_a_closed_input_ends_with_75(runs: Runs) -> None:
    run = runs.run(runs.filled(EVENTS), runs.topic("out"), chunk_records=20)
    for ask in ("signal", "input"):
        attempt = runs.attempt(run, "chunk.after-commit=stop@3")
        attempt.wait_stopped()
        if ask == "signal":
            attempt.signal(signal.SIGTERM)
        else:
            assert attempt.process.stdin is not None
            attempt.process.stdin.close()
        attempt.signal(signal.SIGCONT)
        code = attempt.wait()
        assert code == 75, attempt.log
        assert attempt.result.error is not None
        assert attempt.result.error.type == "StoppedError"
    result = runs.finished(run)
    assert result.resumed
    check_once(runs, run, result)


def test_running_out_of_time_is_a_failure_that_a_retry_resumes(runs: Runs) -> None:
    run = runs.run(runs.filled(40, partitions=1), runs.topic("out"), deadline_seconds=2.0)

    def slow(event: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.3)
        return event | {"seen": True}

    with pytest.raises(DeadlineError):
        runs.transform(run, slow)
    assert 0 < len(runs.everything(run.output_topic)) < 40
    result = runs.transform(msgspec.structs.replace(run, deadline_seconds=0.0), mark)
    assert result.resumed
    check_once(runs, run, result, range(40))


def test_a_window_without_records_is_done_and_says_so(runs: Runs) -> None:
    topic = runs.topic("in")
    run = runs.run(Window(runs.prefix, topic, runs.cluster.topic(topic).id, (), name="empty"), runs.topic("out"))
    result = runs.transform(run)
    assert result.manifest is not None
    assert (result.counts.consumed, result.manifest.ranges) == (0, ())
    assert runs.transform(run).reused
