"""A window that breaks is told of once, whoever notices, and once more when it is whole; whoever dies in between is replaced."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from factory_agents.kafka.alerts import AlertLog, Happening, Standing, standing
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import Ledger
from factory_agents.kafka.records import AlertRecord
from factory_agents.kafka.view import LedgerView
from tests.support.runs import ROOT, Runs


def records(*what: str) -> list[AlertRecord]:
    """``failed``, or ``sent 0``: of the record with that number."""
    found = []
    for i, text in enumerate(what):
        kind, _, of = text.partition(" ")
        found.append(AlertRecord(pipeline="p", window="w", id=str(i), what=kind, at=100 + i, of=of))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("what", "telling"),
    [
        (["failed"], {"failed": "0"}),
        (["failed", "failed"], {"failed": "0"}),
        (["failed", "sent 0", "failed"], {}),
        (["failed", "sent 0", "late"], {}),  # it is known to be broken
        (["failed", "late"], {"failed": "0"}),
        (["late", "sent 0", "failed"], {"failed": "2"}),  # says why
        (["failed", "sent 0", "whole"], {"whole": "2"}),
        (["failed", "sent 0", "whole", "failed"], {"whole": "2", "failed": "3"}),
        (["whole"], {}),
        (["warned", "sent 0", "whole"], {}),
        (["warned", "sent 0", "warned"], {}),
        (["failed", "failed 0"], {"failed": "1"}),
        (["failed", "failed 0", "failed 0"], {"failed": "1"}),
        (["failed", "failed 0", "sent 0"], {"failed": "1"}),  # it had not died: told twice
    ],
)
def test_who_is_to_send_what(what: list[str], telling: dict[str, str]) -> None:
    assert dict(standing(records(*what)).telling) == telling


def test_what_is_told_at_the_end_says_since_when_and_how_often() -> None:
    assert standing(records("late", "sent 0", "failed", "failed", "sent 2")) == Standing(100, 3, frozenset({"late", "failed"}))


@example(["failed", "whole", "failed", "whole"])
@example(["failed", "send", "whole", "warned", "whole", "send", "send"])
@given(st.lists(st.sampled_from(["failed", "late", "warned", "whole", "send", "die"]), max_size=30))
def test_between_two_ends_nothing_is_told_twice_and_what_is_told_is_told_again(steps: list[str]) -> None:
    """Senders send or die in any order; whoever comes after one that died takes over."""
    log: list[AlertRecord] = []
    told: list[str] = []
    dead: set[str] = set()
    broken = told_of_it = False
    for i, step in enumerate(steps):
        now = standing(log)
        if step in ("send", "die"):
            for what, sender in now.telling.items():
                if step == "die":
                    dead.add(sender)
                elif sender not in dead:
                    assert what not in told or what == "whole"
                    told = [] if what == "whole" else [*told, what]
                    log.append(AlertRecord(pipeline="p", window="w", id=str(i), what="sent", at=i, of=sender))
                    break
            continue
        if step == "whole":
            told_of_it = told_of_it or broken
            told, broken = [], False
        broken = broken or step in ("failed", "late")
        of = now.telling.get(step, "")
        taken_over = of if of in dead else ""
        log.append(AlertRecord(pipeline="p", window="w", id=str(i), what=step, at=i + 1, of=taken_over))  # type: ignore[arg-type]
        after = standing(log)
        if step != "whole":
            assert step in after.told or step in after.telling or (step == "late" and {"failed"} & {*after.told, *after.telling})
            assert after.telling.get(step) not in dead
        assert bool(after.since) == broken


def say(bootstrap: str, prefix: str, what: Happening, who: str, lease: float = 60) -> bool:
    log = AlertLog(KafkaConfig(bootstrap), pipeline=prefix, window="w", prefix=prefix, lease=lease)
    return log.say(what, who, lambda _: None)


def _several(bootstrap: str, prefix: str, who: int) -> int:
    with ThreadPoolExecutor(10) as pool:
        return sum(pool.map(lambda i: say(bootstrap, prefix, "failed", f"task[{who * 10 + i}]"), range(10)))


def left(runs: Runs) -> list[AlertRecord]:
    view: LedgerView = Ledger(runs.config, runs.cluster, prefix=runs.prefix, pipeline=runs.prefix).read(deadline=1e12)
    return view.of(AlertRecord)


def test_forty_shards_that_fail_in_four_processes_are_one_message_and_one_when_it_is_over(runs: Runs) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        counts = pool.starmap(_several, [(runs.bootstrap, runs.prefix, i) for i in range(4)])
    assert sum(counts) == 1
    assert len(left(runs)) == 41
    stood: list[Standing] = []
    log = AlertLog(runs.config, pipeline=runs.prefix, window="w", prefix=runs.prefix)
    assert log.say("whole", "run", stood.append)
    assert stood[0].times == 40
    assert stood[0].since > 0
    assert not left(runs), "nothing is left of it"
    assert not log.say("whole", "run", stood.append)
    assert not left(runs), "a window that was not broken leaves nothing"
    assert say(runs.bootstrap, runs.prefix, "failed", "task[0]"), "broken again, told again"


def test_other_windows_and_pipelines_are_told_of_by_themselves(runs: Runs) -> None:
    for pipeline, window in ((runs.prefix, "w"), (runs.prefix, "v"), (f"{runs.prefix}2", "w")):
        log = AlertLog(runs.config, pipeline=pipeline, window=window, prefix=runs.prefix)
        assert [log.say("failed", "t", lambda _: None) for _ in range(2)] == [True, False]


_DIES = """
import sys
from tests.agents.kafka.test_alerts import say
say(sys.argv[1], sys.argv[2], "failed", "the one that dies")
"""


def killed_sender(runs: Runs) -> None:
    died = subprocess.run(
        [sys.executable, "-c", _DIES, runs.bootstrap, runs.prefix],
        env={"FACTORY_FAILPOINTS": "alert.before-tell=kill", "PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent)},
        cwd=ROOT,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL


def test_one_of_those_who_come_after_a_sender_that_was_killed_sends_it(runs: Runs) -> None:
    killed_sender(runs)
    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(lambda i: say(runs.bootstrap, runs.prefix, "failed", f"task[{i}]", lease=6), range(10))) == 1
    assert not say(runs.bootstrap, runs.prefix, "failed", "later")


def test_a_message_that_could_not_be_sent_is_left_to_the_next_one(runs: Runs) -> None:
    def refused(_: Standing) -> None:
        raise ConnectionError("no Slack today")

    log = AlertLog(runs.config, pipeline=runs.prefix, window="w", prefix=runs.prefix, lease=0.1)
    with pytest.raises(ConnectionError, match="no Slack today"):
        log.say("failed", "t", refused)
    assert log.say("failed", "t", lambda _: None)


def test_whoever_comes_while_the_message_is_sent_waits_and_sends_nothing(runs: Runs) -> None:
    sending, go_on = threading.Event(), threading.Event()

    def slowly(_: Standing) -> None:
        sending.set()
        assert go_on.wait(60)

    log = AlertLog(runs.config, pipeline=runs.prefix, window="w", prefix=runs.prefix)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(log.say, "failed", "first", slowly)
        assert sending.wait(60)
        second = pool.submit(log.say, "failed", "second", lambda _: None)
        assert not second.done()
        go_on.set()
        assert (first.result(60), second.result(60)) == (True, False)
