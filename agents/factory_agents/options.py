"""Flags, environment variables and a file into typed settings: flag, then environment, then file, then default.

Each setting is declared once, in ``AgentSettings``: what it means, its environment variable, its default. Its flag is its name:
``in_topic`` is ``--in-topic``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

import msgspec

from factory_agents.errors import ConfigurationError, ContractError
from factory_agents.paths import resolve_path
from factory_agents.protocol import Interval, Shard

if TYPE_CHECKING:
    from factory_agents.contracts.documents import Document
    from factory_agents.kafka.config import KafkaConfig

__all__ = [
    "AGENT_PARAMETERS",
    "AgentParameter",
    "AgentSettings",
    "Declared",
    "Resolved",
    "SettingsFile",
    "declared",
    "export_lines",
    "flag_of",
    "kafka_config",
    "parse_assignments",
    "parse_interval",
    "parse_shard",
    "parse_time",
    "read_params_file",
    "read_settings_file",
    "resolve",
]

_FILE_VARIABLE = "FACTORY_CONFIG"
_NEXT_TOPIC = {("enrich", "raw_events"): "enriched_events", ("validate", "enriched_events"): "validated_events"}
"""Where the stages of ``include/topics.yaml``'s pipeline write if nothing is said: the topic that the next stage reads."""


def _key(help_: str, metavar: str = "", *, env: str = "", also: str = "") -> msgspec.Meta:
    return msgspec.Meta(description=help_, extra={"env": env, "metavar": metavar, "also": also})


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one agent is run by a person or in a container of its own."""

    in_topic: Annotated[str, _key("topic to read", "TOPIC", env="INPUT_TOPIC")] = ""
    out_topic: Annotated[str, _key("topic to write to", "TOPIC", also="--topic", env="OUTPUT_TOPIC")] = ""
    dead_letter_topic: Annotated[
        str, _key("topic for rejected events; by default the output topic's name followed by .dead", "TOPIC", env="DEAD_LETTER_TOPIC")
    ] = ""
    input_codec: Annotated[
        str,
        _key(
            "what reads the input topic's records: json, avro, avro?version=3, or your own as module:Class; by default what the window or "
            "the topics file says",
            metavar="CODEC",
            env="INPUT_CODEC",
        ),
    ] = ""
    output_codec: Annotated[
        str,
        _key("what writes the output topic's records, likewise; by default what the topics file says", metavar="CODEC", env="OUTPUT_CODEC"),
    ] = ""
    params: Annotated[dict[str, Any], _key("the agent's own parameters")] = {}
    since: Annotated[
        datetime | None, _key("start of the window's interval, such as 2026-11-01T04:00 (UTC unless it says otherwise)", "TIME")
    ] = None
    until: Annotated[datetime | None, _key("end of the window's interval; the window ends before it", "TIME")] = None
    window: Annotated[
        str,
        _key(
            "file that holds the window: a Window, or the AgentResult (or a list of them) of the stage before; - is standard input", "FILE"
        ),
    ] = ""
    pipeline: Annotated[
        str, _key("name under which windows are planned and remembered; by default cli.<agent>.<in-topic>", "NAME", env="FACTORY_PIPELINE")
    ] = ""
    stage: Annotated[str, _key("the stage's name; by default the agent's", "NAME", env="FACTORY_STAGE")] = ""
    prefix: Annotated[str, _key("prefix of the ledger topic and of transactional ids", "NAME", env="FACTORY_PREFIX")] = "factory"
    group: Annotated[str, _key("consumer group of a live agent; by default factory.<agent>.<in-topic>", "NAME", env="CONSUMER_GROUP")] = ""
    live_version: Annotated[
        str,
        _key(
            "version of a live agent, such as v2, so that factory rollout can move partitions from one version to another; by default the "
            "agent runs without one",
            "VERSION",
            env="FACTORY_LIVE_VERSION",
        ),
    ] = ""
    shadow: Annotated[
        str,
        _key(
            "version of a live agent that runs in the shadow, such as v2: all events, from where --group stands, into the topics "
            "<out-topic>.shadow and <out-topic>.shadow.dead, in a group of its own",
            "VERSION",
            env="FACTORY_SHADOW",
        ),
    ] = ""
    shard: Annotated[Shard, _key("part of the window to take: 1/4 is the first of four", "I/N")] = Shard()
    dry_run: Annotated[bool, _key("show what would be written; write nothing")] = False
    show: Annotated[
        int, _key("how many records a dry run shows, and at most 5 examples of each reason for which events are rejected", "N")
    ] = 20
    rerun: Annotated[
        Literal["reuse", "redo", "ask_again"],
        _key(
            "reuse a finished result, redo the work (a model's logged answers are taken), or ask models again too",
            "reuse|redo|ask_again",
            env="FACTORY_RERUN",
        ),
    ] = "reuse"
    accept_loss: Annotated[bool, _key("continue where records are gone, and record the loss")] = False
    max_rejected: Annotated[
        str, _key("rejected events past which the stage fails: a number, or a share such as '5 %'", "LIMIT", env="FACTORY_MAX_REJECTED")
    ] = "50 %"
    keep_windows: Annotated[
        str,
        _key(
            "for how long the ledger remembers windows: retention (as long as the topics keep records, and a margin), a time such as 45 d, "
            "or forever",
            "TIME",
            env="FACTORY_KEEP_WINDOWS",
        ),
    ] = "retention"
    deadline: Annotated[float, _key("seconds after which an unfinished window fails; 0 for never", "SECONDS", env="FACTORY_DEADLINE")] = 0.0
    chunk_records: Annotated[int, _key("most records in one transaction", "N", env="FACTORY_CHUNK_RECORDS")] = 100_000
    max_lag_downstream: Annotated[
        int,
        _key(
            "a live agent, or ingest, waits while a group that reads its output is more records behind than this, until it is half of it; "
            "0: never",
            "N",
            env="FACTORY_MAX_LAG_DOWNSTREAM",
        ),
    ] = 0
    downstream_group: Annotated[
        str,
        _key(
            "the one group that --max-lag-downstream looks at; by default all of the output topic", "NAME", env="FACTORY_DOWNSTREAM_GROUP"
        ),
    ] = ""
    metrics_listen: Annotated[
        str,
        _key(
            "where a live agent tells metrics and health: host:port, or a port on loopback; by default nowhere",
            "HOST:PORT",
            env="FACTORY_METRICS_LISTEN",
        ),
    ] = ""
    database_url: Annotated[
        str, _key("PostgreSQL for the agents that use it: postgresql://user:password@host/name", "URL", env="DATABASE_URL")
    ] = ""


class Declared(NamedTuple):
    """What is said of one setting where it is declared: ``metavar`` is what its flag takes, ``also`` another name of the flag."""

    name: str
    help: str
    env: str
    metavar: str
    also: str
    type: Any

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of its flag."""
        return (flag_of(self.name), *([self.also] if self.also else []))

    @property
    def text(self) -> str:
        """Its help, with the environment variable in brackets."""
        return self.help + (f" [{self.env}]" if self.env else "")


@cache
def declared() -> Mapping[str, Declared]:
    """Every setting by its name."""
    hints = get_type_hints(AgentSettings, include_extras=True)
    found = {}
    for name, hint in hints.items():
        meta: msgspec.Meta = hint.__metadata__[0]
        found[name] = Declared(name, meta.description or "", type=hint.__origin__, **(meta.extra or {}))
    return found


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class SettingsFile:
    """A settings file's values, where each stands, and the Kafka settings in it."""

    values: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    kafka: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Resolved:
    """Settings, and where each that was given came from: its flag, ``INPUT_TOPIC``, or ``file:line:column``."""

    settings: AgentSettings
    origins: Mapping[str, str]

    def by_flag(self, name: str) -> bool:
        """Whether a setting was given as a flag, so that a person meant it for just this run."""
        return self.origins.get(name, "").startswith("--")


def resolve(
    agent: str,
    flags: Mapping[str, Any],
    *,
    environ: Mapping[str, str] | None = None,
    file: SettingsFile | None = None,
    params: Mapping[str, Any] | None = None,
    params_file: Mapping[str, Any] | None = None,
) -> Resolved:
    """The settings of one run: each from its flag, else its environment variable, else the file, else its default.

    A flag that is None was not given; an empty variable is not set. ``params`` are the agent's parameters given as flags, ``params_file``
    those of a file for them alone: they go over the settings file's, key by key. Raises ConfigurationError naming the flag, the variable or
    the line.
    """
    environ = os.environ if environ is None else environ
    file = file or SettingsFile()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, key in declared().items():
        found = _find(name, key, flags, environ, file)
        if found is not None:
            origins[name], value = found
            values[name] = _convert(name, key, value, origins[name])
    values["params"] = {**values.get("params", {}), **(params_file or {}), **_parameters_from(agent, environ), **(params or {})}
    if not values.get("out_topic") and (agent, values.get("in_topic", "")) in _NEXT_TOPIC:
        values["out_topic"] = _NEXT_TOPIC[agent, values["in_topic"]]
    return Resolved(AgentSettings(**values), origins)


class AgentParameter(NamedTuple):
    """A parameter of built-in agents that has a flag of its own, and an environment variable where the agent doesn't read one itself."""

    agents: tuple[str, ...]
    help: str
    metavar: str
    env: str = ""


AGENT_PARAMETERS: Mapping[str, AgentParameter] = {
    "source": AgentParameter(
        ("ingest",), "file, pattern or URL to read, or a source by its name or as module:Class [FACTORY_SOURCE]", "FILE"
    ),
    "time_field": AgentParameter(("ingest",), "field that holds a row's time; needed for an interval", "FIELD", "FACTORY_TIME_FIELD"),
    "function": AgentParameter(
        ("enrich",), "module:function to call; without one events get enriched: true", "MODULE:FUNCTION", "FACTORY_FUNCTION"
    ),
    "contract": AgentParameter(
        ("infer", "validate", "publish"), "data contract, such as contracts/events.yaml", "FILE", "FACTORY_CONTRACT"
    ),
    "prompt": AgentParameter(("infer",), "the prompt's file, such as prompts/kind.md", "FILE", "FACTORY_PROMPT"),
    "model": AgentParameter(("infer",), "the model: provider:model, or what the endpoint calls it", "MODEL", "FACTORY_MODEL"),
    "endpoint": AgentParameter(("infer",), "URL of a server with OpenAI's API", "URL", "FACTORY_MODEL_ENDPOINT"),
    "output": AgentParameter(("infer",), "contract that answers must keep", "FILE", "FACTORY_ANSWER_CONTRACT"),
    "table": AgentParameter(("publish",), "table to write to", "TABLE", "FACTORY_TABLE"),
}


def _parameters_from(agent: str, environ: Mapping[str, str]) -> dict[str, Any]:
    return {name: environ[p.env] for name, p in AGENT_PARAMETERS.items() if agent in p.agents and p.env and environ.get(p.env)}


def _find(name: str, key: Declared, flags: Mapping[str, Any], environ: Mapping[str, str], file: SettingsFile) -> tuple[str, Any] | None:
    if flags.get(name) is not None:
        return flag_of(name), flags[name]
    if key.env and environ.get(key.env):
        return key.env, environ[key.env]
    if name in file.values:
        return file.where.get(name, file.name), file.values[name]
    return None


def parse_time(text: str, where: str = "time") -> datetime:
    """An aware time from ISO 8601 text; without a zone it is UTC. Raises ConfigurationError, for what lies between microseconds too."""
    if re.search(r"[.,]\d{6}\d*[1-9]", text):
        raise ConfigurationError(f"{where}: expected a time of whole microseconds, got {text!r}")
    try:
        value = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigurationError(f"{where}: expected a time such as 2026-11-01T04:00 or 2026-11-01T04:00+01:00, got {text!r}") from None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def parse_shard(text: str, where: str = "shard") -> Shard:
    """A shard from ``i/n``, counted from 1. Raises ConfigurationError."""
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigurationError(f"{where}: expected i/n with i from 1 to n, such as 1/4, got {text!r}")
    return Shard(int(found[1]) - 1, int(found[2]))


def parse_interval(settings: AgentSettings) -> Interval | None:
    """The interval of ``since`` and ``until``, or None without them. Raises ConfigurationError for one alone, WindowError if backwards."""
    if settings.since is None and settings.until is None:
        return None
    if settings.since is None or settings.until is None:
        given, missing = ("--since", "--until") if settings.until is None else ("--until", "--since")
        raise ConfigurationError(f"{given} is given without {missing}: a window has a start and an end")
    return Interval(settings.since, settings.until)


_PARSERS: dict[str, Callable[[str, str], Any]] = {"since": parse_time, "until": parse_time, "shard": parse_shard}
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _convert(name: str, key: Declared, value: Any, where: str) -> Any:
    if name in _PARSERS:
        return _PARSERS[name](str(value), where)
    if name == "params" and not isinstance(value, Mapping):
        raise ConfigurationError(f"{where}: expected a mapping of the agent's parameters, got {value!r}")
    try:
        return msgspec.convert(value, key.type, strict=False)
    except msgspec.ValidationError:
        choices = getattr(key.type, "__args__", ())
        expected = _EXPECTED.get(key.type) or "one of " + ", ".join(map(str, choices))
        raise ConfigurationError(f"{where}: expected {expected}, got {value!r}") from None


def parse_assignments(items: Iterable[str], flag: str) -> dict[str, Any]:
    """``k=v`` pairs, the value a text; ``k:=v`` takes the value as JSON (a list, a mapping, null). Raises ConfigurationError."""
    values: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.strip(":"):
            raise ConfigurationError(f"{flag} {item}: expected key=value, or key:=JSON")
        if name.endswith(":"):
            try:
                values[name[:-1]] = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ConfigurationError(f"{flag} {item[:200]}: what follows := is not JSON ({error})") from None
        else:
            values[name] = text
    return values


def _document(path: str, what: str) -> Document:
    from factory_agents.contracts.documents import read_document

    try:
        document = read_document(resolve_path(path, what), path)
    except ContractError as error:
        raise ConfigurationError(str(error)) from None
    if not isinstance(document.data, dict):
        raise ConfigurationError(f"{document.where(())}: expected a mapping, got {type(document.data).__name__}")
    return document


def read_params_file(path: str) -> dict[str, Any]:
    """An agent's parameters from a YAML or JSON file. Raises ConfigurationError."""
    data: dict[str, Any] = _document(path, "parameters file").data
    return data


def read_settings_file(path: str | None, environ: Mapping[str, str] | None = None) -> SettingsFile:
    """The settings file named by a flag, else by ``FACTORY_CONFIG``, else none: YAML or JSON with any of the settings, and ``kafka``.

    Raises ConfigurationError naming the line of a key that is not known.
    """
    environ = os.environ if environ is None else environ
    path = path or environ.get(_FILE_VARIABLE)
    if not path:
        return SettingsFile()
    document = _document(path, "settings file")
    try:
        document.check_keys((), document.data, [*declared(), "kafka"])
    except ContractError as error:
        raise ConfigurationError(str(error)) from None
    values = {k: v for k, v in document.data.items() if k != "kafka" and v is not None}
    kafka = document.data.get("kafka") or {}
    if not isinstance(kafka, dict):
        raise ConfigurationError(f"{document.where(('kafka',))}: kafka: expected a mapping of librdkafka keys, got {kafka!r}")
    return SettingsFile(values, {k: document.where((k,)) for k in values}, kafka, path)


def kafka_config(
    bootstrap: str | None,
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
    file: SettingsFile | None = None,
) -> KafkaConfig:
    """How to reach Kafka: ``--bootstrap`` and ``-X``, else the environment (see ``KafkaConfig.from_env``), else the settings file.

    Raises ConfigurationError for keys that librdkafka doesn't know, and where no broker is named.
    """
    from factory_agents.kafka.config import KafkaConfig

    pairs = {k: str(v) for k, v in parse_assignments(overrides, "-X").items()}
    defaults = file.kafka if file is not None else {}
    where = f"{file.name}: kafka" if file is not None else ""
    return KafkaConfig.from_env(environ, bootstrap=bootstrap or "", overrides=pairs, defaults=defaults, defaults_from=where)


def export_lines(variables: Mapping[str, str], shell: str) -> list[str]:
    """Lines that set variables in a shell (``sh``, ``fish``), or in a file of ``KEY=value`` lines (``env``). Raises ConfigurationError."""
    if shell in ("sh", "bash", "zsh"):
        return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    if shell == "fish":
        return [f"set -gx {name} '{value.translate(_FISH)}'" for name, value in variables.items()]
    if shell == "env":
        return [f"{name}={value}" for name, value in variables.items()]
    raise ConfigurationError(f"--shell: expected sh, bash, zsh, fish or env, got {shell!r}")


_FISH = str.maketrans({"\\": "\\\\", "'": "\\'"})
