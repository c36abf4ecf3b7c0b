"""Which files and URLs a parameter may name that comes from whoever started a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factory_agents.contracts import load_contract, pack_contract
from factory_agents.enrich import build as build_enrich
from factory_agents.errors import ConfigurationError, ContractError
from factory_agents.ingest import build as build_ingest
from factory_agents.paths import check_url, confined_path, resolve_path
from factory_agents.protocol import AgentRef, AgentRun
from factory_agents.sources.files import FileSource
from factory_agents.sources.rows import ReadOptions
from factory_agents.validate import build as build_validate

SECRET = "db.example:5432:events:alice:s3cr3t"


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A secret beside a deployment's files, which the working directory is too."""
    (tmp_path / "include" / "data").mkdir(parents=True)
    (tmp_path / "more").mkdir()
    for place in ("include/data/a.jsonl", "more/b.jsonl", ".pgpass"):
        (tmp_path / place).write_text(f"{SECRET}\n" if place == ".pgpass" else '{"t":1,"id":1,"n":2}\n')
    (tmp_path / "include" / "link.jsonl").symlink_to(tmp_path / ".pgpass")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACTORY_INCLUDE", str(tmp_path / "include"))
    monkeypatch.setenv("FACTORY_FILES", str(tmp_path / "more"))
    return tmp_path


@pytest.mark.parametrize("path", ["data/a.jsonl", "b.jsonl", "{}/include/data/a.jsonl", "{}/more/b.jsonl", "data/../data/a.jsonl"])
def test_files_of_the_deployment_may_be_named(outside: Path, path: str) -> None:
    assert confined_path(path.format(outside), "source").is_file()


BAD = [
    "{}/.pgpass",
    "../.pgpass",
    "data/../../.pgpass",
    "link.jsonl",
    "/etc/passwd",
    "~/.pgpass",
    "{}/include/../.pgpass",
    "/proc/self/environ",
]


@pytest.mark.parametrize("path", BAD)
def test_no_other_file_may_be(outside: Path, path: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        confined_path(path.format(outside), "source")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "a\0b", "\ud800" * 200, "é" * 200])
def test_what_no_file_can_be_called_is_one_clear_line(outside: Path, name: str) -> None:
    for use in (lambda: confined_path(name, "source"), lambda: resolve_path(name, "contract"), lambda: FileSource([name], ReadOptions())):
        with pytest.raises(ConfigurationError, match="no file can have this name") as caught:
            use()
        assert len(str(caught.value)) < 500


def test_of_other_files_nothing_says_whether_they_are_there(outside: Path) -> None:
    said = []
    for name in ("/etc/passwd", "/etc/no-such-file"):
        with pytest.raises(ConfigurationError) as caught:
            confined_path(name, "source")
        said.append(str(caught.value).replace(name, ""))
    assert said[0] == said[1]


def test_without_a_folder_of_its_own_a_deployment_allows_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    monkeypatch.delenv("FACTORY_INCLUDE", raising=False)
    monkeypatch.delenv("FACTORY_FILES", raising=False)
    monkeypatch.chdir(tmp_path)
    assert confined_path("a.jsonl", "source") == tmp_path / "a.jsonl"
    monkeypatch.chdir("/")
    with pytest.raises(ConfigurationError, match="FACTORY_INCLUDE"):
        confined_path("etc/passwd", "source")


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("s3://bucket/a.jsonl", "s3://bucket/"),
        ("s3://bucket/a.jsonl", "gs://other/, s3://"),
        ("https://data.example.com/x/a.jsonl", "https://data.example.com/x/"),
    ],
)
def test_urls_that_the_deployment_lists_may_be_named(monkeypatch: pytest.MonkeyPatch, url: str, allowed: str) -> None:
    monkeypatch.setenv("FACTORY_URLS", allowed)
    check_url(url, "source")


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://data.example.com@evil.example/x/a",
        "https://data.example.com.evil.example/x/a",
        "https://user:s3cr3t@data.example.com/x/a",
        "https://data.example.com/x/../y",
        "https://data.example.com/x/%2e%2e/y",
        "https://data.example.com/y",
        "s3://other/a.jsonl",
        "reference://y.csv::https://data.example.com/x/a",
        "simplecache::s3://bucket/a",
        "zip://a.csv::s3://bucket/a.zip",
        "FILE:///etc/passwd",
        "local:///etc/passwd",
        "memory://a",
        "s3:/bucket/a",
    ],
)
def test_no_other_url_may_be(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("FACTORY_URLS", "s3://bucket/ https://data.example.com/x/")
    with pytest.raises(ConfigurationError, match="URL comes from a parameter of the run") as caught:
        check_url(url, "source")
    assert "s3cr3t" not in str(caught.value)


def run_of(agent: str, *untrusted: str) -> AgentRun:
    return AgentRun("p", agent, AgentRef(agent), name="all", untrusted=untrusted)


class TestAgents:
    @pytest.mark.parametrize(
        "source", [*BAD, "/etc/pass*", "../.pg*", "link*", "file:///etc/passwd", "http://127.0.0.1:9/a.jsonl", "a::file:///etc/passwd"]
    )
    def test_ingest_reads_no_other_source_from_outside(self, outside: Path, source: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            build_ingest({"source": source.format(outside)}, run_of("ingest", "source"))
        assert "s3cr3t" not in str(caught.value)

    @pytest.mark.parametrize("source", ["data/a.jsonl", "data/*.jsonl", "b.jsonl", "file://{}/more/b.jsonl", "{}/include/data/*"])
    def test_ingest_reads_the_deployments_own(self, outside: Path, source: str) -> None:
        found = build_ingest({"source": source.format(outside)}, run_of("ingest", "source"))
        assert [len(batch) for batch in found.read(None, 0)] == [1]

    def test_what_the_author_wrote_may_be_anywhere(self, outside: Path) -> None:
        assert build_ingest({"source": str(outside / ".pgpass"), "format": "jsonl"}, run_of("ingest", "time_field")).identity["files"]

    def test_lookups_are_confined_too(self, outside: Path) -> None:
        lookup = {"on": "id", "file": str(outside / ".pgpass"), "format": "csv"}
        with pytest.raises(ConfigurationError, match="it comes from a parameter of the run"):
            build_enrich({"lookups": [lookup]}, run_of("enrich", "lookups"))
        build_enrich({"lookups": [{"on": "id", "file": "data/a.jsonl"}]}, run_of("enrich", "lookups")).close()

    @pytest.mark.parametrize(
        "contract", [".pgpass", "../.pgpass", "{}/.pgpass", "name: e\nid: null\n", {"name": "e", "id": None}, "{{name: e}}"]
    )
    def test_validate_takes_no_other_contract_from_outside(self, outside: Path, contract: object) -> None:
        given = contract.format(outside) if isinstance(contract, str) else contract
        with pytest.raises(ConfigurationError) as caught:
            build_validate({"contract": given}, run_of("validate", "contract"))
        assert "s3cr3t" not in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        [
            f"{SECRET}\n",
            f"name: e\n{SECRET}\n",
            "password: s3cr3t\n",
            "[s3cr3t",
            '{"s3cr3t": 1}',
            "name: e\nid: null\nrules: {a: 's3cr3t >'}\n",
        ],
    )
    def test_no_error_quotes_a_file_that_was_named_from_outside(self, outside: Path, text: str) -> None:
        (outside / "include" / "secrets.yaml").write_text(text)
        with pytest.raises(ContractError, match=r"^secrets\.yaml(:\d+:\d+)?: no contract; ") as caught:
            build_validate({"contract": "secrets.yaml"}, run_of("validate", "contract"))
        assert "s3cr3t" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


EVENTS: list[dict[str, Any]] = [
    {"event_id": "a", "country": "NO", "number": 12, "on": "off"},
    {"event_id": "a", "country": False, "number": 10, "on": False},
    {"event_id": "a", "number": "12:30:00", "order": {"n": 1}, "size": 3},
    {"event_id": "a", "number": 45000, "order": {"n": "x"}, "size": -1},
    {"event_id": "a", "number": "0x1F", "order": {"more": {"n": 0}}},
    {"event_id": "a", "number": "1_000", "exact": 1e17},
    {"event_id": "a", "number": None, "country": "XX"},
    {},
]


class TestAContractTravels:
    CONTRACT = """
        name: events
        schema:
          required: [event_id]
          properties:
            event_id: {type: string}
            country: {enum: [DK, NO, SE]}
            number: {enum: [012, 12:30:00, 0x1F, 1_000, 1e3, .5, ~, yes]}
            on: {const: off}
            order: {$ref: schemas/order.json}
            size: {$ref: '../shared/sizes.yaml#/size'}
            exact: {maximum: 12345678901234567.89}
        rules:
          known: country is None or country != "XX"
        """

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        import textwrap

        for folder in ("contracts/schemas", "shared"):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "contracts" / "events.yaml").write_text(textwrap.dedent(self.CONTRACT))
        (tmp_path / "contracts" / "schemas" / "order.json").write_text(
            '{\n\t"properties": {"n": {"type": "integer"}, "more": {"$ref": "more.json"}}}'
        )
        (tmp_path / "contracts" / "schemas" / "more.json").write_text('{"$ref": "order.json"}')
        (tmp_path / "shared" / "sizes.yaml").write_text("size: {minimum: 0}\n")
        return tmp_path / "contracts" / "events.yaml"

    def test_it_means_the_same_wherever_it_is_read(
        self, file: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import msgspec

        here = load_contract(file, name="contracts/events.yaml")
        packed = msgspec.json.decode(msgspec.json.encode(pack_contract(here)))
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        there = load_contract(packed)
        assert there.digest == here.digest
        assert (there.source, there.columns(), there.key) == ("contracts/events.yaml", here.columns(), here.key)
        assert [there.violations(event) for event in EVENTS] == [here.violations(event) for event in EVENTS]
        broken = [sorted(v.rule for v in here.violations(event)) for event in EVENTS]
        assert broken[:3] == [[], ["schema:country", "schema:number", "schema:on"], []]
        assert broken[3:6] == [["schema:number", "schema:order", "schema:size"], [], ["schema:exact"]]
        assert pack_contract(there) == packed

    def test_one_that_came_as_data_travels_too(self, file: Path) -> None:
        data = {"name": "e", "id": None, "schema": "schemas/order.json"}
        here = load_contract(data, folder=file.parent)
        there = load_contract(pack_contract(here))
        assert there.digest == here.digest
        assert there.violations({"n": "x"}) == here.violations({"n": "x"}) != ()
