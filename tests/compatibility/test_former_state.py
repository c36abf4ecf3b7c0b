"""This release over what a former one left: nothing finished is done again, nothing unfinished is lost, tables and positions stay good."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import psycopg
import pytest
import yaml
from confluent_kafka.admin import AdminClient

from factory_agents.kafka.ledger import read_result
from factory_agents.kafka.transfer import export_ledger
from factory_agents.kafka.windows import read_windows
from factory_agents.protocol import AgentResult, decode_result, decode_run, encode, merge_results
from tests.compatibility.state import DATA, EACH, HOURS, TOPICS, Pipeline, lay_out, stored
from tests.conftest import TopicFactory
from tests.support.databases import own_database
from tests.support.runs import Runs

ROOT = Path(__file__).resolve().parents[2]
STATES = [json.loads(path.read_text()) for path in stored()]


class Left:
    """A state, laid out."""

    def __init__(self, state: dict[str, Any], pipeline: Pipeline) -> None:
        self.state, self.pipeline, self.runs = state, pipeline, pipeline.runs

    def result(self, name: str) -> AgentResult:
        return decode_result(self.state["results"][name])

    def ends(self) -> dict[str, int]:
        return {name: self.runs.cluster.high_watermark(self.pipeline.name(name), [0])[0] for name in TOPICS}


@pytest.fixture(params=STATES, ids=[path.stem for path in stored()])
def left(
    request: pytest.FixtureRequest, bootstrap: str, prefix: str, topic: TopicFactory, admin: AdminClient, database_url: str
) -> Iterator[Left]:
    runs = Runs(bootstrap, prefix, topic, admin)
    with own_database(database_url, "former") as url:
        pipeline = Pipeline(runs, url)
        try:
            yield Left(lay_out(request.param, pipeline), pipeline)
        finally:
            runs.close()
            for future in admin.delete_topics([pipeline.name(name) for name in TOPICS]).values():
                future.exception()


def test_it_is_laid_out_as_it_was(left: Left) -> None:
    for name, records in left.state["logs"].items():
        found = [r for r in left.runs.everything(left.pipeline.name(name)) if r.key != b"pad|"]
        assert [(r.offset, (r.value or b"").decode()) for r in found] == [(r["offset"], r["value"]) for r in records]
    assert [list(row) for row in left.pipeline.rows()] == left.state["rows"]


def test_what_was_finished_is_returned_and_not_done_again(left: Left) -> None:
    before, rows = left.ends(), left.pipeline.rows()
    again = left.pipeline.finished(decode_run(left.state["runs"]["size"]))
    assert again.reused
    former = left.result("size")
    assert (again.manifest, again.counts, again.fingerprint) == (former.manifest, former.counts, former.fingerprint)
    assert left.ends() == before
    assert left.pipeline.finished(decode_run(left.state["runs"]["publish"])).reused
    assert left.pipeline.rows() == rows


def test_what_this_release_asks_for_is_the_same_work(left: Left) -> None:
    """The plan of the hour, the run and its fingerprint, made now as they were then."""
    run = left.pipeline.size(0)
    assert run.window is not None
    assert run.window.ranges == decode_run(left.state["runs"]["size"]).window.ranges  # type: ignore[union-attr]
    result = left.pipeline.finished(run)
    assert result.reused
    assert left.pipeline.finished(left.pipeline.publish(result)).reused


def test_what_was_left_off_is_resumed(left: Left) -> None:
    done = len(left.runs.everything(left.pipeline.name("sized")))
    result = left.pipeline.finished(decode_run(left.state["runs"]["left off"]))
    assert result.resumed
    assert result.counts.consumed == EACH
    written = [r.id for r in left.runs.manifest(result.manifest)]
    assert written == [n for n in range(EACH, 2 * EACH) if n % 10 != 7]
    assert len(left.runs.everything(left.pipeline.name("sized"))) - done < len(written), "it began again"


def test_tables_take_further_hours_and_hours_again(left: Left) -> None:
    second = left.pipeline.finished(left.pipeline.size(1))
    left.pipeline.finished(left.pipeline.publish(second))
    good = [n for n in range(2 * EACH) if n % 10 != 7]
    assert [row[0] for row in left.pipeline.rows()] == good
    redone = left.pipeline.finished(msgspec.structs.replace(left.pipeline.publish(left.result("size")), rerun="redo"))
    assert not redone.reused
    assert [row[0] for row in left.pipeline.rows()] == good
    with psycopg.connect(left.pipeline.url) as connection:
        columns = connection.execute("SELECT array_agg(column_name::text) FROM information_schema.columns WHERE table_name = 'landed'")
        assert "_factory_publication" in columns.fetchone()[0]  # type: ignore[index]


def test_the_next_hour_begins_where_the_last_one_ended(left: Left) -> None:
    left.pipeline.hour(2)
    (cut,) = left.pipeline.window(2).ranges
    assert (cut.start, cut.end) == (2 * EACH, 3 * EACH)
    assert HOURS[1].end == HOURS[2].start


def test_a_live_agent_goes_on_from_its_position(left: Left) -> None:
    assert left.pipeline.position()[0] == left.state["live"]["offset"]
    before = len(left.runs.everything(left.pipeline.name("live")))
    left.pipeline.live(2 * EACH)
    ids = [r.id for r in left.runs.everything(left.pipeline.name("live"))]
    assert ids[:before] == [n for n in range(left.state["live"]["offset"]) if n % 10 != 7]
    assert ids[before:] == [n for n in range(left.state["live"]["offset"], 2 * EACH) if n % 10 != 7]


def test_commands_and_pages_read_it(left: Left) -> None:
    windows = read_windows(left.runs.config, prefix=left.runs.prefix)
    states = {(w.window, s.stage): s.state for w in windows for s in w.stages}
    assert states[(HOURS[0].key, "size")] == states[(HOURS[0].key, "publish")] == "done"
    assert states[(HOURS[1].key, "size")] != "done"
    work = decode_run(left.state["runs"]["size"]).work
    found = read_result(left.runs.config, work, prefix=left.runs.prefix)
    assert found is not None
    assert found.manifest == left.result("size").manifest
    assert len(list(export_ledger(left.runs.config, left.runs.prefix, prefix=left.runs.prefix))) > 5


@pytest.mark.parametrize("state", STATES, ids=[path.stem for path in stored()])
def test_its_messages_are_understood(state: dict[str, Any]) -> None:
    """Runs and results as they lie in an orchestrator's database, for tasks that wait while it is upgraded."""
    for run in state["runs"].values():
        assert json.loads(encode(decode_run(run))) == run
    for result in state["results"].values():
        assert json.loads(encode(decode_result(result))) == result
        assert decode_result({**result, "of_the_future": 1}) == decode_result(result)
    assert merge_results([decode_result(state["results"]["size"])]).size > 0


@pytest.mark.parametrize("path", sorted(DATA.glob("values-*.yaml")), ids=lambda path: path.stem)
def test_a_charts_former_values_are_taken(path: Path) -> None:
    chart = path.stem.split("-")[1]
    schema = json.loads((ROOT / f"deploy/helm/{chart}/values.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)
