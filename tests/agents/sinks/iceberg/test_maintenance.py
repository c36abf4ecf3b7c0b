"""The maintenance of a table: what goes, what stays, and that publishers don't notice."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.table.refs import SnapshotRefType

from factory_agents.errors import ConfigurationError, SinkError
from factory_agents.sinks.iceberg import CatalogSettings, Maintained, maintain, table_name
from factory_agents.testing.records import CONTRACT, W1, W2, W3, event, gone
from tests.support.commands import Command
from tests.support.iceberg import Bench

NOW = timedelta()


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


def ledger(bench: Bench) -> dict[str, str]:
    return {name: value for name, value in bench.load().properties.items() if name.startswith("factory.publish.")}


def test_what_nothing_names_goes_and_rows_ledger_and_deletes_stay(bench: Bench) -> None:
    for n, key in enumerate("abc"):
        delete(bench, key, hour(n + 10))
    bench.publish([event(f"k{n}") for n in range(5)], W1)
    bench.publish([event("k0", "again"), event("a", "before its delete")], W1)
    bench.publish([event("z")], W3)
    rows, entries, before = bench.rows("id", "value"), ledger(bench), files(bench)
    stray = Path(bench.load().location().removeprefix("file://")) / "data" / "left-by-a-killed-publisher.parquet"
    stray.write_bytes(b"x" * 1000)

    told = run(bench, dry_run=True)
    assert (files(bench), ledger(bench)) == (before | {stray}, entries)
    done = run(bench)
    assert (done.joined, done.into) == (told.joined, told.into) == (3, 1)
    assert done.snapshots >= told.snapshots > 5
    assert done.orphans >= told.orphans > 5
    assert done.bytes > 1000
    assert not stray.exists()
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
            for n in range(first, first + 3):
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
    assert bench.rows("id") == sorted((f"{n}-{i}",) for first in (0, 20) for n in range(first, first + 3) for i in (1, 2))
    assert sum(each.joined for each in rounds) > 0
    assert sum(each.snapshots for each in rounds) > 0


def test_a_table_whose_place_another_one_shares_is_left_alone(bench: Bench) -> None:
    bench.publish([event("a")])
    other = Bench(bench.properties)
    other.table, other.contract, other.params = "lake.other", bench.contract, {"mode": "upsert", "location": bench.load().location()}
    other.publish([event("theirs")])
    before = files(bench)
    with pytest.raises(SinkError, match=r"holds the metadata of another table too .* if it was dropped, delete its files by hand"):
        run(bench)
    assert files(bench) >= before
    assert other.rows("id") == [("theirs",)]


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
    with pytest.raises(SinkError, match=rf"lake\.t names .*{data.name}, which is not there: nothing was deleted"):
        run(bench)
    assert files(bench) >= before


def test_a_missing_table_is_one_line(bench: Bench) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no table lake\.t in the catalog 'default'"):
        run(bench)


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
    assert offline.ok("sinks", "maintain", bench.table, "--snapshot-days", "0", "--yes", "--json", **env).data["snapshots"] == 3
    assert len(bench.load().metadata.snapshots) == 1
    assert offline("sinks", "maintain", bench.table, "--orphan-days", "0.1", **env).code == 2
