"""``factory answers`` and ``factory eval``: what models said, and how good agents are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from factory_agents import console
from factory_agents.commands import Bootstrap, Json, KafkaSettings, setting
from factory_agents.errors import ConfigurationError
from factory_agents.options import AgentSettings, kafka_config, parse_assignments, read_params_file

__all__ = ["answers", "evaluations"]

answers = typer.Typer(help="Models' logged answers: list them, and forget some.", rich_markup_mode=None, no_args_is_help=True)
evaluations = typer.Typer(help="Judge agents: over golden events, or two side by side.", rich_markup_mode=None, no_args_is_help=True)

_DEFAULTS = AgentSettings()
_Prefix = Annotated[str, setting("prefix")]
_Param = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", help="a parameter of the agent: key=text, or key:=JSON; repeatable", metavar="KEY=VALUE"),
]
_Result = Annotated[Path, typer.Argument(help="an AgentResult as JSON, or a list of them", metavar="RESULT", show_default=False)]


@answers.command("list")
def answers_list(
    limit: Annotated[int, typer.Option(help="most answers to show, the newest; 0 for all", metavar="N", min=0)] = 50,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """List what models answered, with the keys by which answers are forgotten, and what they cost.

    \b
    Example:
      factory answers list --limit 10
    """
    from factory_agents.inference.answers import current_answers

    found = sorted(current_answers(kafka_config(bootstrap, kafka_settings or ()), prefix=prefix).items(), key=lambda item: item[1].at)
    shown = found[-limit:] if limit else found
    if console.wants_json(json):
        console.print_json([{"key": key, "answer": answer} for key, answer in shown])
        return
    console.print_table(
        ["key", "model", "prompt", "for", "answer", "tokens", "cost"],
        [
            [
                key,
                a.model,
                a.prompt,
                a.by,
                (a.fault or a.text or "none yet")[:60],
                a.prompt_tokens + a.completion_tokens,
                f"{a.cost / 1e9:g}",
            ]
            for key, a in shown
        ],
        right=["tokens", "cost"],
    )


@answers.command("forget")
def answers_forget(
    keys: Annotated[list[str] | None, typer.Argument(help="keys, as the list shows them", metavar="[KEY...]", show_default=False)] = None,
    subject: Annotated[
        list[str] | None, typer.Option(help="whose answers: a value of the agent's subject field; repeatable", metavar="VALUE")
    ] = None,
    prefix: _Prefix = _DEFAULTS.prefix,
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Delete answers from the log, by key or by whose data they are about; asked again, the model may answer otherwise.

    Readers don't see them any more at once; the broker removes them when it compacts, within two days. Outputs stay where they are.

    \b
    Examples:
      factory answers forget --subject 4711
      factory answers forget 0f3c5d6e7a8b9c0d|9f86d081884c7d65…
    """
    from factory_agents.inference.answers import forget_answers

    if not keys and not subject:
        raise ConfigurationError("which answers? give keys, or --subject")
    gone = forget_answers(kafka_config(bootstrap, kafka_settings or ()), prefix=prefix, keys=keys or (), subjects=subject or ())
    if console.wants_json(json):
        console.print_json({"forgotten": gone})
    else:
        console.say(f"{gone:,} answers forgotten")


@evaluations.command("agent")
def eval_agent(
    name: Annotated[str, typer.Argument(help="the agent: infer, or your own as module:function", metavar="[NAME]")] = "infer",
    golden: Annotated[str, typer.Option(help='JSON lines: {"event": …, "expected": …}', metavar="FILE", show_default=False)] = "",
    params_file: Annotated[
        str, typer.Option(help="YAML or JSON file with the agent's parameters", metavar="FILE", show_default=False)
    ] = "",
    param: _Param = None,
    against: Annotated[
        str,
        typer.Option(
            help="another parameters file: both are judged, side by side; limits are for the first", metavar="FILE", show_default=False
        ),
    ] = "",
    min_accuracy: Annotated[
        list[str] | None,
        typer.Option(help="least share of right ones: 0.9 of all fields, or answer.label=0.9 of one; repeatable", metavar="[FIELD=]SHARE"),
    ] = None,
    max_invalid: Annotated[float, typer.Option(help="most events that may be rejected, as a share", metavar="SHARE")] = 1.0,
    max_p95: Annotated[float, typer.Option(help="most seconds of 95 % of calls; 0: any", metavar="SECONDS")] = 0.0,
    max_cost: Annotated[float, typer.Option(help="most that it may cost; 0: any", metavar="COST")] = 0.0,
    json: Json = False,
) -> None:
    """Run an agent over golden events and compare what it makes of them with what is expected.

    A model is asked about each event; nothing is read from Kafka or written there. Exit status 1 if a limit isn't kept.

    \b
    Examples:
      factory eval agent --golden golden.jsonl --params-file infer.yaml --min-accuracy 0.9 --max-invalid 0.02
      factory eval agent my_agents.clicks:classify --golden golden.jsonl --min-accuracy kind=0.95
      factory eval agent --golden golden.jsonl --params-file new.yaml --against old.yaml
    """
    from factory_agents.evaluation import Limits, evaluate, read_golden
    from factory_agents.runtime.loading import working_directory_first

    if not golden:
        raise ConfigurationError("no golden events; give --golden FILE")
    limits = Limits(_shares(min_accuracy or ()), max_invalid, max_p95, max_cost)
    records, given = read_golden(golden), parse_assignments(param or (), "--param")
    files = [params_file, *([against] if against else ())]
    with working_directory_first():
        found = [evaluate(name, (read_params_file(file) if file else {}) | given, records) for file in files]
    broken = limits.broken(found[0])
    if console.wants_json(json):
        console.print_json({"evaluations": found, "broken": broken})
    else:
        _print_evaluations(found, [params_file or "parameters", *files[1:]])
        for line in broken:
            console.say(f"✗ {line}", "red")
    raise typer.Exit(1 if broken else 0)


def _shares(items: Any) -> dict[str, float]:
    shares = {}
    for item in items:
        name, equals, share = item.rpartition("=")
        try:
            shares[name if equals else "*"] = float(share)
        except ValueError:
            raise ConfigurationError(f"--min-accuracy {item}: expected a share such as 0.9, or FIELD=0.9") from None
    return shares


def _print_evaluations(found: Any, names: list[str]) -> None:
    rows = [["events", *(e.events for e in found)], ["accuracy", *(f"{e.accuracy:.1%}" for e in found)]]
    for name in dict.fromkeys(score.field for e in found for score in e.fields):
        scores = [next(score for score in e.fields if score.field == name) for e in found]
        rows += [[f"accuracy({name})", *(f"{score.accuracy:.1%}" for score in scores)]]
    for what, text in (
        ("rejected", lambda e: f"{e.invalid_rate:.1%}"),
        ("calls", lambda e: e.asked),
        ("tokens", lambda e: e.prompt_tokens + e.completion_tokens),
        ("cost", lambda e: f"{e.cost:g}"),
        ("p50 s", lambda e: e.p50),
        ("p95 s", lambda e: e.p95),
    ):
        rows.append([what, *(text(e) for e in found)])
    console.print_table(["figure", *names], rows, right=names)
    for wrong in found[0].examples:
        console.say(f"line {wrong.line}: {wrong.field}: expected {wrong.expected}, got {wrong.got}")


@evaluations.command("compare")
def eval_compare(
    first: _Result,
    second: _Result,
    id_field: Annotated[str, typer.Option(help="the field by which events are matched", metavar="FIELD")] = "event_id",
    bootstrap: Bootstrap = None,
    kafka_settings: KafkaSettings = None,
    json: Json = False,
) -> None:
    """Compare what two stages made of the same window: which events differ in which fields, and what each cost.

    \b
    Example:
      factory eval compare old.json new.json
    """
    from factory_agents.evaluation import compare_results

    found = compare_results(kafka_config(bootstrap, kafka_settings or ()), _results(first), _results(second), id_field)
    if console.wants_json(json):
        console.print_json(found)
        return
    console.say(f"{found.both:,} events in both, {found.only_first:,} in the first alone, {found.only_second:,} in the second alone")
    console.print_table(["field", "events that differ"], [[name, n] for name, n in found.fields.items()], right=["events that differ"])
    console.say(f"cost: {found.cost[0]:g} and {found.cost[1]:g}")
    for example in found.examples:
        console.say(f"{example.field}: {example.expected} and {example.got}")


def _results(path: Path) -> Any:
    import msgspec

    from factory_agents.protocol import decode_result

    try:
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: no AgentResult: {error}") from None
    return [decode_result(item) for item in (value if isinstance(value, list) else [value])]
