"""A publisher that is frozen at a step of its attempt, and wakes when a newer one has landed: real processes, stopped by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from factory_agents import failpoints
from factory_agents.protocol import Shard
from factory_agents.runtime.agents import Claim
from factory_agents.testing.records import CONTRACT, W1, event
from tests.support.attempt import attempt
from tests.support.sink_bench import Bench as PostgresBench

OLD, NEW = [event("k", "old"), event("old", "x")], [event("k", "new"), event("new", "x")]


class Target:
    """A table, how a process publishes to it, and what it holds."""

    def __init__(self, params: dict[str, Any], rows: Callable[[], dict[str, str]]) -> None:
        self.params, self.rows = {"contract": CONTRACT, **params}, rows


ASKS_FOR = {"postgres": pytest.mark.parts, "iceberg": pytest.mark.slow}
IN_LENGTH = ("iceberg, upsert", "snowflake", "bigquery")


@pytest.fixture(params=[pytest.param(name, marks=ASKS_FOR.get(name, pytest.mark.soak)) for name in (*ASKS_FOR, *IN_LENGTH)])
def target(request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    if request.param == "postgres":
        url = request.getfixturevalue("database_url")
        monkeypatch.setenv("DATABASE_URL", url)
        postgres = PostgresBench(url)
        yield Target({"table": postgres.name, "lock_timeout": 20}, postgres.rows)
        postgres.close()
    elif request.param == "snowflake":
        from tests.support.snowflake import Bench as SnowflakeBench

        snowflake = SnowflakeBench(request.getfixturevalue("snowflake"))
        yield Target({"sink": "snowflake", "table": "t", "timeout": 20}, snowflake.rows)
    elif request.param == "bigquery":
        from tests.support.bigquery import Bench as BigQueryBench

        bigquery = BigQueryBench(request.getfixturevalue("emulator"))
        yield Target({"sink": "bigquery", "table": bigquery.table, "timeout": 20}, bigquery.rows)
    else:
        from tests.support.iceberg import Bench as IcebergBench

        properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
        monkeypatch.setenv("ICEBERG_CATALOG", json.dumps(properties))
        iceberg = IcebergBench(properties)
        mode = "upsert" if "upsert" in request.param else "append"
        yield Target({"sink": "iceberg", "table": iceberg.table, "mode": mode}, lambda: dict(iceberg.rows("id", "value")))


def claim(generation: int) -> Claim:
    return Claim("p", "publish", W1, Shard(), "plan", f"f{generation}", 1, generation)


def frozen(target: Target, claimed: Claim, point: str) -> subprocess.Popen[str]:
    """An attempt in a process of its own, which is stopped at this point."""
    given = {"params": target.params, "claim": msgspec.to_builtins(claimed), "events": OLD}
    environment = {**os.environ, "FACTORY_FAILPOINTS": point}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.attempt", json.dumps(given)], env=environment, stdout=subprocess.PIPE, text=True
    )
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return process


def test_who_wakes_after_a_newer_attempt_landed_changes_nothing(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen at each step from its claim on: who hasn't claimed is fenced by Kafka, which tests of the runtime show."""
    points: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "hit", points.append)
        assert attempt(target.params, claim(1), OLD) == "landed"
    steps = [f"{point}=stop@{points[: i + 1].count(point)}" for i, point in enumerate(points)]
    first = next(i for i, point in enumerate(points) if point.endswith(".claimed"))
    for generation, step in enumerate(steps[first:], 1):
        zombie = frozen(target, claim(2 * generation), step)
        assert attempt(target.params, claim(2 * generation + 1), NEW) == "landed", step
        zombie.send_signal(signal.SIGCONT)
        said, _ = zombie.communicate(timeout=60)
        assert target.rows() == {"k": "new", "new": "x"}, f"{step}: {said}"
