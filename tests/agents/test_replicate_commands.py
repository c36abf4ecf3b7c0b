"""``factory replicate``: a window from the command line, how the slot stands, and giving it up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from tests.conftest import TopicFactory
from tests.support.commands import Command
from tests.support.databases import own_database


def test_a_log_is_read_looked_at_and_given_up(factory: Command, sandbox_info: object, topic: TopicFactory) -> None:
    to = topic("changes", partitions=1)
    now = datetime.now(UTC)
    interval = ("--since", (now - timedelta(hours=1)).isoformat(), "--until", now.isoformat())
    with own_database(sandbox_info.database_url, "commanded") as url, psycopg.connect(url, autocommit=True) as connection:  # type: ignore[attr-defined]
        factory.environment["DATABASE_URL"] = url
        connection.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
        connection.execute("INSERT INTO orders SELECT generate_series(1, 5)")
        run = ("replicate", "run", "public.orders", "--topic", to, "--pipeline", "orders", *interval, "--json")
        done = factory.ok(*run).data
        assert (done["counts"]["forwarded"], done["manifest"]["codec"]["name"]) == (5, "debezium")
        (status,) = factory.ok("replicate", "status", "--json").data
        assert (status["pipeline"], status["table"], status["state"], status["topic"]) == ("orders", "public.orders", "idle", to)
        assert status["held"] >= status["behind"] >= 0
        assert factory("replicate", "status", "--max-lag", "1 B", "--json").code == 1
        dropped = factory.ok("replicate", "drop", "orders", "--json").data["dropped"]
        assert dropped == [f"slot {status['slot']}", f"publication {status['slot']}"]
        assert factory.ok("replicate", "status", "--json").data == []
        assert connection.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").fetchone() == (0,)
        assert "reads no log" in factory("replicate", "drop", "orders").error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "orders", "--topic", "t", "--since", "2026-11-01T04:00"), "give both, or neither"),
        (("status", "--max-lag", "much"), "expected a size such as 50 GB, got 'much'"),
    ],
)
def test_what_is_mistyped_is_one_line(offline: Command, arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = offline("replicate", *arguments, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert done.code == 1
    assert said in done.error
