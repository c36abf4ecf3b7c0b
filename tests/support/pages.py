"""The Factory page over Airflow's real security and a real metadata database: users of every kind, DAGs in Airflow, figures by hand."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.api_fastapi.app import _AuthManagerState
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from fastapi.testclient import TestClient

from airflow_provider_factory.page.app import create_app
from airflow_provider_factory.page.letters import LetterPage, Letters, SeenLetter
from airflow_provider_factory.page.snapshot import Details, Figures, Snapshots
from factory_agents.contracts import WindowStatistics, load_contract
from factory_agents.kafka.control import Member
from factory_agents.kafka.ledger import FailureRecord, PlanRecord, StageRecord, StoredResult
from factory_agents.kafka.records import VerdictRecord
from factory_agents.kafka.view import LedgerView
from factory_agents.kafka.windows import windows_of
from factory_agents.protocol import Counts, Interval, Manifest, PartitionRange, Shard
from factory_agents.rollouts import LiveGroup, PartitionStatus, Status
from factory_agents.runtime.dead_letters import Letter
from factory_agents.runtime.letter_values import plain
from factory_agents.runtime.outputs import DeadLetter
from tests.support.waiting import wait_for

START = datetime(2026, 11, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
WHOLE = Shard()
ROOT = Path(__file__).resolve().parents[2]

os.environ.setdefault("AIRFLOW__API_AUTH__JWT_SECRET", "of-the-tests-and-of-nobody-else-0123456789abcdef-0123456789abcdef")

HOURLY = """
from datetime import datetime, timezone
from airflow.sdk import CronDataIntervalTimetable, dag, task

@dag(dag_id="DAG_ID", schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"), start_date=datetime(2026, 11, 1, tzinfo=timezone.utc),
     catchup=False, is_paused_upon_creation=False)
def hourly():
    @task
    def enrich():
        pass
    enrich()
hourly()
"""


_ONE_OF_MANY = re.compile(r"(?<![\d,.@-])1 (more )?(record|window|event|letter|run|interval|shard|row|duplicate)s\b|1 events? wait\b")


class PerDagManager(SimpleAuthManager):
    """Users by name: ``viewer-of-X`` may read the DAG X, ``editor-of-X`` may change it, too; the replay DAG is every editor's.

    ``guest-of-X`` may read the DAG X, too, and nothing of the cluster.
    """

    def is_authorized_view(self, *, access_view: Any, user: Any) -> bool:
        is_guest = user.username.startswith("guest-of-")
        return not (is_guest and access_view.value == "CLUSTER_ACTIVITY") and super().is_authorized_view(access_view=access_view, user=user)

    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        kind, _, dag_id = user.username.partition("-of-")
        wanted = getattr(details, "id", None)
        own = wanted == dag_id or (wanted in ("factory_replay", "factory_preview") and kind == "editor")
        return bool(own) and (method == "GET" or kind == "editor")

    def get_authorized_dag_ids(self, *, user: Any, method: Any = "GET", session: Any = None) -> set[str]:
        return {user.username.partition("-of-")[2]}

    def token(self, name: str, seconds: int = 3600) -> str:
        return str(self.generate_jwt(SimpleAuthManagerUser(username=name, role="VIEWER"), expiration_time_in_seconds=seconds))


@contextmanager
def signing_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[PerDagManager]:
    """Airflow's security with that manager, for one test."""
    manager = PerDagManager()
    monkeypatch.setattr(_AuthManagerState, "instance", manager)
    yield manager


def hour(n: int) -> Interval:
    """The n-th hour."""
    return Interval(START + n * HOUR, START + (n + 1) * HOUR)


def stage(pipeline: str, n: int, name: str = "enrich", shard: Shard = WHOLE, **more: Any) -> StageRecord:
    """A finished shard of a stage over the n-th hour; ``more`` are the result's fields."""
    interval = hour(n)
    at = int((interval.end + timedelta(minutes=5)).timestamp() * 1000)
    result = StoredResult(interval=interval, agent="mark", version="1", seconds=1.5, **more)
    return StageRecord(
        pipeline=pipeline, stage=name, window=interval.key, shard=shard, fingerprint="f", generation=1, updated_at=at, result=result
    )


def plan(pipeline: str, n: int, topic: str = "raw", records: int = 100) -> PlanRecord:
    """The plan of the n-th hour."""
    interval = hour(n)
    at = int(interval.end.timestamp() * 1000)
    return PlanRecord(pipeline, topic, "id", interval.key, (PartitionRange(0, 0, records),), interval, planned_at=at)


def dead(pipeline: str, n: int, topic: str = "out.dead", letters: int = 3) -> StageRecord:
    """A finished stage that wrote dead letters."""
    counts = Counts(consumed=100, forwarded=100 - letters, rejected=letters, produced=100 - letters)
    manifest = Manifest(topic, "dead-id", "enrich/f/1", (PartitionRange(0, 0, letters + 1, letters),))
    source = Manifest("raw", "id", "", (PartitionRange(0, 0, 100),))
    return stage(pipeline, n, counts=counts, dead_letters=manifest, input=source, manifest=Manifest("out", "o", "enrich/f/1"))


def figures(*records: Any) -> Figures:
    """What a reader would make of a ledger with these records."""
    view = LedgerView()
    view.add(*records)
    details: dict[tuple[str, str], Details] = {}
    for r in records:
        of = details.setdefault((r.pipeline, r.window), Details())
        kept = {PlanRecord: of.plans, FailureRecord: of.failures, VerdictRecord: of.verdicts}
        kept.get(type(r), of.stages).append(r)
    return Figures(tuple(windows_of(view)), details)


def live(
    partitions: int = 4,
    *,
    name: str = "factory.enrich.raw",
    moved: int = 0,
    held: int | None = None,
    members: Sequence[Member] = (),
    error: str = "",
    **more: Any,
) -> LiveGroup:
    """A group of a live agent whose version v2 is to have the first partitions (``moved``) and holds ``held`` of them."""
    held = moved if held is None else held
    of = [PartitionStatus(p, 100, 100 + p, p, "v2" if p < moved else "v1", "v2" if p < held else "v1") for p in range(partitions)]
    about = {"verdict": "rolling" if moved else "steady", "new": "v2" if moved else "", "reason": "", "steps": (), **more}
    status = Status(group=name, topic="raw", base="v1", epoch=1, by="", partitions=tuple(of), members=tuple(members), **about)
    return LiveGroup(name, status, error)


def letter(value: bytes | None = b'{"event_id": 7}', offset: int = 1, headers: Any = (), **why: Any) -> SeenLetter:
    """A dead letter as the page's reader gives it."""
    about = {"rule": "price", "error": "price < 0", "pipeline": "p", "stage": "enrich", "agent": "mark", "version": "1", **why}
    whole = Letter(0, offset, START, DeadLetter(**about), b"key", value, tuple(headers), "enrich/f/1", "finished")
    return SeenLetter(whole, len(value) if value is not None else -1, None if value is None else plain(value), plain(b"key"))


def report(rejected: int = 1) -> dict[str, Any]:
    """A validation report over three good events and some rejected ones."""
    statistics = WindowStatistics(load_contract({"name": "orders", "id": None, "schema": {"type": "object"}}))
    statistics.add_valid([{}] * 3)
    for i in range(rejected):
        statistics.add_rejected(["price < 0"], "bad", ("t", 0, i))
    return statistics.report()


class OfHand:
    """The page over figures and letters that a test gives; ``calls`` counts what would have been asked of Kafka."""

    def __init__(self, shown: Figures, letters: LetterPage | None = None) -> None:
        self.calls = 0
        self.figures = shown

        def read() -> Figures:
            self.calls += 1
            return self.figures

        self.letter_page = letters or LetterPage("ready", (letter(),), found=1, read=1, held=1, taken_at=START)
        self.snapshots = Snapshots(read, every=0.05)
        self.letters = Letters(lambda query, snapshot: self.letter_page)
        wait_for(lambda: self.snapshots.current().taken_at, "figures")
        self.app = create_app(self.snapshots, self.letters)
        self.client = TestClient(self.app, headers={"Sec-Fetch-Site": "same-origin"})

    def close(self) -> None:
        self.snapshots.close()
        self.letters.close()

    def get(self, path: str, token: str = "") -> Any:
        answer = self.client.get(path, headers={"Authorization": f"Bearer {token}"} if token else {})
        assert not re.search(
            r"(?<![\d,.@-])1 (more )?(record|window|event|letter|run|interval|shard|row|duplicate)s\b|1 events? wait\b", answer.text
        )
        return answer

    def ready(self, path: str, token: str) -> str:
        """A page whose letters have been read."""
        wait_for(lambda: "data-pending" not in self.get(path, token).text, "the letters")
        return str(self.get(path, token).text)

    def post(self, path: str, body: Any, token: str = "", **headers: str) -> Any:
        given = {"X-Factory-Action": "1", **({"Authorization": f"Bearer {token}"} if token else {}), **headers}
        return self.client.post(path, json=body, headers={k: v for k, v in given.items() if v})


def into_airflow(path: Path, source: str) -> None:
    """Put a DAG file into the metadata database, as the DAG processor does."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    path.write_text(source, encoding="utf-8")
    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(path, bundle_path=path.parent, bundle_name="dags-folder")
    assert not bag.import_errors, bag.import_errors
    sync_bag_to_db(bag, "dags-folder", None)
