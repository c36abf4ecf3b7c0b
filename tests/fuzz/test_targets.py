"""Whatever bytes come from elsewhere, only the project's own errors come out, in bounded time and memory.

``make soak`` tries many (``FUZZ_EXAMPLES`` for each target); ``make test`` what is in the corpora, and a few more, always the same.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.corpora import mutated
from tests.fuzz.targets import TARGETS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5000"))
SECONDS, MEGABYTES = 10.0, 400
"""The most that one input may take, beside what the process has already."""


def megabytes(name: str) -> int:
    """How much memory this process has now (``VmRSS``), or had at most since it was asked last (``VmHWM``)."""
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) // 1024


@contextmanager
def bounded() -> Iterator[None]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before, began = megabytes("VmRSS"), time.process_time()
    yield
    assert time.process_time() - began < SECONDS
    assert megabytes("VmHWM") - before < MEGABYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_hostile_on_purpose(name: str) -> None:
    take, corpus = TARGETS[name]
    for data in corpus():
        with bounded():
            take(data)


def fuzzed(name: str, examples: int, *, derandomize: bool) -> Callable[[], None]:
    take, corpus = TARGETS[name]

    @settings(max_examples=examples, derandomize=derandomize, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(corpus()))
    def check(data: bytes) -> None:
        with bounded():
            take(data)

    return check  # type: ignore[no-any-return]  # hypothesis' own type


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_what_becomes_of_it_by_a_few_changes(name: str) -> None:
    fuzzed(name, 25, derandomize=True)()


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_what_becomes_of_it_by_many(name: str) -> None:
    fuzzed(name, EXAMPLES, derandomize=False)()
