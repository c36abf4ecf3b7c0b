"""Tables fit the terminal: as columns, or as a block for each row."""

from __future__ import annotations

import pytest

from factory_agents.console import print_table

WINDOW = "2026-11-01T04:00:00.000Z/2026-11-01T05:00:00.000Z"
COLUMNS = ["pipeline", "window", "error", "letters"]
ROWS = [["clicks", WINDOW, "not JSON: object keys must be strings", 1200], ["clicks", WINDOW, "", 3]]


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(COLUMNS, ROWS, title="dead letters", right=["letters"])
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_table_that_fits_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(capsys, monkeypatch, 140)
    assert lines[0] == "dead letters"
    assert lines[1].split() == COLUMNS
    assert [line.split()[-1] for line in lines[3:]] == ["1,200", "3"]


def test_text_that_fits_by_its_words_is_wrapped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(capsys, monkeypatch, 90)
    assert lines[1].split() == COLUMNS
    assert WINDOW in lines[3]
    assert "not JSON" in lines[3]


def test_where_words_do_not_fit_each_row_is_a_block(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(capsys, monkeypatch, 60) == [
        "dead letters",
        "pipeline   clicks",
        f"window     {WINDOW}",
        "error      not JSON: object keys must be strings",
        "letters    1,200",
        "",
        "pipeline   clicks",
        f"window     {WINDOW}",
        "letters    3",
    ]
