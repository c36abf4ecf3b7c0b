"""The maintenance of a table: what goes, what stays, and that publishers don't notice."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, ServiceUnavailableError
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.table.refs import SnapshotRefType

from factory_agents import failpoints
from factory_agents.errors import ConfigurationError, SinkError, UnavailableError
from factory_agents.sinks.iceberg import CatalogSettings, Maintained, maintain, table_name
from factory_agents.testing.records import CONTRACT, W1, W2, W3, event, gone
from tests.support.commands import Command
from tests.support.iceberg import Bench

NOW, HOUR = timedelta(), timedelta(hours=1)


def with_deletes(bench: Bench) -> Bench:
    bench.contract = CONTRACT | {"deletes": True}
    bench.params = {"mode": "upsert"}
    return bench


@pytest.fixture
def bench(bench: Bench) -> Bench:
    return with_deletes(bench)


def run(bench: Bench, orphans_after: timedelta = NOW, **more: Any) -> Maintained:
    settings = CatalogSettings("default", dict(bench.properties))
    return maintain(settings, table_name(bench.table), snapshots_after=NOW, orphans_after=orphans_after, **more)


def delete(bench: Bench, key: str, window: str) -> None:
    sink: Any = bench.sink()
    assert sink.claim(bench.claim(window)) is None
    sink.write([gone(key)])
    sink.commit(rejected=0)
    sink.close()


def hour(n: int) -> str:
    start = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(hours=n)
    return f"{start:%Y-%m-%dT%H:%M:%S.000Z}/{start + timedelta(hours=1):%Y-%m-%dT%H:%M:%S.000Z} p"


def files(bench: Bench) -> set[Path]:
    place = Path(bench.load().location().removeprefix("file://"))
    return {path for path in place.rglob("*") if path.is_file() and not path.name.endswith(".crc")}


def age(bench: Bench, seconds: float = 7200) -> None:
    """Make everything that is there so much older."""
    for path in files(bench):
        at = path.stat().st_mtime - seconds
        os.utime(path, (at, at))


def at_each_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[int, str], None]) -> None:
    """Call with the number and name of each step that is passed, but for those of what is called itself."""
    passed: list[str] = []
    busy: list[str] = []

    def hit(name: str) -> None:
        if busy:
            return
        passed.append(name)
        busy.append(name)
        try:
            act(len(passed), name)
        finally:
            busy.clear()

    monkeypatch.setattr(failpoints, "hit", hit)


class Killed(BaseException):
    """Nothing catches it."""


def ledger(bench: Bench) -> dict[str, str]:
    return {name: value for name, value in bench.load().properties.items() if name.startswith("factory.publish.")}


def test_what_nothing_names_goes_and_rows_ledger_and_deletes_stay(bench: Bench) -> None:
    for n, key in enumerate("abc"):
        delete(bench, key, hour(n + 10))
    bench.publish([event(f"k{n}") for n in range(5)], W1)
    bench.publish([event("k0", "again"), event("a", "before its delete")], W1)
    bench.publish([event("z")], W3)
    rows, entries, before = bench.rows("id", "value"), ledger(bench), files(bench)
    place = Path(bench.load().location().removeprefix("file://"))
    stray, cut, statistics = (
        place / name for name in ("data/left-by-a-killed-publisher.parquet", "metadata/00009-cut.metadata.json", "metadata/1.stats")
    )
    for path, content in ((stray, b"x" * 1000), (cut, b'{"table-uuid": "'), (statistics, b"PFA1")):
        path.write_bytes(content)

    told = run(bench, dry_run=True)
    assert (files(bench), ledger(bench)) == (before | {stray, cut, statistics}, entries)
    done = run(bench)
    assert (done.joined, done.into) == (told.joined, told.into) == (3, 1)
    assert done.snapshots >= told.snapshots > 5
    assert done.orphans >= told.orphans > 5
    assert done.bytes > 1000
    assert [path.exists() for path in (stray, cut, statistics)] == [False, False, True]
    assert (bench.rows("id", "value"), ledger(bench)) == (rows, entries)
    table = bench.load()
    assert {ref.snapshot_ref_type for ref in table.metadata.refs.values()} == {SnapshotRefType.BRANCH}
    assert len(table.metadata.snapshots) == 2
    assert table.scan(AlwaysTrue()).to_arrow().num_rows == len(rows)
    run(bench)  # takes the metadata that the one before left
    assert run(bench) == Maintained(bench.table, 0, 0, 0, 0, 0, (), False)

    assert bench.publish([event("b", "before its delete"), event("new")], hour(5)).written == 1  # what is deleted stays so
    assert ("new",) in bench.rows("id")
    assert ("b",) not in bench.rows("id")


def test_publishers_at_work_lose_nothing(in_postgres: Bench) -> None:
    bench = with_deletes(in_postgres)
    bench.publish([], W1)
    rounds: list[Maintained] = []
    failed: list[BaseException] = []

    def publishing(first: int) -> None:
        try:
            for n in range(first, first + 2):
                bench.publish([event(f"{n}-{i}") for i in range(3)], hour(n))
                delete(bench, f"{n}-0", hour(n + 100))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=publishing, args=(n,)) for n in (0, 20)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        rounds.append(run(bench, timedelta(hours=1)))
    assert failed == []
    assert bench.rows("id") == sorted((f"{n}-{i}",) for first in (0, 20) for n in range(first, first + 2) for i in (1, 2))
    assert sum(each.joined for each in rounds) > 0
    assert sum(each.snapshots for each in rounds) > 0


def test_killed_at_any_step_beside_a_publisher_the_next_one_completes_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one step after the other a window and a delete land, and the maintenance dies."""
    for n, key in enumerate("ab"):
        delete(bench, key, hour(n + 10))
    bench.publish([event("k", "old"), event("gone")], W1)
    age(bench)
    shutil.copytree(tmp_path, tmp_path.with_name("saved"))
    steps: list[str] = []

    def die(at: int) -> Callable[[int, str], None]:
        def act(number: int, name: str) -> None:
            steps.append(name)
            if number == at:
                bench.publish([event("k", "new", 1), event("beside")], W2)
                delete(bench, "gone", hour(20))
                raise Killed

        return act

    for at in (2, 4, 6):
        shutil.rmtree(tmp_path)
        shutil.copytree(tmp_path.with_name("saved"), tmp_path)
        steps.clear()
        with monkeypatch.context() as patch:
            at_each_step(patch, die(at))
            with pytest.raises(Killed):
                run(bench, HOUR)
        assert bench.rows("id", "value") == [("beside", "x"), ("k", "new")], steps
        entries = ledger(bench)
        age(bench)
        run(bench, HOUR)
        assert (bench.rows("id", "value"), ledger(bench)) == ([("beside", "x"), ("k", "new")], entries), steps
        assert bench.publish([event("b", "before its delete"), event("gone", "too")], hour(5)).written == 0, steps
    assert steps == ["iceberg.before-commit", "iceberg.committed"] * 2 + ["iceberg.deleting"] * 2


def test_at_any_step_of_a_publisher_it_takes_nothing_that_is_needed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.publish([event("k", "old")], hour(0))
    for n in range(2):
        delete(bench, f"only {n}", hour(n + 10))
    age(bench)
    done: list[Maintained] = []
    with monkeypatch.context() as patch:
        at_each_step(patch, lambda _, __: done.append(run(bench, HOUR)))
        assert bench.publish([event("k", "new", 9), event("only 0", "again", 9)], hour(20)).written == 2
    assert bench.rows("id", "value") == [("k", "new"), ("only 0", "again")]
    assert len(done) > 8
    assert done[0].joined == 2
    assert bench.publish([event("only 1")], hour(5)).written == 0


def test_what_branches_and_tags_and_the_table_keep_stays(bench: Bench) -> None:
    for n in range(4):
        bench.publish([event("k", f"{n}", n)], hour(n))
    table = bench.load()
    written = [s.snapshot_id for s in table.metadata.snapshots]
    table.manage_snapshots().create_tag(written[1], "audited").create_branch(written[4], "tried", min_snapshots_to_keep=2).commit()
    table.manage_snapshots().create_branch(written[6], "week", max_snapshot_age_ms=3_600_000).commit()
    run(bench)
    left = bench.load()
    assert {s.snapshot_id for s in left.metadata.snapshots} == {*written[:7], written[7]}, "the last branch keeps its hour"
    assert left.scan(snapshot_id=written[1]).to_arrow().column("value").to_pylist() == ["0"]
    left.manage_snapshots().remove_branch("week").commit()
    run(bench)
    assert {s.snapshot_id for s in bench.load().metadata.snapshots} == {written[1], *written[3:5], written[7]}
    with bench.load().transaction() as transaction:
        transaction.set_properties({"history.expire.min-snapshots-to-keep": "3"})
    bench.publish([event("k", "4", 4)], hour(4))
    run(bench)
    assert len(bench.load().metadata.snapshots) == 6


def test_a_branch_that_is_rolled_back_meanwhile_keeps_its_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.publish([event("a")])
    bench.publish([event("b")])
    first = bench.load().metadata.snapshots[1].snapshot_id

    def roll_back(number: int, _: str) -> None:
        if number == 1:
            bench.load().manage_snapshots().rollback_to_snapshot(first).commit()

    at_each_step(monkeypatch, roll_back)
    run(bench)
    assert bench.rows("id") == [("a",)]


def test_a_commit_that_was_made_and_then_refused_loses_no_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a client sends a commit again whose answer it didn't get, and the catalog compares it with itself."""
    for n, key in enumerate("ab"):
        delete(bench, key, hour(n))
    original = SqlCatalog.commit_table

    def twice(self: SqlCatalog, *args: Any) -> Any:
        original(self, *args)
        raise CommitFailedException("it has changed")

    def fails(self: SqlCatalog, *_: Any) -> Any:
        raise ServiceUnavailableError("the catalog is away")

    before = files(bench)
    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", fails)
        with pytest.raises(UnavailableError, match="the catalog is away"):
            run(bench)
        assert files(bench) >= before
        patch.setattr(SqlCatalog, "commit_table", twice)
        run(bench)
    run(bench)
    assert bench.publish([event("a"), event("b"), event("c")], hour(-5)).written == 1
    assert bench.rows("id") == [("c",)]


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "zipped"])
def test_a_table_whose_place_another_one_shares_is_left_alone(bench: Bench, zipped: bool) -> None:
    """Also where the other's metadata is all young, as that of a table at work is, and its rows are old."""
    bench.publish([event("a")])
    other = Bench(bench.properties)
    other.table, other.contract, other.params = "lake.other", bench.contract, {"mode": "upsert", "location": bench.load().location()}
    other.publish([event("theirs")])
    age(bench)
    name = "file://" + bench.load().metadata_location.removeprefix("file://").rpartition("/")[0]
    own = {entry.metadata_file for entry in bench.load().metadata.metadata_log} | {bench.load().metadata_location}
    theirs = [path for path in files(bench) if path.suffix == ".json" and f"{name}/{path.name}" not in own]
    for path in theirs:
        os.utime(path)
        if zipped:  # as other engines may write it
            path.with_name(f"{path.name.removesuffix('.metadata.json')}.gz.metadata.json").write_bytes(gzip.compress(path.read_bytes()))
            path.write_bytes(b"")
    before, snapshots = files(bench), bench.load().metadata.snapshots
    with pytest.raises(SinkError, match=r"holds the metadata of another table too .* if it was dropped, delete its files by hand"):
        run(bench, HOUR)
    assert files(bench) == before
    assert bench.load().metadata.snapshots == snapshots


def test_a_place_outside_of_the_table_is_left_alone_and_named(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    bench.params |= {"properties": {"write.data.path": f"file://{tmp_path}/shared"}}
    bench.publish([event("a")])
    theirs = tmp_path / "shared" / "theirs.parquet"
    theirs.write_bytes(b"x")
    assert run(bench).elsewhere == (f"file://{tmp_path}/shared",)
    assert theirs.exists()
    assert bench.rows("id") == [("a",)]


def test_a_table_whose_files_are_gone_is_named_and_nothing_is_deleted(bench: Bench) -> None:
    bench.publish([event("a")])
    data = next(path for path in files(bench) if path.suffix == ".parquet")
    data.unlink()
    before = files(bench)
    with pytest.raises(SinkError, match=rf"lake\.t names .*{data.name}, which is not there: nothing was done"):
        run(bench)
    assert files(bench) >= before


def test_a_missing_table_is_one_line(bench: Bench) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no table lake\.t in the catalog 'default'"):
        run(bench)


@pytest.mark.slow
def test_in_s3(in_aws: Bench) -> None:
    in_aws.publish([event("a")])
    in_aws.publish([event("a", "new")])
    done = run(in_aws)
    assert done.snapshots == 3
    assert done.orphans > 3
    assert in_aws.rows("id", "value") == [("a", "new")]
    assert in_aws.publish([event("b")], W2).written == 1


def test_the_command_says_what_it_would_do_and_does_it(bench: Bench, offline: Command) -> None:
    bench.publish([event("a")])
    bench.publish([event("b")])
    env = {"ICEBERG_CATALOG": json.dumps(bench.properties)}
    said = offline.ok("sinks", "maintain", bench.table, "--snapshot-days", "0", **env)
    assert (said.data["snapshots"], said.data["dry_run"]) == (3, True)
    assert len(bench.load().metadata.snapshots) == 4
    assert offline.ok("sinks", "maintain", bench.table, "--snapshot-days", "0", "--yes", "--json", **env).data["snapshots"] == 3
    assert len(bench.load().metadata.snapshots) == 1
