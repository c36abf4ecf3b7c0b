"""One precedence for every setting: flag, environment, file, default; and one line for whatever is mistyped."""

from __future__ import annotations

import inspect
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from factory_agents.commands import run_agent
from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.options import (
    AGENT_PARAMETERS,
    AgentSettings,
    declared,
    export_lines,
    kafka_config,
    parse_assignments,
    parse_interval,
    parse_shard,
    parse_time,
    read_params_file,
    read_settings_file,
    resolve,
)
from factory_agents.protocol import Shard


def settings_file(folder: Path, text: str) -> str:
    path = folder / "factory.yaml"
    path.write_text(text)
    return str(path)


def test_a_flag_goes_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = read_settings_file(settings_file(tmp_path, "in_topic: of-file\nout_topic: of-file\nprefix: of-file\n"), {})
    environ = {"INPUT_TOPIC": "of-env", "OUTPUT_TOPIC": "of-env"}
    found = resolve("enrich", {"in_topic": "of-flag"}, environ=environ, file=file)
    assert (found.settings.in_topic, found.settings.out_topic, found.settings.prefix) == ("of-flag", "of-env", "of-file")
    assert found.settings.max_rejected == "50 %"
    assert found.origins["in_topic"] == "--in-topic"
    assert found.origins["out_topic"] == "OUTPUT_TOPIC"
    assert found.origins["prefix"].endswith("factory.yaml:3:9")
    assert found.by_flag("in_topic")
    assert not found.by_flag("out_topic")


def test_the_seed_design_names_topics_and_broker_by_environment() -> None:
    assert {name: d.env for name, d in declared().items() if d.env in ("INPUT_TOPIC", "OUTPUT_TOPIC", "DATABASE_URL")} == {
        "in_topic": "INPUT_TOPIC",
        "out_topic": "OUTPUT_TOPIC",
        "database_url": "DATABASE_URL",
    }
    assert kafka_config(None, environ={"KAFKA_BOOTSTRAP": "kafka:9092"}).bootstrap == "kafka:9092"


def test_every_setting_says_what_it_means() -> None:
    assert all(d.help for d in declared().values())
    assert set(declared()) == set(AgentSettings.__struct_fields__)


def test_every_setting_is_a_flag_of_agent_run_and_its_declaration_is_the_only_one() -> None:
    parameters = inspect.signature(run_agent).parameters
    assert set(declared()) - {"params"} <= set(parameters)
    assert set(AGENT_PARAMETERS) <= set(parameters)
    code = run_agent.__code__
    assert not (set(declared()) | set(AGENT_PARAMETERS)) & set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def test_an_empty_variable_is_not_set() -> None:
    assert resolve("enrich", {}, environ={"INPUT_TOPIC": ""}).settings.in_topic == ""


@pytest.mark.parametrize(
    ("agent", "in_topic", "out_topic"),
    [("enrich", "raw_events", "enriched_events"), ("validate", "enriched_events", "validated_events"), ("validate", "other", "")],
)
def test_the_pipelines_own_stages_write_where_the_next_one_reads(agent: str, in_topic: str, out_topic: str) -> None:
    assert resolve(agent, {"in_topic": in_topic}, environ={}).settings.out_topic == out_topic


def test_parameters_come_from_flags_then_environment_then_files(tmp_path: Path) -> None:
    file = read_settings_file(settings_file(tmp_path, "params: {contract: of-file, samples: 1, kept: yes}\n"), {})
    found = resolve(
        "validate",
        {},
        environ={"FACTORY_CONTRACT": "of-env", "FACTORY_FUNCTION": "other agent's"},
        file=file,
        params={"samples": "3"},
        params_file={"samples": 2, "more": True},
    )
    assert found.settings.params == {"contract": "of-env", "samples": "3", "kept": "yes", "more": True}


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({"show": "many"}, {}, "--show: expected a whole number, got 'many'"),
        ({}, {"FACTORY_DEADLINE": "soon"}, "FACTORY_DEADLINE: expected a number, got 'soon'"),
        ({"rerun": "again"}, {}, "--rerun: expected one of reuse, redo, ask_again, got 'again'"),
        ({"since": "yesterday"}, {}, "--since: expected a time such as 2026-11-01T04:00 or 2026-11-01T04:00+01:00, got 'yesterday'"),
        ({"shard": "5/4"}, {}, "--shard: expected i/n with i from 1 to n, such as 1/4, got '5/4'"),
        ({"shard": "0/4"}, {}, "--shard: expected i/n with i from 1 to n, such as 1/4, got '0/4'"),
    ],
)
def test_a_mistyped_value_names_its_flag_or_variable(flags: dict[str, str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        resolve("enrich", flags, environ=environ)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("in_topic: a\nout_topik: b\n", "factory.yaml:2:1: out_topik: unknown key; did you mean 'out_topic'?"),
        ("kafka: here\n", "factory.yaml:1:8: kafka: expected a mapping of librdkafka keys, got 'here'"),
        ("- in_topic\n", "factory.yaml:1:1: expected a mapping, got list"),
        ("in_topic: [\n", "factory.yaml:2:1: not YAML: "),  # the rest is the parser's own
    ],
)
def test_a_mistyped_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = settings_file(tmp_path, text)
    with pytest.raises(ConfigurationError) as raised:
        read_settings_file(path, {})
    assert str(raised.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_a_value_of_a_file_names_its_line(tmp_path: Path) -> None:
    file = read_settings_file(settings_file(tmp_path, "in_topic: a\n\nchunk_records: lots\n"), {})
    with pytest.raises(ConfigurationError, match=r"factory.yaml:3:16: expected a whole number, got 'lots'"):
        resolve("enrich", {}, environ={}, file=file)


def test_the_file_is_named_by_flag_or_variable(tmp_path: Path) -> None:
    path = settings_file(tmp_path, "in_topic: a\n")
    assert read_settings_file(None, {"FACTORY_CONFIG": path}).values == {"in_topic": "a"}
    assert read_settings_file(None, {}).values == {}
    with pytest.raises(ConfigurationError, match="no such file"):
        read_settings_file(str(tmp_path / "none.yaml"), {})


def test_kafka_keys_follow_the_same_precedence(tmp_path: Path) -> None:
    file = read_settings_file(settings_file(tmp_path, "kafka: {bootstrap.servers: 'file:1', linger.ms: 7, client.id: of-file}\n"), {})
    config = kafka_config(None, ["linger.ms=9"], environ={"KAFKA_CONFIG": '{"client.id": "of-env"}'}, file=file)
    assert (config.bootstrap, config.values) == ("file:1", {"linger.ms": "9", "client.id": "of-env"})
    assert kafka_config("flag:1", environ={"KAFKA_BOOTSTRAP": "env:1"}, file=file).bootstrap == "flag:1"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["linger.sm=5"], "-X: unknown librdkafka key 'linger.sm'; did you mean 'linger.ms'?"),
        (["linger.ms"], "-X linger.ms: expected key=value, or key:=JSON"),
        (["isolation.level=read_uncommitted"], "-X: 'isolation.level' is set by the factory (windows are read committed); leave it out"),
    ],
)
def test_a_mistyped_kafka_key_is_one_clear_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        kafka_config("host:1", overrides, environ={})
    assert str(raised.value) == message


def test_a_mistyped_kafka_key_of_the_file_names_the_file(tmp_path: Path) -> None:
    file = read_settings_file(settings_file(tmp_path, "kafka: {linger.sm: 7}\n"), {})
    with pytest.raises(ConfigurationError, match=r"factory.yaml: kafka: unknown librdkafka key 'linger.sm'"):
        kafka_config("host:1", environ={}, file=file)


def test_no_broker_named_says_how_to_name_one() -> None:
    with pytest.raises(ConfigurationError, match="set KAFKA_BOOTSTRAP"):
        kafka_config(None, environ={})


def test_a_time_is_utc_unless_it_says_otherwise() -> None:
    assert parse_time("2026-11-01T04:00") == datetime(2026, 11, 1, 4, tzinfo=UTC)
    assert parse_time("2026-11-01T04:00+01:00") == datetime(2026, 11, 1, 3, tzinfo=UTC)
    assert parse_time("2026-11-01") == datetime(2026, 11, 1, tzinfo=UTC)
    assert parse_time("2026-11-01T04:00:00.123456000Z") == datetime(2026, 11, 1, 4, 0, 0, 123456, tzinfo=UTC)


def test_times_that_differ_below_a_microsecond_are_none_of_ours() -> None:
    """Two intervals would be one work, and one result."""
    for text in ("2026-11-01T04:00:00.0000001", "2026-11-01T04:00:00,123456001+01:00"):
        with pytest.raises(ConfigurationError, match=r"--since: expected a time of whole microseconds, got "):
            parse_time(text, "--since")


def test_shards_are_counted_from_one() -> None:
    assert parse_shard("1/4") == Shard(0, 4)
    assert parse_shard("4/4") == Shard(3, 4)


def test_an_interval_needs_both_ends_in_order() -> None:
    early, late = datetime(2026, 11, 1, 4, tzinfo=UTC), datetime(2026, 11, 1, 5, tzinfo=UTC)
    assert parse_interval(AgentSettings()) is None
    interval = parse_interval(AgentSettings(since=early, until=late))
    assert interval is not None
    assert (interval.start, interval.end) == (early, late)
    with pytest.raises(ConfigurationError, match="--since is given without --until"):
        parse_interval(AgentSettings(since=early))
    with pytest.raises(WindowError, match="give them the other way round"):
        parse_interval(AgentSettings(since=late, until=early))


def test_assignments_take_texts_and_with_a_colon_json() -> None:
    assert parse_assignments(["a=1", "b:=[1, 2]", "c=x=y", "d:=null", "e="], "--param") == {
        "a": "1",
        "b": [1, 2],
        "c": "x=y",
        "d": None,
        "e": "",
    }
    with pytest.raises(ConfigurationError, match="--param b:=\\[: what follows := is not JSON"):
        parse_assignments(["b:=["], "--param")


def test_a_parameters_file_is_yaml_or_json(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    path.write_text('{"samples": 3}')
    assert read_params_file(str(path)) == {"samples": 3}


def test_exported_values_survive_the_shell() -> None:
    values = {"A": 'it\'s "quoted" $HOME `x` \\ !', "B": '{"extra": {"a": "b c"}}'}
    script = "\n".join([*export_lines(values, "sh"), 'printf "%s\\n%s" "$A" "$B"'])
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.split("\n") == list(values.values())
    assert export_lines({"A": "it's"}, "fish") == ["set -gx A 'it\\'s'"]
    assert export_lines({"A": "it's"}, "env") == ["A=it's"]
    with pytest.raises(ConfigurationError, match="--shell: expected sh"):
        export_lines(values, "tcsh")
