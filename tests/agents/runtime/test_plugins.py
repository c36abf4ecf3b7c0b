"""Finding sources and sinks from elsewhere, and what is said where that fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory_agents import ingest, publish
from factory_agents.enrich import build as build_enrich
from factory_agents.errors import ConfigurationError
from factory_agents.protocol import AgentRef, AgentRun
from factory_agents.runtime.plugins import SINKS, SOURCES, find_plugin, installed
from factory_agents.testing.records import CONTRACT

SINK = """
from factory_agents import LedgerSink

class Sink:
    def __init__(self, path: str = "", size: int = 1, untrusted=()):
        self.path, self.size, self.untrusted = path, size, untrusted
    def claim(self, claim): ...
    def write(self, messages): ...
    def commit(self, *, rejected): ...

class Half:
    def claim(self, claim): ...

class Proud:
    def __init__(self):
        raise OSError("no disk")

class Source:
    def __init__(self, upto: int):
        self.upto = upto
    def read(self, interval, skip):
        yield []

class Ledger(LedgerSink):
    def stage(self, part, rows): ...

class Keyed(LedgerSink):
    capability = "idempotent"
    def stage(self, part, rows): ...
    def land(self, landing): ...

class Contracted(Keyed):
    def __init__(self, contract, *more, path=""):
        self.given = contract

class Wrong(Keyed):
    capability = "transaction"

class Slotted:
    __slots__ = ("x",)

NUMBER = 1
"""
INTERVALS = {"name": "n", "id": "id", "version_field": "v", "columns": {"id": "text", "v": "interval"}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory and a folder of installed distributions that only this test sees."""
    here, site = tmp_path / "here", tmp_path / "site"
    here.mkdir()
    site.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(here), str(site), *(p for p in sys.path if p)])
    (here / "mine.py").write_text(SINK)
    (here / "marks.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n{SINK}")
    yield here
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def install(here: Path, name: str, points: str, **modules: str) -> None:
    site = here.parent / "site"
    info = site / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(points)
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)


def run_of(*untrusted: str) -> AgentRun:
    return AgentRun("p", "publish", AgentRef("publish"), name="all", untrusted=untrusted)


class TestYourOwn:
    def test_a_class_of_the_working_directory_is_made_with_the_other_parameters(self, here: Path) -> None:
        sink: Any = publish.build({"sink": "mine:Sink", "path": "x", "size": "5"})
        assert (sink.path, sink.size, sink.untrusted) == ("x", 5, ())
        assert (sink.name, sink.identity) == ("mine:Sink", {"params": {"path": "x", "size": "5"}})
        sink.close()
        source: Any = ingest.build({"source": "mine:Source", "upto": "3"})
        assert (source.upto, source.identity) == (3, {"params": {"upto": "3"}, "volatile": True})

    def test_a_sink_may_want_the_contract_too(self, here: Path) -> None:
        sink: Any = publish.build({"sink": "mine:Contracted", "contract": CONTRACT, "path": "x"})
        assert sink._sink.given == CONTRACT
        assert sink._table.key == ("id",)

    def test_other_code_is_another_version(self, here: Path) -> None:
        versions = []
        for n in range(2):
            (here / f"v{n}.py").write_text(f"N = {n}\n{SINK}")
            versions.append(publish.build({"sink": f"v{n}:Sink"}).version)
        assert len(set(versions)) == 2

    def test_a_path_is_made_of_its_text(self, here: Path) -> None:
        (here / "paths.py").write_text(
            f"from pathlib import Path\n{SINK}\nclass P(Sink):\n    def __init__(self, at: Path):\n        self.at = at\n"
        )
        assert publish.build({"sink": "paths:P", "at": "a/b"}).at == Path("a/b")  # type: ignore[attr-defined]

    def test_work_over_other_parameters_of_a_source_is_other_work(self, here: Path) -> None:
        names = {ingest.source_name({"source": "mine:Source", "upto": n}) for n in (1, 1, 2)}
        assert len(names) == 2

    def test_a_file_of_that_name_is_still_a_file(self, here: Path) -> None:
        (here / "mine:Source").write_text('{"a": 1}\n')
        assert ingest.build({"source": "mine:Source", "format": "jsonl"}).identity["files"]

    @pytest.mark.parametrize(
        ("params", "says"),
        [
            ({"sink": "mine:Sikn"}, "sink 'mine:Sikn': mine has no 'Sikn'; did you mean 'Sink'?"),
            ({"sink": "nine:Sink"}, "sink 'nine:Sink': no module 'nine' in .*; correct it, or set PYTHONPATH"),
            ({"sink": "mine:Sink", "pth": 1}, "sink 'mine:Sink': unknown parameter 'pth'; did you mean 'path'"),
            ({"sink": "mine:Sink", "size": "x"}, "sink 'mine:Sink': parameter 'size': Expected `int`"),
            ({"sink": "mine:Half"}, "sink 'mine:Half': not a sink: expected a LedgerSink, or one with write, commit too"),
            ({"sink": "mine:Sink", "contract": CONTRACT}, "sink 'mine:Sink': unknown parameter 'contract'; only a LedgerSink takes one"),
            ({"sink": "mine:Ledger"}, "sink 'mine:Ledger': parameter 'contract' is required: it gives columns, key and order"),
            ({"sink": "mine:Ledger", "contract": CONTRACT}, "sink Ledger: it lacks read, change, land"),
            ({"sink": "mine:Keyed", "contract": {"name": "n", "id": None, "columns": {"a": "text"}}}, "names no key"),
            ({"sink": "mine:Keyed", "contract": {**CONTRACT, "deletes": True}}, "sink Keyed: it takes no deletes, and the contract has"),
            ({"sink": "mine:Keyed", "contract": INTERVALS}, "column 'v': rows are compared by it; expected one of bigint, .* got interval"),
            (
                {"sink": "mine:Wrong", "contract": CONTRACT},
                "sink Wrong: capability: expected transactional or idempotent, got 'transaction'",
            ),
            ({"sink": "mine:NUMBER"}, "sink 'mine:NUMBER': expected a class that is called with its parameters, got int"),
            ({"sink": "mine:Proud"}, r"sink 'mine:Proud': making it raised OSError: no disk \(.*mine.py:\d+\)"),
            (
                {"sink": "postgre"},
                r"sink 'postgre': there is no such sink; did you mean 'postgres'\? \(there are postgres, bigquery, snowflake, iceberg\)",
            ),
            ({"sink": "mine:Slotted"}, "sink 'mine:Slotted': it has no attribute 'name', and none can be set"),
            ({"sink": "mine.Sink"}, r"no such sink \(there are postgres, bigquery, snowflake, iceberg\); or your own as module:Class"),
        ],
    )
    def test_what_stands_in_the_way_is_one_clear_line(self, here: Path, params: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigurationError, match=says) as caught:
            publish.build(params)
        assert "\n" not in str(caught.value)

    def test_a_source_that_lacks_a_parameter(self, here: Path) -> None:
        with pytest.raises(ConfigurationError, match="source 'mine:Source': parameter 'upto' is required"):
            ingest.build({"source": "mine:Source"})


class TestInstalled:
    def test_is_found_by_its_name(self, here: Path) -> None:
        install(
            here, "acme", "[factory_agents.sinks]\nacme = theirs:Sink\n[factory_agents.sources]\nnumbers = theirs:Source\n", theirs=SINK
        )
        assert publish.build({"sink": "acme", "path": "x"}).name == "acme"
        assert ingest.build({"source": "numbers", "upto": 1}).name == "numbers"
        assert list(installed(SOURCES)) == ["numbers"]
        with pytest.raises(
            ConfigurationError, match=r"'acne': there is no such sink; did you mean 'acme'\? .*postgres, bigquery, snowflake, iceberg, acme"
        ):
            publish.build({"sink": "acne"})
        with pytest.raises(ConfigurationError, match=r"'number': there is no such source; did you mean 'numbers'\? \(there are numbers\)"):
            ingest.build({"source": "number"})

    @pytest.mark.parametrize(
        ("value", "text", "says"),
        [
            ("broken:Sink", "1 / 0", "sink 'bad' of acme 1.2 .broken:Sink.: importing broken raised ZeroDivisionError"),
            ("broken:Sink", "raise SystemExit(3)", "of acme 1.2 .* importing broken raised SystemExit"),
            ("broken:Sink", "import not_there", "of acme 1.2 .* broken imports 'not_there', which is not installed here"),
            ("broken:Sikn", SINK, "of acme 1.2 .* broken has no 'Sikn'; did you mean 'Sink'"),
            ("nowhere:Sink", SINK, "of acme 1.2 .* no module 'nowhere'"),
            ("broken", SINK, "of acme 1.2 .broken.: expected module:Class"),
        ],
    )
    def test_a_broken_one_names_its_distribution_and_hinders_no_other(self, here: Path, value: str, text: str, says: str) -> None:
        install(here, "acme", f"[factory_agents.sinks]\nbad = {value}\n", broken=text)
        install(here, "other", "[factory_agents.sinks]\ngood = fine:Sink\n", fine=SINK)
        (here.parent / "site" / "worse-1.dist-info").mkdir()
        (here.parent / "site" / "worse-1.dist-info" / "entry_points.txt").write_bytes(b"\xff[\n")
        with pytest.raises(ConfigurationError, match=says) as caught:
            publish.build({"sink": "bad"})
        assert "\n" not in str(caught.value)
        assert publish.build({"sink": "good"}).name == "good"

    def test_of_two_of_one_name_neither_is_taken(self, here: Path) -> None:
        for name in ("one", "two"):
            install(here, name, f"[factory_agents.sinks]\nsame = {name}s:Sink\n", **{f"{name}s": SINK})
        with pytest.raises(ConfigurationError, match=r"sink 'same': (one|two) 1.2 and (one|two) 1.2 bring one each; uninstall one"):
            publish.build({"sink": "same"})

    def test_a_built_in_cannot_be_replaced(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://u@h/d")
        install(here, "acme", "[factory_agents.sinks]\npostgres = theirs:Sink\n", theirs=SINK)
        assert type(publish.build({"table": "t"})).__name__ == "PostgresSink"


class TestWhoeverStartedTheRun:
    """May name what is installed, and gets nothing else imported."""

    @pytest.mark.parametrize("name", ["marks:Sink", "os:system", "subprocess:Popen"])
    def test_gets_no_class_imported(self, here: Path, name: str) -> None:
        says = "it comes from a parameter of the run, so it may only be the name of an installed one"
        with pytest.raises(ConfigurationError, match=says):
            publish.build({"sink": name}, run_of("sink"))
        with pytest.raises(ConfigurationError, match=says):
            ingest.build({"source": name}, run_of("source"))
        assert not (here.parent / "imported").exists()

    def test_gets_no_function_imported(self, here: Path) -> None:
        with pytest.raises(ConfigurationError, match="function: it comes from a parameter of the run; name the function in the DAG"):
            build_enrich({"function": "marks:Sink"}, run_of("function"))
        assert not (here.parent / "imported").exists()

    def test_may_choose_among_the_installed(self, here: Path) -> None:
        install(here, "acme", "[factory_agents.sinks]\nacme = theirs:Sink\n", theirs=SINK)
        sink: Any = publish.build({"sink": "acme", "path": "/etc/passwd", "size": 3}, run_of("sink", "path", "table"))
        assert sink.untrusted == ("path",)  # it is told what not to trust

    def test_the_author_names_any_class(self, here: Path) -> None:
        assert find_plugin(SINKS, "mine:Sink").make({}, untrusted=("path",)).size == 1
        assert publish.build({"sink": "mine:Sink"}, msgspec.structs.replace(run_of("path"), params={})).name == "mine:Sink"
