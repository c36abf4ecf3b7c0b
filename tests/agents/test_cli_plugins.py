"""Sources, sinks and codecs from elsewhere by the factory command: installed from a wheel, or beside the user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.agents.test_cli import last_hour
from tests.conftest import TopicFactory
from tests.support.commands import IMPATIENT, ROOT, Command
from tests.support.letters import fill, letter
from tests.support.plugin_wheel import install_plugins
from tests.support.runs import Runs
from tests.support.sqlite_sink import CONTRACT, published


@pytest.mark.parametrize("where", ["installed", "beside the user"])
def test_a_source_and_a_sink_of_a_user(factory: Command, topic: TopicFactory, tmp_path: Path, where: str) -> None:
    site = install_plugins(tmp_path / "wheel")
    source, sink, path = "acme-numbers", "acme-lines", {"PYTHONPATH": str(site)}
    if where == "beside the user":
        package = site / "acme_factory"
        for name in ("numbers", "sqlite_sink"):
            (tmp_path / f"my_{name}.py").write_text((package / f"{name}.py").read_text())
        source, sink, path = "my_numbers:Numbers", "my_sqlite_sink:SqliteSink", {}
    raw = topic("in", partitions=2, message_timestamp_type="LogAppendTime")
    for _ in range(2):
        done = factory("agent", "run", "ingest", "--source", source, "-p", "upto:=20", "--topic", raw, "--json", **path)
        assert done.code == 0, done.err
        assert done.data["counts"]["produced"] == 20
    assert done.data["reused"]
    contract = json.dumps(CONTRACT)
    options = ("--in-topic", raw, "--contract", contract, "-p", f"sink={sink}", "-p", f"path={tmp_path / 'db'}", "--json")
    done = factory("agent", "run", "publish", *options, *last_hour(), **path)
    assert done.code == 0, done.err
    assert (done.data["counts"]["written"], done.data["dataset"]["name"]) == (20, "events")
    assert published(tmp_path / "db") == list(range(20))


@pytest.mark.slow
def test_the_doctor_names_what_is_installed_and_what_is_broken(offline: Command, tmp_path: Path) -> None:
    done = offline("doctor", "--json", program=IMPATIENT, PYTHONPATH=str(install_plugins(tmp_path / "wheel")))
    found = [(f["part"], f["state"], f["text"]) for f in done.data if f["part"] in ("sources", "sinks")]
    assert found[0] == ("sources", "ok", "installed: acme-numbers (acme-factory 1.2)")
    assert found[1][:2] == ("sinks", "fail")
    assert found[1][2].startswith("sink 'broken' of acme-factory 1.2 (acme_factory.broken:Sink): importing acme_factory.broken raised")
    assert found[2] == ("sinks", "ok", "installed: acme-lines (acme-factory 1.2)")


def test_what_there_is_and_what_is_broken_is_one_line(offline: Command, tmp_path: Path) -> None:
    site = str(install_plugins(tmp_path / "wheel"))
    publish = ("agent", "run", "publish", "--in-topic", "t", "--dry-run")
    done = offline(*publish, "-p", "sink=acme-line", PYTHONPATH=site)
    assert done.error.startswith(
        "sink 'acme-line': there is no such sink; did you mean 'acme-lines'? (there are postgres, bigquery, snowflake, iceberg, acme-l"
    )
    done = offline(*publish, "-p", "sink=broken", PYTHONPATH=site)
    assert done.error.startswith("sink 'broken' of acme-factory 1.2 (acme_factory.broken:Sink): importing acme_factory.broken raised")


def test_a_codec_of_a_user_by_flag_and_in_the_topics_file(factory: Command, topic: TopicFactory, tmp_path: Path, runs: Runs) -> None:
    path = {"PYTHONPATH": str(install_plugins(tmp_path / "wheel"))}
    raw, out = (topic(name, partitions=2, message_timestamp_type="LogAppendTime") for name in ("in", "out"))
    numbers = ("--source", "acme-numbers", "-p", "upto:=3")
    factory.ok("agent", "run", "ingest", *numbers, "--topic", raw, "--output-codec", "acme-csv", "--json", **path)
    assert sorted(r.value or b"" for r in runs.everything(raw)) == [b"0,event 0", b"1,event 1", b"2,event 2"]
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "topics.yaml").write_text(f"topics:\n  {raw}: {{codec: acme-csv}}\n")
    done = factory.ok("agent", "run", "enrich", "--in-topic", raw, "--out-topic", out, *last_hour(), "--json", **path)
    assert sorted(r.event["text"] for r in runs.everything(out)) == ["event 0", "event 1", "event 2"]
    assert done.data["counts"]["forwarded"] == 3
    done = factory("agent", "run", "enrich", "--in-topic", raw, "--out-topic", out, *last_hour(), "--input-codec", "acme-cvs", **path)
    assert done.error.startswith("codec 'acme-cvs': there is no such codec; did you mean 'acme-csv'?")


def test_agents_and_codecs_of_the_working_directory_are_found_by_the_console_script(factory: Command, runs: Runs, tmp_path: Path) -> None:
    """Unlike ``python -m``, a console script doesn't look there by itself."""
    (tmp_path / "own.py").write_text(
        "from tests.support.codecs import Pairs\n\nclass Own(Pairs): ...\n\ndef same(event: dict) -> dict:\n    return event\n"
    )
    (tmp_path / "c.yaml").write_text("name: pairs\nid: null\n")
    script = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}
    source, target = runs.topic("in", partitions=1), runs.topic("mended", partitions=1)
    runs.produce(source, [b"event_id=2"])
    tested = factory.ok("contracts", "test", "c.yaml", "--topic", source, "--input-codec", "own:Own", **script)
    assert tested.data["valid"] == 1
    dead = fill(runs, [(letter(topic=source), b"event_id=2")])
    codecs = ("--input-codec", "own:Own", "--output-codec", "own:Own")
    done = factory.ok("dead-letters", "replay", dead, "--to", target, "--through", "own:same", *codecs, **script)
    assert done.data["replayed"] == 1
