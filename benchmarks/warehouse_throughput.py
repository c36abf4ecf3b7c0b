"""Iceberg beside a bare append of the same Arrow table, and the memory of a publish; with ``--emulators 1`` BigQuery and Snowflake, too.

With ``FACTORY_QUIX_PYTHON``, the Python of an environment that has quixstreams and pyiceberg, beside Quix Streams' Iceberg sink.
"""

from __future__ import annotations

import gc
import io
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Message
from harness import ROOT, arguments, bench_sandbox, filled_window, report, run_agent, run_process, timed
from publish_throughput import BATCH, COLUMNS, CONTRACT, WINDOW, make_files
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table

from factory_agents.kafka.config import KafkaConfig
from factory_agents.protocol import AgentRef, AgentRun, Shard
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim
from factory_agents.runtime.ledger_sink import RANK, Part
from factory_agents.sandbox import Sandbox
from factory_agents.sandbox.state import BIGQUERY_PROJECT, bigquery_env, snowflake_env
from factory_agents.sinks.bigquery import account_from_env
from factory_agents.sinks.iceberg.table import PUBLICATION
from factory_agents.sinks.snowflake import account_from_env as snowflake_account

_PART_ROWS = 300_000  # staged at once


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
    """Seconds, and those of CPU, from rows as they wait to be staged to the commit."""
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


def landed_arrow(rows: pa.Table, table: str) -> tuple[float, float]:
    """Seconds, and those of CPU, from the very rows that are appended beside it to the commit."""
    sink = build({"contract": CONTRACT, "sink": "iceberg", "table": table})
    sink.claim(claim_of(table))
    publication, own = sink._publication, sink._sink
    with Clock() as clock:
        for start in range(0, len(rows), _PART_ROWS):
            part = rows.slice(start, _PART_ROWS)
            own._keep(own._load(), len(publication._parts), part, part.slice(0, 0).select(["event_id", RANK, PUBLICATION]))
            publication._parts.append(Part(publication._number, len(publication._parts)))
        outcome = sink.commit(rejected=0)
    sink.close()
    if outcome.written != len(rows):
        raise SystemExit(f"expected {len(rows)} rows, {outcome.written} were written")
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
        "factory, staging and landing": lambda n: landed(lines, {"sink": "iceberg", "table": f"bench.rows{n}"}),
        "factory, from the same Arrow": lambda n: landed_arrow(same, f"bench.arrow{n}"),
        "bare append of the same Arrow": lambda _: lake.appended(same),
        "decode, then append, by hand": lambda _: lake.by_hand(lines),
    }
    if python := os.environ.get("FACTORY_QUIX_PYTHON"):
        contestants["Quix Streams"] = lambda n: quix(python, lines, folder, n)
    seconds, cpu = timed(count, contestants, "factory")
    report("publish to Iceberg", seconds, "factory", rows, "rows", {"cpu_ratios": cpu})


def quix(python: str, lines: Path, folder: Path, n: int) -> tuple[float, float]:
    """Quix Streams' sink, in its own environment."""
    cost = run_process([python, ROOT / "benchmarks" / "peers" / "quix_iceberg.py", str(lines), str(folder), f"quix{n}"])
    told = json.loads(cost.output.strip().splitlines()[-1])
    return float(told["seconds"]), float(told["cpu"])


def staged(lines: Path, params: Mapping[str, Any], *, from_records: bool = False) -> Callable[[int], tuple[float, float]]:
    """Seconds, and those of CPU, in which rows are staged, each time in a publication of its own: from Arrow, or from consumed records."""
    given = records(lines)

    def run(n: int) -> tuple[float, float]:
        sink: Any = build({"contract": CONTRACT, "table": f"{params['table']}_{from_records:d}{n}", "sink": params["sink"]})
        sink.claim(claim_of(params["table"]))
        publication, own = sink._publication, sink._sink
        early = None if from_records else publication._reader.read(given)[0]
        with Clock() as clock:
            rows = publication._reader.join(publication._reader.read(given)[0] if early is None else early)
            own.stage(Part(publication._number, 0), rows)
            if hasattr(own, "_finish_load"):
                own._finish_load()
        sink.close()
        return clock.took

    return run


def race_staging(sandbox: Sandbox, lines: Path, count: int, rows: int) -> None:
    """Parts of a window on their way into the emulators, beside a plain load by the client: both from Arrow, and both from JSON records."""
    info = sandbox.info()

    def made() -> pa.Table:
        with lines.open("rb") as file:
            return pa.Table.from_pylist([json.loads(line) for line in file])

    arrow = made()
    name = f"bench_{uuid.uuid4().hex[:8]}"

    def race(title: str, params: Mapping[str, Any], load: Callable[[pa.Table, str], None]) -> None:
        def plain(make: Callable[[], pa.Table], kind: str) -> Callable[[int], tuple[float, float]]:
            def run(n: int) -> tuple[float, float]:
                with Clock() as clock:
                    load(make(), f"{kind}_{n}")
                return clock.took

            return run

        starts = {"from Arrow": (False, lambda: arrow, "plain"), "from records": (True, made, "made")}
        for start, (from_records, make, kind) in starts.items():
            contestants = {"factory": staged(lines, params, from_records=from_records), "plain load": plain(make, kind)}
            seconds, cpu = timed(count, contestants, "factory")
            report(f"{title}, {start}", seconds, "factory", rows, "rows", {"cpu_ratios": cpu})

    if info.bigquery_url:
        from google.cloud import bigquery

        os.environ.update(bigquery_env(info.bigquery_url))
        client = account_from_env().client()
        client.create_dataset(name)

        def load(table: pa.Table, kind: str) -> None:
            data = io.BytesIO()
            pq.write_table(table, data)
            data.seek(0)
            config = bigquery.LoadJobConfig(source_format="PARQUET")
            client.load_table_from_file(data, f"{BIGQUERY_PROJECT}.{name}.{kind}", job_config=config).result()

        race("staging in BigQuery (emulator)", {"sink": "bigquery", "table": f"{name}.ours"}, load)
        client.delete_dataset(name, delete_contents=True)
    if info.snowflake_url:
        import snowflake.connector

        os.environ.update(snowflake_env(info.snowflake_url))
        account = snowflake_account()
        connection = snowflake.connector.connect(**account.place, **account.secrets, database=account.database, schema=account.schema)

        def put(table: pa.Table, kind: str) -> None:
            own = f"{name}_{kind}"
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE TABLE {own} (event_id TEXT, user INT, payload TEXT, amount FLOAT, kind TEXT)")
                data = io.BytesIO()
                pq.write_table(table, data)
                data.seek(0)
                cursor.execute(f"PUT file://p.parquet @%{own} AUTO_COMPRESS = FALSE OVERWRITE = TRUE", file_stream=data)
                columns = ", ".join(f"$1:{column}" for column in COLUMNS)
                cursor.execute(f"COPY INTO {own} FROM (SELECT {columns} FROM @%{own}/p.parquet) FILE_FORMAT = (TYPE = PARQUET)")

        race("staging in Snowflake (emulator)", {"sink": "snowflake", "table": f"{name}_ours"}, put)
        connection.close()


def memory(sandbox: Sandbox, folder: Path, rows: int) -> None:
    """The most that a publish of so many events takes, by sink."""
    info = sandbox.info()
    config = KafkaConfig(info.bootstrap)
    name = f"bench-memory-{uuid.uuid4().hex[:8]}"
    window = filled_window(config, name, rows, 4)
    sinks: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        "postgres": ({"table": name.replace("-", "_")}, {"DATABASE_URL": info.database_url}),
    }
    catalog = {"ICEBERG_CATALOG": json.dumps(Lake(folder).properties)}
    for mode in ("append", "upsert"):
        sinks[f"iceberg, {mode}"] = ({"sink": "iceberg", "table": f"bench.{mode}", "mode": mode}, catalog)
    if info.bigquery_url:
        sinks["bigquery"] = ({"sink": "bigquery", "table": "local.memory"}, bigquery_env(info.bigquery_url))
    if info.snowflake_url:
        sinks["snowflake"] = ({"sink": "snowflake", "table": "memory"}, snowflake_env(info.snowflake_url))
    found: dict[str, dict[str, float]] = {}
    print(f"\n| sink | seconds | CPU seconds | peak MB | ({rows:,} events)\n|---|---|---|---|")
    for sink, (params, environment) in sinks.items():
        run = AgentRun(
            window.pipeline, f"publish-{uuid.uuid4().hex[:4]}", AgentRef("publish"), window=window, params={"contract": CONTRACT, **params}
        )
        done, cost = run_agent(config, run, **environment)
        if done.counts.written != rows:
            raise SystemExit(f"{sink}: {done.counts}")
        found[sink] = {"seconds": done.seconds, "cpu": round(cost.cpu, 2), "peak": round(cost.peak)}
        print(f"| {sink} | {done.seconds:.1f} | {cost.cpu:.1f} | {cost.peak:.0f} |", flush=True)
    print(json.dumps({"benchmark": "memory of publish", "rows": rows, "sinks": found}))


def main() -> None:
    """Make the rows, race, report; then memory."""
    options = arguments(__doc__ or "", rows=200_000, events=1_000_000, emulators=0)
    rows, events = (5_000, 5_000) if options.smoke else (options.rows, options.events)
    sandbox = bench_sandbox(with_warehouses=bool(options.emulators))
    with tempfile.TemporaryDirectory() as folder:
        for place in ("race", "memory"):
            (Path(folder) / place).mkdir()
        race_iceberg(make_files(Path(folder), rows, ordered=False)[0], Path(folder) / "race", options.rounds, rows)
        race_staging(sandbox, make_files(Path(folder), rows, ordered=False)[0], options.rounds, rows)
        memory(sandbox, Path(folder) / "memory", events)


if __name__ == "__main__":
    main()
