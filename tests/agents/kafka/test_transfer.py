"""A pipeline's ledger moves to another cluster and comes back: it goes on where it stood, or says why it can't."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from factory_agents.errors import ConfigurationError, DataLossError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.cuts import plan_window
from factory_agents.kafka.ledger import Ledger, LedgerView, PlanRecord, StageRecord
from factory_agents.kafka.topics import Cluster
from factory_agents.kafka.transfer import Imported, OffsetMaps, export_ledger, import_ledger, read_offset_maps
from factory_agents.protocol import Window
from tests.agents.kafka.test_pruner import Hourly, hour
from tests.support.commands import ROOT, Command
from tests.support.runs import Runs
from tests.support.waiting import wait_for

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

    from factory_agents.sandbox import Sandbox
    from tests.conftest import TopicFactory


class Move:
    """A pipeline with three windows, two of them done, and another ledger to move it to."""

    def __init__(self, hourly: Hourly) -> None:
        self.hourly, self.runs = hourly, hourly.runs
        self.pipeline = hourly.runs.prefix
        self.there = f"{hourly.runs.prefix}-moved"
        self.windows = hourly.done(2)
        hourly.plan(2)

    def exported(self) -> list[bytes]:
        return list(export_ledger(self.runs.config, self.pipeline, prefix=self.runs.prefix))

    def imported(self, lines: list[bytes], *, dry_run: bool = False, offsets: OffsetMaps | None = None) -> Imported:
        return import_ledger(self.runs.config, lines, prefix=self.there, dry_run=dry_run, offsets=offsets)

    def ledger(self, prefix: str) -> Ledger:
        return Ledger(self.runs.config, self.runs.cluster, prefix=prefix, pipeline=self.pipeline)

    def view(self, prefix: str) -> LedgerView:
        return self.ledger(prefix).read(deadline=time.monotonic() + 30)

    def plan(self, n: int, prefix: str = "") -> Window:
        return plan_window(self.runs.config, pipeline=self.pipeline, topic=self.hourly.topic, interval=hour(n), prefix=prefix or self.there)


@pytest.fixture
def move(bootstrap: str, prefix: str, topic: TopicFactory, admin: AdminClient) -> Iterator[Move]:
    runs = Runs(bootstrap, prefix, topic, admin)
    own = Move(Hourly(runs))
    yield own
    runs.close()
    admin.delete_topics([f"{own.there}.ledger"])[f"{own.there}.ledger"].exception()


class TestARestoredLedger:
    def test_says_the_same(self, move: Move) -> None:
        done = move.imported(move.exported())
        old, new = move.view(move.runs.prefix), move.view(move.there)
        keys = old.keys()
        assert new.keys() == keys
        assert [new.get(key) for key in keys] == [old.get(key) for key in keys]
        assert (done.records, done.translated, done.left_out) == (len(keys), 0, 0)

    def test_plans_the_same_windows_and_tiles_on(self, move: Move) -> None:
        move.imported(move.exported())
        assert [move.plan(n).ranges for n in range(5)] == [move.plan(n, move.runs.prefix).ranges for n in range(5)]

    def test_has_what_was_done(self, move: Move) -> None:
        move.imported(move.exported())
        run = move.hourly.run(move.windows[0], prefix=move.there)
        assert move.runs.transform(run).reused

    def test_goes_on_with_its_clock(self, move: Move) -> None:
        """A sink takes the manifest of the greater generation for the newer one."""
        newest = max(r.generation for r in move.view(move.runs.prefix).of(StageRecord))
        move.imported(move.exported())
        assert move.plan(3).generation > newest
        assert move.view(move.there).offset(move.view(move.there).of(PlanRecord)[0].key()) >= move.view(move.runs.prefix).end  # type: ignore[operator]

    def test_is_written_once(self, move: Move) -> None:
        lines = move.exported()
        assert move.imported(lines, dry_run=True).records == len(lines) - 1
        assert move.runs.cluster.find(f"{move.there}.ledger") is None
        move.imported(lines)
        end = move.view(move.there).end
        assert move.imported(lines).records == 0
        assert move.view(move.there).keys() == move.view(move.runs.prefix).keys()
        assert move.view(move.there).end == end

    def test_is_refused_over_other_work(self, move: Move) -> None:
        lines = move.exported()
        move.plan(4)
        for dry_run in (True, False):
            with pytest.raises(ConfigurationError, match=r"has work of it already .*--prefix"):
                move.imported(lines, dry_run=dry_run)

    def test_is_written_whole_by_the_next_import_where_one_was_killed(self, move: Move, tmp_path: Path) -> None:
        file = tmp_path / "ledger.jsonl"
        file.write_bytes(b"".join(move.exported()))
        command = [sys.executable, "-m", "factory_agents.cli", "ledger", "import", str(file), "--prefix", move.there]
        environment = os.environ | {"KAFKA_BOOTSTRAP": move.runs.bootstrap, "FACTORY_FAILPOINTS": "import.before-commit=kill"}
        assert subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode == -signal.SIGKILL
        move.imported(move.exported())
        assert move.view(move.there).keys() == move.view(move.runs.prefix).keys()


class TestAFile:
    def test_that_is_none_or_was_cut_off_is_refused(self, move: Move) -> None:
        lines = move.exported()
        header = json.loads(lines[0])
        for broken, why in (
            ([], "line 1: not the first line"),
            (lines[1:], "line 1: not the first line"),
            (lines[:-1], "was it cut off"),
            ([*lines[:-1], lines[-1][:20]], "cut off"),
            ([json.dumps(header | {"version": 2}).encode(), *lines[1:]], "expected factory-ledger of version 1, got factory-ledger 2"),
        ):
            with pytest.raises(ConfigurationError, match=why):
                move.imported(broken)

    def test_of_a_pipeline_that_did_nothing_is_not_written(self, move: Move, factory: Command) -> None:
        done = factory("ledger", "export", "--pipeline", "nobody", "-o", "ledger.jsonl")
        assert "holds nothing of it" in done.error
        assert not list(factory.cwd.iterdir())

    def test_is_what_the_commands_write_and_read(self, move: Move, factory: Command) -> None:
        said = factory.ok("ledger", "export", "--pipeline", move.pipeline, "-o", "ledger.jsonl").out
        assert f"{len(move.exported()) - 1} records of pipeline '{move.pipeline}' are in ledger.jsonl" in " ".join(said.split())
        done = factory.ok("ledger", "import", "ledger.jsonl", "--prefix", move.there).data
        assert done["records"] == len(move.exported()) - 1


class TestTopicsThatMoved:
    """Here: deleted and created again, where a record more lies in front of what was written before."""

    @pytest.fixture
    def noted(self, move: Move) -> list[bytes]:
        runs, hourly = move.runs, move.hourly
        lines = move.exported()
        for topic in (hourly.topic, hourly.out):
            kept = {p: list(runs.read(topic, p, 0, end)) for p, end in runs.cluster.high_watermark(topic, range(2)).items()}
            runs.admin.delete_topics([topic])[topic].result()
            runs.cluster.create(topic, 2)
            for partition, records in kept.items():
                if topic == hourly.out:
                    runs.produce(topic, [b"{}"], partition=partition, timestamp=hour(0).start_ms)
                for record in records:
                    headers = list(record.headers.items())
                    runs.produce(topic, [record.value], partition=partition, headers=headers, timestamp=record.timestamp)
        return lines

    @pytest.fixture
    def lines(self, noted: list[bytes]) -> list[bytes]:
        """As a release wrote it that noted nothing of what lay at its offsets."""
        header = json.loads(noted[0])
        del header["places"]
        return [json.dumps(header).encode(), *noted[1:]]

    def maps(self, move: Move, lines: list[bytes]) -> OffsetMaps:
        """Each place that the records speak of, as whoever copied the topics knows it."""
        old = [json.loads(line)["value"] for line in lines[1:]]
        out = {p: {0: 1} for p in range(2)}
        for value in (v for v in old if v["kind"] == "stage"):
            for partition, start, end, count in value["result"]["manifest"]["ranges"]:
                assert count == 1
                out[partition][start] = 1 + len(out[partition]) // 2
                out[partition][end] = out[partition][start] + 1
        return {
            move.hourly.topic: dict.fromkeys(range(2), ((0, 0), (6, 6))),
            move.hourly.out: {p: tuple(sorted(pairs.items())) for p, pairs in out.items()},
        }

    def test_need_to_be_told(self, move: Move, lines: list[bytes]) -> None:
        with pytest.raises(ConfigurationError, match=r"it is another one here .*--offsets"):
            move.imported(lines)

    @pytest.mark.parametrize("told", ["by pairs", "by what lay there"])
    def test_go_on_where_they_stood(self, move: Move, noted: list[bytes], lines: list[bytes], told: str) -> None:
        done = move.imported(lines, offsets=self.maps(move, lines)) if told == "by pairs" else move.imported(noted)
        assert done.translated > 0
        assert set(done.topics) == {move.hourly.topic, move.hourly.out}
        window = move.plan(0)
        assert window.topic_id == move.runs.cluster.topic(move.hourly.topic).id
        assert [(r.start, r.end) for r in window.ranges] == [(0, 1), (0, 1)]
        assert [(r.start, r.end) for r in move.plan(3).ranges] == [(3, 4), (3, 4)]
        for record in move.view(move.there).of(StageRecord):
            assert record.result is not None
            assert len(move.runs.manifest(record.result.manifest)) == 2

    def test_are_refused_where_an_offset_cant_be_told(self, move: Move, lines: list[bytes]) -> None:
        maps = {**self.maps(move, lines), move.hourly.topic: {0: ((0, 0), (6, 6)), 1: ((0, 0), (6, 4))}}
        with pytest.raises(DataLossError, match=r"partition 1: nothing says which offset here is 1 there"):
            move.imported(lines, offsets=maps)

    def test_are_refused_where_records_are_missing(self, move: Move, noted: list[bytes]) -> None:
        """One of the window's own: what lies there instead isn't taken for it."""
        move.runs.delete_before(move.hourly.topic, 1, 1)
        with pytest.raises(DataLossError, match=r"partition 1: the record at offset 0 there, of .*, isn't here, or others lie before it"):
            move.imported(noted)

    def test_take_a_pair_where_records_dont_tell(self, move: Move, noted: list[bytes]) -> None:
        header = json.loads(noted[0])
        there = header["places"][move.hourly.topic]["0"]
        there.remove(next(place for place in there if place[0] == 1))
        lines = [json.dumps(header).encode(), *noted[1:]]
        with pytest.raises(DataLossError, match=r"partition 0: nothing says which offset here is 1 there .*the pair \[1, …\]"):
            move.imported(lines, dry_run=True)
        move.imported(lines, offsets={move.hourly.topic: {0: [(1, 1)]}})
        assert [(r.start, r.end) for r in move.plan(0).ranges] == [(0, 1), (0, 1)]

    def test_are_refused_where_one_is_missing(self, move: Move, lines: list[bytes]) -> None:
        move.runs.admin.delete_topics([move.hourly.out])[move.hourly.out].result()
        wait_for(lambda: move.runs.cluster.find(move.hourly.out) is None, "the topic to be gone")
        with pytest.raises(ConfigurationError, match="it isn't there; copy it first"):
            move.imported(lines, offsets=self.maps(move, lines))


def test_offset_maps_are_pairs_in_order(tmp_path: Path) -> None:
    file = tmp_path / "offsets.json"
    file.write_text('{"t": {"0": [[0, 0], [500, 480]]}}')
    assert read_offset_maps(str(file)) == {"t": {0: [(0, 0), (500, 480)]}}
    for text, why in (('{"t": {"0": [[5, 0], [5, 4]]}}', "in order"), ('{"t": [[0, 0]]}', "expected"), ("", "expected")):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=why):
            read_offset_maps(str(file))


def test_a_pipeline_moves_to_another_cluster(move: Move, own_sandbox: Sandbox) -> None:
    """Brokers of their own; the topics are copied record by record, and are found in the copies by what they hold."""
    runs, there = move.runs, KafkaConfig(own_sandbox.info().bootstrap)
    cluster = Cluster(there)
    producer = there.plain_producer()
    for topic in (move.hourly.topic, move.hourly.out):
        cluster.create(topic, 2)
        for partition, end in runs.cluster.high_watermark(topic, range(2)).items():
            for r in runs.read(topic, partition, 0, end):
                producer.produce(topic, r.value, partition=partition, headers=list(r.headers.items()), timestamp=r.timestamp)
    assert producer.flush(60) == 0
    import_ledger(there, move.exported())
    window = plan_window(there, pipeline=move.pipeline, topic=move.hourly.topic, interval=hour(1))
    assert [(r.start, r.end) for r in window.ranges] == [(1, 2), (1, 2)]
    assert window.topic_id == cluster.topic(move.hourly.topic).id
