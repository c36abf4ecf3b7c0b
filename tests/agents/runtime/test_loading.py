"""Finding a user's agent by name, or in source text that travels."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import pytest

from factory_agents.errors import AgentError
from factory_agents.protocol import AgentRef
from factory_agents.runtime.loading import describe, load_agent_ref, load_function, load_source


@pytest.fixture(autouse=True)
def clean_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory; what a test imports from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if p != "")])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


class TestModuleFunction:
    def test_a_module_on_the_path_is_found(self, tmp_path: Path) -> None:
        (tmp_path / "clicks").mkdir()
        (tmp_path / "clicks" / "rules.py").write_text("def enrich(event):\n    return event | {'ok': 1}\n")
        found = load_function("clicks.rules:enrich")
        assert found({}) == {"ok": 1}
        assert found.name == "enrich"

    def test_an_agent_keeps_what_it_declares(self, tmp_path: Path) -> None:
        (tmp_path / "declared.py").write_text(
            "from factory_agents.runtime.agents import agent\n\n"
            "@agent(name='n', version='3', batch=True, key='k')\ndef f(events):\n    return events\n"
        )
        found = load_function("declared:f")
        assert (found.name, found.version, found.batch, found.key) == ("n", "3", True, "k")

    def test_the_version_changes_with_the_module(self, tmp_path: Path) -> None:
        versions = []
        for n in (1, 2):
            (tmp_path / f"v{n}.py").write_text(f"def f(event):\n    return {n}\n")
            versions.append(load_function(f"v{n}:f").version)
        assert len(set(versions)) == 2

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("clicks", "expected module:function, for example"),
            (":f", "expected module:function"),
            ("nowhere:f", r"no module 'nowhere' in .*; correct it, or set PYTHONPATH"),
            ("json.nowhere:f", "no module 'json.nowhere'"),
            ("broken:f", r"importing broken raised ZeroDivisionError: division by zero \(.*broken.py:2\)"),
            ("typo:f", r"importing typo raised SyntaxError: .*typo.py:1\)"),
            ("needs:f", "needs imports 'not_installed_here', which is not installed here"),
            ("good:enrihc", "good has no 'enrihc'; did you mean 'enrich'"),
            ("good:NUMBER", "expected a function or an @agent, got int"),
        ],
    )
    def test_what_stands_in_the_way_is_one_clear_line(self, tmp_path: Path, spec: str, message: str) -> None:
        (tmp_path / "broken.py").write_text("\n1 / 0\n")
        (tmp_path / "typo.py").write_text("def f(:\n")
        (tmp_path / "needs.py").write_text("import not_installed_here\n")
        (tmp_path / "good.py").write_text("NUMBER = 1\ndef enrich(event):\n    return event\n")
        with pytest.raises(AgentError, match=message) as caught:
            load_function(spec)
        assert "\n" not in str(caught.value)


SOURCE = """import math

def enrich(event: dict, base: int = 2) -> dict:
    event["log"] = math.log(event["n"], base)
    return event
"""


class TestSource:
    def test_the_text_is_a_module_of_its_own(self) -> None:
        found = load_source(SOURCE, "enrich")
        assert found.bind({"base": "2"}).identity == {"params": {"base": 2}}
        assert found({"n": 8})["log"] == pytest.approx(3)

    def test_the_version_is_a_hash_of_the_text(self) -> None:
        assert load_source(SOURCE, "enrich").version == load_source(SOURCE, "enrich").version
        assert load_source(SOURCE, "enrich").version != load_source(SOURCE + "\n", "enrich").version

    def test_tracebacks_show_the_line(self) -> None:
        with pytest.raises(ValueError, match=r"math domain error|expected a positive") as caught:
            load_source(SOURCE, "enrich")({"n": -1})
        assert 'event["log"] = math.log(event["n"], base)' in "".join(traceback.format_exception(caught.value))

    def test_dataclasses_and_late_annotations_work(self) -> None:
        text = (
            "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass P:\n    n: int\n\n"
            "def f(event: dict, by: P | None = None) -> dict:\n    return event | {'n': P(1).n}\n"
        )
        assert load_source(text, "f")({}) == {"n": 1}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("def f(:\n", r"agent 'x': its source raised SyntaxError: .* \(<agent x \w+>:1\)"),
            ("\nunknown\n", r"its source raised NameError: name 'unknown' is not defined \(<agent x \w+>:2\)"),
            ("def g(event):\n    return event\n", "has no 'f'"),
        ],
    )
    def test_what_stands_in_the_way_is_one_clear_line(self, text: str, message: str) -> None:
        with pytest.raises(AgentError, match=message):
            load_source(text, "f", "x")


class TestReference:
    def test_source_goes_before_the_name(self) -> None:
        found = load_agent_ref(AgentRef("clicks", source=SOURCE, function="enrich"))
        assert (found.name, found({"n": 4})["log"]) == ("clicks", 2)
        assert load_agent_ref(AgentRef("enrich", source=SOURCE)).name == "enrich"

    def test_a_version_given_is_the_version(self, tmp_path: Path) -> None:
        (tmp_path / "given.py").write_text("def f(event):\n    return event\n")
        assert load_agent_ref(AgentRef("given:f", version="9")).version == "9"
        assert load_agent_ref(AgentRef("n", version="9", source=SOURCE, function="enrich")).version == "9"


def test_an_error_of_many_lines_is_described_in_one() -> None:
    assert describe(ValueError("1 error\n  in line 2\n")) == "ValueError: 1 error in line 2"
