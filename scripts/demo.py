"""``make demo``: two hours of the pipeline on a real broker and a real database, then what landed."""

from __future__ import annotations

import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta

import psycopg
from airflow_env import ROOT, airflow, airflow_environment, prepare, run
from rich import box
from rich.console import Console
from rich.table import Table

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.ledger import Ledger, StageRecord
from factory_agents.kafka.topics import Cluster
from factory_agents.metrics.tally import LedgerTally
from factory_agents.protocol import AgentResult
from factory_agents.runtime.dead_letters import LetterTopic, Selection, group_letters
from factory_agents.sandbox import Sandbox

PIPELINE = "software_factory_pipeline"
STAGES = ("ingest_events", "enrich_events", "validate_events", "publish_results")
HOURS = [datetime(2018, 6, 5, hour, tzinfo=UTC) for hour in (8, 9)]  # the sample's busiest two in a row
NEXT = {
    '. .venv/bin/activate && eval "$(factory sandbox env --airflow)"': "",
    "factory windows": "",
    "factory dead-letters list validated_events.dead": "",
    'psql "$DATABASE_URL" -c "select language, count(*) from events group by 1 order by 2 desc"': "",
    "make try DAG=software_factory_pipeline AT=2018-06-05T11:00": "one more hour",
    "make ui": "a whole Airflow, with these windows on its Factory page",
}
"""What the demo says to do next, and what that is. Each command is one of docs/getting-started.md, where it is followed."""

console = Console(width=None if sys.stdout.isatty() else 120)


def results(config: KafkaConfig) -> list[AgentResult]:
    """The finished results of the demo's hours, from the ledger, in the pipeline's order."""
    ledger = Ledger(config, Cluster(config), prefix="factory", pipeline=PIPELINE)
    records: list[StageRecord] = ledger.read(deadline=time.monotonic() + 60).of(StageRecord)
    answers = [answer for record in records if (answer := record.answer()) is not None]
    done = [r for r in answers if r.interval is not None and r.interval.start in HOURS]
    return sorted(done, key=lambda r: (r.key, STAGES.index(r.stage)))


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def show_stages(done: list[AgentResult]) -> None:
    """Counts per stage."""
    table = _table("What each stage did", "hour (UTC)", "stage", "consumed", "forwarded", "rejected", "wrote")
    for r in done:
        c = r.counts
        wrote = (
            f"{c.written} rows of {r.table}, {c.duplicates} duplicates dropped"
            if r.table
            else f"{c.produced} to {r.manifest.topic if r.manifest else '-'}"
        )
        hour = r.interval.start.strftime("%F %H:%M") if r.interval else ""
        table.add_row(
            hour if r.stage == STAGES[0] else "",
            r.stage,
            str(c.consumed),
            str(c.forwarded),
            str(c.rejected),
            wrote,
            end_section=r.stage == STAGES[-1],
        )
    console.print(table)


def show_rejected(config: KafkaConfig, done: list[AgentResult]) -> None:
    """Rejected events with their reasons."""
    table = _table("What was rejected, and why", "stage", "rule", "times", "letter", "reason")
    for topic in dict.fromkeys(r.dead_letters.topic for r in done if r.dead_letters is not None):
        for group in group_letters(LetterTopic(config, topic).select(Selection())):
            table.add_row(
                group.stage, group.rule, str(group.count), f"{topic} {group.example}", textwrap.shorten(group.error, 60, placeholder=" …")
            )
    console.print(table)


def show_rows(database_url: str) -> None:
    """Some rows of the table, and how many there are."""
    columns = ("repo", "path", "language", "size_class", "added", "deleted")
    table = _table("Some rows of the table events", *columns)
    with psycopg.connect(database_url) as connection:
        for row in connection.execute(
            "SELECT repo, path, language, size_class, added, deleted FROM events ORDER BY occurred_at, event_id LIMIT 5"
        ):
            table.add_row(*(str(v) for v in row))
        total = connection.execute("SELECT count(*), count(DISTINCT event_id) FROM events").fetchone()
    console.print(table)
    if total:
        console.print(f"{total[0]} rows, {total[1]} different events. Run it again: this stays the same.\n")


def show_counters(config: KafkaConfig) -> None:
    """What Prometheus is told of the pipeline: of all runs that the ledger knows, the demo's earlier ones too."""
    tally = LedgerTally()
    with Cluster(config) as cluster:
        Ledger(config, cluster, prefix="factory", pipeline="").follow(tally, deadline=time.monotonic() + 60)
    totals = tally.told().totals

    def total(name: str, stage: str) -> float:
        return sum(figures[0] for (of, labels), figures in totals.items() if of == name and {PIPELINE, stage} <= set(labels))

    names = ("agent_success_total", "agent_failure_total", "factory_windows_finished_total")
    table = _table("What factory metrics serve tells Prometheus", "stage", *names)
    for stage in STAGES:
        table.add_row(stage, *(f"{total(name, stage):g}" for name in names))
    console.print(table)


def main() -> int:
    """Set up, run the two hours, show."""
    began = time.monotonic()
    sandbox = Sandbox(ROOT / ".factory")
    sandbox.up()
    environment = airflow_environment(sandbox, trial=True)
    prepare(environment)
    for hour in HOURS:
        at = (hour + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")
        console.print(f"\n[bold]$ make try DAG={PIPELINE} AT={at}[/]   (airflow dags test: the hour from {hour:%H:%M})")
        airflow(environment, "dags", "test", PIPELINE, at, quiet=False)
    config = KafkaConfig(sandbox.info().bootstrap)
    done = results(config)
    console.print()
    show_stages(done)
    show_rejected(config, done)
    show_rows(sandbox.info().database_url)
    show_counters(config)
    console.print("Where to look next:")
    for command, what in NEXT.items():
        console.print(f"  {command}{what and f'   # {what}'}", highlight=False, markup=False)
    console.print(f"\n{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    run(main)
