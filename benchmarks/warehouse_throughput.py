"""Publishing to Iceberg, beside a bare append of the same Arrow table and beside what a person writes."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from confluent_kafka import Message
from harness import arguments, report, timed
from publish_throughput import BATCH, CONTRACT, WINDOW, make_files
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table

from factory_agents.protocol import Shard
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim


def records(lines: Path) -> list[Any]:
    """Consumed records, as the consumer leaves them."""
    with lines.open("rb") as file:
        found = [Message(value=line, partition=0, offset=n) for n, line in enumerate(file)]
    gc.collect()
    gc.freeze()
    return found


def claim_of(table: str) -> Claim:
    """The one claim of a window."""
    return Claim(table, "publish", WINDOW, Shard(), "plan", "f", 1, 1)


def published(lines: Path, params: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds, and those of CPU, from consumed records to the commit."""
    given = records(lines)
    with Clock() as clock:
        sink = build({"contract": CONTRACT, **params})
        sink.claim(claim_of(params["table"]))
        for start in range(0, len(given), BATCH):
            sink.write(given[start : start + BATCH])
        outcome = sink.commit(rejected=0)
        sink.close()
    if outcome.written != len(given):
        raise SystemExit(f"expected {len(given)} rows, {outcome.written} were written")
    return clock.took


def landed(lines: Path, params: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds, and those of CPU, from typed rows to the commit."""
    given = records(lines)
    sink = build({"contract": CONTRACT, **params})
    sink.claim(claim_of(params["table"]))
    publication = sink._publication
    publication._gathered, _ = publication._reader.read(given)
    publication._rows = len(given)
    with Clock() as clock:
        sink.commit(rejected=0)
    sink.close()
    return clock.took


class Clock:
    """Seconds on the wall, and of this process's CPU, whatever else the machine does."""

    took = (0.0, 0.0)

    def __enter__(self) -> Clock:
        self._began = time.monotonic(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.took = time.monotonic() - self._began[0], time.process_time() - self._began[1]


class Lake:
    """A catalog in SQLite with local files."""

    def __init__(self, folder: Path) -> None:
        self.properties = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
        os.environ["ICEBERG_CATALOG"] = json.dumps(self.properties)
        self.catalog = load_catalog("default", **self.properties)
        self.catalog.create_namespace("bench")

    def table(self, rows: pa.Table) -> Table:
        return self.catalog.create_table(f"bench.t{uuid.uuid4().hex}", rows.schema)

    def appended(self, rows: pa.Table) -> tuple[float, float]:
        """A bare append to a new table."""
        table = self.table(rows)
        with Clock() as clock:
            table.append(rows)
        return clock.took

    def by_hand(self, lines: Path) -> tuple[float, float]:
        """What a person writes: decode the lines, make a table of them, append it."""
        given = records(lines)
        with Clock() as clock:
            rows = pa.Table.from_pylist([json.loads(message.value()) for message in given])
            self.table(rows).append(rows)
        return clock.took


def race_iceberg(lines: Path, folder: Path, count: int, rows: int) -> None:
    """From records to the commit, beside an append of the rows that ours has made."""
    lake = Lake(folder)
    published(lines, {"sink": "iceberg", "table": "bench.first"})
    same = lake.catalog.load_table("bench.first").scan().to_arrow()
    contestants: dict[str, Callable[[int], tuple[float, float]]] = {
        "factory": lambda n: published(lines, {"sink": "iceberg", "table": f"bench.ours{n}"}),
        "factory, from typed rows": lambda n: landed(lines, {"sink": "iceberg", "table": f"bench.rows{n}"}),
        "bare append of the same Arrow": lambda _: lake.appended(same),
        "decode, then append, by hand": lambda _: lake.by_hand(lines),
    }
    seconds, cpu = timed(count, contestants, "factory")
    report("publish to Iceberg", seconds, "factory", rows, "rows", {"cpu_ratios": cpu})


def main() -> None:
    """Make the rows, race, report."""
    options = arguments(__doc__ or "", rows=1_000_000)
    rows = 5_000 if options.smoke else options.rows
    with tempfile.TemporaryDirectory() as folder:
        race_iceberg(make_files(Path(folder), rows, ordered=False)[0], Path(folder), options.rounds, rows)


if __name__ == "__main__":
    main()
