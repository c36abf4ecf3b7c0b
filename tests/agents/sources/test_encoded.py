"""Files of other encodings than UTF-8 are read by option, and say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.sources.rows import ReadOptions
from tests.agents.sources.reading import read, source, values

TEXTS = {"csv": 't,a\n1,"{}"\n', "jsonl": '{{"t":"1","a":"{}"}}\n'}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_wide_text_that_is_taken_for_utf8_names_the_option(tmp_path: Path, kind: str, encoding: str) -> None:
    path = tmp_path / f"f.{kind}"
    path.write_bytes(TEXTS[kind].format("é").encode(encoding))
    with pytest.raises(ConfigurationError, match=rf"f\.{kind}: not utf-8, but UTF-(16|32): set encoding: utf-(16|32)"):
        read(source(path, ReadOptions()), None)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "cp1252", "utf-8-sig", "UTF8"])
def test_every_kind_of_text_is_read_by_option(tmp_path: Path, kind: str, encoding: str) -> None:
    path = tmp_path / f"f.{kind}"
    path.write_bytes(TEXTS[kind].format("é").encode(encoding))
    assert values(read(source(path, ReadOptions(encoding=encoding)), None)) == ['{"t":"1","a":"é"}'.encode()]


def test_a_header_that_is_no_text_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes("té,a\n1,é\n".encode("cp1252"))
    with pytest.raises(ConfigurationError, match=r"header line cannot be read: .*; set encoding to the file's, such as cp1252"):
        read(source(tmp_path / "f.csv", ReadOptions()), None)
    (tmp_path / "g.csv").write_bytes("й,a\n1,x\n".encode("utf-16-le"))
    with pytest.raises(ConfigurationError, match="a null character; set encoding to the file's"):
        read(source(tmp_path / "g.csv", ReadOptions()), None)
    (tmp_path / "h.csv").write_bytes("t,a\n1,é\n".encode("cp1252"))
    (row,) = read(source(tmp_path / "h.csv", ReadOptions()), None)
    assert row.reject is not None
    assert row.reject.reason.endswith("; set encoding to the file's, such as cp1252 or utf-16")


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "\ufeffsep=;"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
@pytest.mark.parametrize("delimiter", ["", ";"])
def test_a_first_line_that_says_the_delimiter_is_no_header(tmp_path: Path, first: str, encoding: str, delimiter: str) -> None:
    (tmp_path / "f.csv").write_bytes(f"{first}\r\nt;a\r\n1;x,y\r\n".encode(encoding))
    (row,) = read(source(tmp_path / "f.csv", ReadOptions(delimiter=delimiter, encoding=encoding)), None)
    assert row.value == b'{"t":"1","a":"x,y"}'
    assert row.where.endswith(":3")


def test_a_first_line_that_says_another_delimiter_than_the_option_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("sep=;\nt;a\n1;x\n")
    with pytest.raises(ConfigurationError, match=r"f\.csv:1: the file says that its delimiter is ';', the option '\|'"):
        read(source(tmp_path / "f.csv", ReadOptions(delimiter="|")), None)
