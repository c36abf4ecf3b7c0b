"""The publish agent's sink, from JSON events to the commit; beside COPY of the same rows and Quix Streams' sink, in one run."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg
from confluent_kafka import Message
from harness import ROOT, arguments, bench_sandbox, peers_python, report, rounds, spread

from factory_agents.protocol import Shard
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim

BATCH = 10_000  # what the runtime gives a sink at a time
COLUMNS = {"event_id": "text", "user": "bigint", "payload": "text", "amount": "double", "kind": "text"}
TABLE = 'event_id text COLLATE "C" NOT NULL, "user" bigint, payload text, amount double precision, kind text'
CONTRACT = {"name": "bench", "id": "event_id", "columns": COLUMNS}
WINDOW = "2026-11-01T00:00:00.000Z/2026-11-01T01:00:00.000Z bench"


def make_files(folder: Path, rows: int, *, ordered: bool) -> tuple[Path, Path]:
    """The same rows as JSON lines and in COPY's text format; keys rise, as time-ordered ids do, or are random, as most UUIDs are."""
    seeded = random.Random(1)
    lines, copied = folder / f"{ordered}.json", folder / f"{ordered}.copy"
    padding = "x" * 90
    with lines.open("w") as as_json, copied.open("w") as as_copy:
        for i in range(rows):
            key = f"event-{i:09d}" if ordered else str(uuid.UUID(int=seeded.getrandbits(128)))
            row = (key, i % 9973, padding, i * 0.25, "click")
            as_json.write(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n")
            as_copy.write("\t".join(map(str, row)) + "\n")
    return lines, copied


def ours(url: str, lines: Path, table: str, generation: int) -> float:
    """Claim, decode, write, commit; records and the garbage collector as the consumer and the agent's start leave them."""
    os.environ["DATABASE_URL"] = url
    with lines.open("rb") as file:
        records = [Message(value=line, partition=0, offset=n) for n, line in enumerate(file)]
    gc.collect()
    gc.freeze()
    began = time.monotonic()
    sink = build({"table": table, "contract": CONTRACT})
    sink.claim(Claim(table, "publish", WINDOW, Shard(), "plan", f"f{generation}", 1, generation))
    for start in range(0, len(records), BATCH):
        sink.write(records[start : start + BATCH])  # type: ignore[arg-type]  # confluent-kafka's type leaves more open
    outcome = sink.commit(rejected=0)
    sink.close()
    took = time.monotonic() - began
    if outcome.written != len(records):
        raise SystemExit(f"expected {len(records)} rows, {outcome.written} were written")
    return took


def copy(url: str, copied: Path, table: str) -> float:
    """``psql``'s COPY of the file, or psycopg's where there is no psql."""
    began = time.monotonic()
    psql = shutil.which("psql")
    if psql is not None:
        command = f"\\copy {table} FROM '{copied}'"
        subprocess.run([psql, "-qX", "-v", "ON_ERROR_STOP=1", "-c", command], env={**os.environ, **libpq(url)}, check=True)
    else:
        with psycopg.connect(url) as connection, connection.cursor().copy(f"COPY {table} FROM STDIN") as into, copied.open("rb") as file:
            while block := file.read(65536):
                into.write(block)
    return time.monotonic() - began


def libpq(url: str) -> dict[str, str]:
    """The database as libpq's environment: no password in a command line."""
    given = psycopg.conninfo.conninfo_to_dict(url)
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
    return {names[key]: str(value) for key, value in given.items() if key in names}


def quix(python: Path, url: str, lines: Path, table: str) -> float:
    """Quix Streams' sink, in its own environment."""
    script = ROOT / "benchmarks" / "peers" / "quix_postgres.py"
    done = subprocess.run([python, script, lines, table], input=url, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def race(url: str, files: tuple[Path, Path], count: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, each into a table of its own."""
    lines, copied = files
    python = peers_python()
    name = f"bench_{uuid.uuid4().hex[:8]}"

    def copied_into(kind: str, definition: str) -> Callable[[int], float]:
        def run(n: int) -> float:
            execute(url, f"CREATE TABLE {name}_{kind}_{n} ({definition})")
            return copy(url, copied, f"{name}_{kind}_{n}")

        return run

    def after_checkpoint(run: Callable[[int], float]) -> Callable[[int], float]:
        def settled(n: int) -> float:
            execute(url, "CHECKPOINT")  # nobody pays for what the one before has left to be written
            return run(n)

        return settled

    contestants: dict[str, Callable[[int], float]] = {
        "factory": lambda n: ours(url, lines, f"{name}_ours_{n}", 1),
        "copy, bare table": copied_into("bare", TABLE),
        "copy, primary key": copied_into("key", TABLE + ", PRIMARY KEY (event_id)"),
        "quix streams": lambda n: quix(python, url, lines, f"{name}_quix_{n}"),
        "factory, again": lambda n: ours(url, lines, f"{name}_ours_{n}", 2),
    }
    seconds = rounds(count, {who: after_checkpoint(run) for who, run in contestants.items()})
    tables = [f"{name}_{kind}_{n}" for kind in ("ours", "bare", "key", "quix") for n in range(count)]
    execute(url, f"DROP TABLE {', '.join(tables)}")
    return seconds


def execute(url: str, query: str) -> None:
    """One statement, committed."""
    with psycopg.connect(url) as connection:
        connection.execute(query.encode())


def main() -> None:
    """Make the rows, race with rising keys, then with random ones, report."""
    options = arguments(__doc__ or "", rows=1_000_000)
    rows = 20_000 if options.smoke else options.rows
    url = bench_sandbox().info().database_url
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for keys in ("rising", "random"):
            print(f"{keys} keys", file=sys.stderr)
            files = make_files(Path(folder), rows, ordered=keys == "rising")
            seconds[keys] = race(url, files, options.rounds)
    rising = seconds["rising"]
    ratios = {name: spread([t / mine for t, mine in zip(took, rising["factory"], strict=True)]) for name, took in rising.items()}
    report("publish throughput, rising keys", rising, "factory", rows, "rows")
    report("publish throughput, random keys", seconds["random"], "factory", rows, "rows", {"ratios_of_rising_keys": ratios})


if __name__ == "__main__":
    main()
