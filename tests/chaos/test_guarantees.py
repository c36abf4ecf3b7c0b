"""``docs/guarantees.md`` and ``docs/security.md`` name tests: all of them exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.runs import ROOT

PAGES = ("guarantees.md", "security.md")
NAMED = sorted({named for page in PAGES for named in re.findall(r"`(tests/[\w/]+\.py)((?:::\w+)*)`", (ROOT / "docs" / page).read_text())})


def test_some_are_named() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize(("file", "names"), NAMED)
def test_a_test_that_a_page_names_exists(file: str, names: str) -> None:
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text()).body
    for name in filter(None, names.split("::")):
        found = [node for node in body if name in _defined(node)]
        assert found, f"{file} has no {name}"
        body = getattr(found[0], "body", [])


def _defined(node: ast.stmt) -> list[str]:
    """The test, or the class of tests, that a statement defines; hypothesis makes one of a state machine by an assignment."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
