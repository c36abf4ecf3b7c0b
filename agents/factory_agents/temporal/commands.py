"""``factory temporal``: run a worker; start pipelines, ask after them, pause and cancel them."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from factory_agents import console
from factory_agents.commands import Json
from factory_agents.errors import ConfigurationError
from factory_agents.text import seconds_of

__all__ = ["temporal"]

temporal = typer.Typer(help="Pipelines as Temporal workflows.", rich_markup_mode=None, no_args_is_help=True)
schedules = typer.Typer(help="Pipelines' schedules.", rich_markup_mode=None, no_args_is_help=True)
temporal.add_typer(schedules, name="schedule")

_T = TypeVar("_T")

_PATIENCE = 10.0

_Pipeline = Annotated[str, typer.Argument(help="the pipeline's file, YAML or JSON", metavar="FILE", show_default=False)]
_Id = Annotated[str, typer.Argument(help="the workflow's id: pipeline/window", metavar="ID", show_default=False)]
_Every = Annotated[str, typer.Option("--every", help="a window's length, such as '1 h'", metavar="TIME", show_default=False)]
_Since = Annotated[str | None, typer.Option("--since", help="start of the window's interval, such as 2026-11-01T04:00", metavar="TIME")]
_Until = Annotated[str | None, typer.Option("--until", help="end of the window's interval; the window ends before it", metavar="TIME")]


def _served(ask: Callable[[Any], Awaitable[_T]], *, traced: bool = False) -> _T:
    """Ask the server something; ``traced``: as a part of the span that ``TRACEPARENT`` names, where traces are written."""
    _require()
    import asyncio

    from factory_agents.telemetry import tracing
    from factory_agents.temporal.client import connect
    from factory_agents.temporal.traces import within

    async def asked() -> _T:
        with tracing("factory-temporal", None if traced else {}) as traces:
            client = await connect(traces=traces)
            with within(client, os.environ.get("TRACEPARENT")):
                return await ask(client)

    return asyncio.run(asked())


def _require() -> None:
    try:
        import temporalio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError("factory temporal needs Temporal's SDK: pip install 'factory-agents[temporal]'") from error


def _log() -> None:
    from factory_agents.telemetry import configure_logging

    configure_logging(json=not sys.stderr.isatty(), level=os.environ.get("FACTORY_LOG_LEVEL", "INFO"))


@temporal.command("worker")
def worker(
    task_queue: Annotated[str, typer.Option(help="whose tasks to take", envvar="TEMPORAL_TASK_QUEUE", metavar="NAME")] = "factory",
    slots: Annotated[
        int | None, typer.Option(help="most activities at once; by default one a processor", metavar="N", min=1, show_default=False)
    ] = None,
    runner: Annotated[
        Literal["process", "thread"], typer.Option(help="an agent in a process of its own, or in a thread of the worker's")
    ] = "process",
    grace: Annotated[
        float, typer.Option(help="seconds that an agent has to commit and end when the worker stops", metavar="SECONDS", min=1)
    ] = 20.0,
) -> None:
    """Run a worker until it is stopped. It runs workflows and agents; SIGTERM loses nothing, and costs no attempt.

    Kafka and the database are found as by `factory agent run`, the server by Temporal's own variables (TEMPORAL_ADDRESS).

    \b
    Examples:
      factory temporal worker
      factory temporal worker --task-queue factory-gpu --slots 1
    """
    _require()
    _log()
    from factory_agents.options import kafka_config
    from factory_agents.runtime.loading import working_directory_first
    from factory_agents.temporal.worker import run_worker

    kafka_config(None)  # without it nothing here would run: say so now
    number = slots or os.cpu_count() or 1
    with working_directory_first():
        _served(lambda client: run_worker(client, task_queue=task_queue, slots=number, runner=runner, grace=grace), traced=True)


@temporal.command("start")
def start(
    file: _Pipeline,
    since: _Since = None,
    until: _Until = None,
    key: Annotated[
        str | None, typer.Option(help="name of a window of all that came since the pipeline's last one", metavar="NAME", show_default=False)
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="start another workflow where this window's failed; it goes on there")] = False,
    redo: Annotated[bool, typer.Option("--redo", help="do the window again, finished or not")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="wait for the end, and print what the stages did")] = False,
    json: Json = False,
) -> None:
    """Start a pipeline over a window, and print the workflow's id. A window's second start gives the first one's workflow.

    \b
    Examples:
      factory temporal start pipelines/software_factory.yaml --since 2018-06-05T08:00 --until 2018-06-05T09:00 --wait
      factory temporal start clicks.yaml --key 2026-11-01
    """
    _require()
    from factory_agents.temporal import client as clients
    from factory_agents.temporal.pipelines import read_pipeline
    from factory_agents.temporal.protocol import PipelineRequest

    request = PipelineRequest(read_pipeline(file), _interval(since, until, key), key or "", "redo" if redo else "reuse")

    async def started(client: Any) -> Any:
        handle = await clients.start(client, request, again=again)
        return handle.id, await _waited(client, handle, request.spec) if wait else None

    id_, done = _served(started, traced=True)
    if console.wants_json(json):
        console.print_json(done if done is not None else {"workflow_id": id_})
    elif done is None:
        console.say(f"{id_}: see factory temporal progress '{id_}'")
    else:
        _print_stages(id_, done.stages)


async def _waited(client: Any, handle: Any, spec: Any) -> Any:
    """What came of a workflow."""
    from factory_agents.temporal import client as clients

    async def queues() -> set[str]:
        found: set[str] = spec.task_queues
        return found

    return await _patiently(client, clients.outcome(handle), queues)


async def _patiently(client: Any, end: Awaitable[_T], queues: Callable[[], Awaitable[set[str]]]) -> _T:
    """Wait for an end. What takes long may wait for a worker of ``queues`` that nobody has started: nothing else would tell."""
    import asyncio

    from factory_agents.temporal import client as clients

    ending = asyncio.ensure_future(end)
    if not (await asyncio.wait({ending}, timeout=_PATIENCE))[0]:
        _name_unserved(await clients.unserved(client, await queues()))
    return await ending


def _interval(since: str | None, until: str | None, key: str | None) -> Any:
    from factory_agents.options import parse_time
    from factory_agents.protocol import Interval

    if key is not None:
        if since or until:
            raise ConfigurationError("--key names a window without an interval: leave out --since and --until, or --key")
        return None
    if since is None or until is None:
        raise ConfigurationError("expected --since and --until, the window's interval, or --key for all that came since the last window")
    return Interval(parse_time(since, "--since"), parse_time(until, "--until"))


@temporal.command("backfill")
def backfill(
    file: _Pipeline,
    since: Annotated[str, typer.Option("--since", help="start of the first window", metavar="TIME", show_default=False)],
    until: Annotated[str, typer.Option("--until", help="end of the last window", metavar="TIME", show_default=False)],
    every: _Every,
    at_once: Annotated[int, typer.Option(help="windows side by side", metavar="N", min=1)] = 4,
    wait: Annotated[bool, typer.Option("--wait", help="wait for the end")] = False,
    json: Json = False,
) -> None:
    """Run a pipeline over every window of a span of time. What was done before stays as it is; failed windows are tried again.

    \b
    Example:
      factory temporal backfill clicks.yaml --since 2026-11-01 --until 2026-11-08 --every '1 h' --wait
    """
    _require()
    from factory_agents.temporal import client as clients
    from factory_agents.temporal.pipelines import read_pipeline
    from factory_agents.temporal.protocol import BackfillDone, BackfillRequest

    spec = read_pipeline(file)
    request = BackfillRequest(spec, _interval(since, until, None), _seconds(every, "--every"), BackfillDone(spec.pipeline), at_once)

    async def started(client: Any) -> Any:
        handle = await clients.start_backfill(client, request)
        return handle.id, await _waited(client, handle, spec) if wait else None

    id_, done = _served(started, traced=True)
    if console.wants_json(json):
        console.print_json(done if done is not None else {"workflow_id": id_})
    elif done is None:
        console.say(f"{id_}: see factory temporal progress '{id_}'")
    else:
        console.say(f"{done.windows:,} windows, {done.known:,} of them done before")


@temporal.command("listen")
def listen(
    file: _Pipeline,
    topic: Annotated[str, typer.Option("--topic", help="whose events start workflows", metavar="TOPIC", show_default=False)],
    group: Annotated[
        str, typer.Option(help="consumer group; by default factory.start.<pipeline>", metavar="NAME", show_default=False)
    ] = "",
    count: Annotated[
        int | None, typer.Option(help="start one window for so many events, not one for each", metavar="N", min=1, show_default=False)
    ] = None,
    age: Annotated[str, typer.Option(help="with --count: start it earlier where an event has waited so long", metavar="TIME")] = "1 min",
) -> None:
    """Start the pipeline for each event of a topic, once, until stopped. For topics with many events: a window for --count of them.

    An event starts the workflow of its "window", {"start": ..., "end": ...}; without one, of all that came since the last window, under its
    "event_id". Where that is missing, the event's place in the topic is its id.

    \b
    Examples:
      factory temporal listen clicks.yaml --topic requests
      factory temporal listen clicks.yaml --topic raw_events --count 100000 --age '5 min'
    """
    _require()
    import asyncio
    import signal

    from factory_agents.options import kafka_config
    from factory_agents.temporal.pipelines import read_pipeline
    from factory_agents.temporal.protocol import Collected, CollectRequest
    from factory_agents.temporal.starter import run_starter

    _log()
    spec, config = read_pipeline(file), kafka_config(None)
    name = group or f"factory.start.{spec.pipeline}"
    collect = None if count is None else CollectRequest(spec, count, _seconds(age, "--age"), Collected(spec.pipeline))

    async def listened(client: Any) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run_starter(client, spec, config, topic=topic, group=name, stop=stop, collect=collect)

    _served(listened, traced=True)


@temporal.command("serve")
def serve(
    files: Annotated[list[str], typer.Argument(help="the pipelines' files, YAML or JSON", metavar="FILE...", show_default=False)],
    listen: Annotated[str, typer.Option(help="where to listen", envvar="FACTORY_HTTP_LISTEN", metavar="[HOST:]PORT")] = "127.0.0.1:8085",
    token_file: Annotated[
        str | None,
        typer.Option(
            help="file with the token that clients send; else FACTORY_HTTP_TOKEN is it", envvar="FACTORY_HTTP_TOKEN_FILE", metavar="FILE"
        ),
    ] = None,
    tls_cert: Annotated[
        str, typer.Option(help="certificate chain (PEM): then it serves TLS alone", envvar="FACTORY_HTTP_TLS_CERT", metavar="FILE")
    ] = "",
    tls_key: Annotated[
        str, typer.Option(help="the certificate's key (PEM), if it isn't in its file", envvar="FACTORY_HTTP_TLS_KEY", metavar="FILE")
    ] = "",
) -> None:
    """Start pipelines by HTTP until stopped: POST /runs starts one over a window, GET /runs/ID says how far it is.

    Clients name one of these pipelines and a window, and send the token as "Authorization: Bearer TOKEN". A window's second start gives the
    first one's workflow. GET /healthz needs no token.

    \b
    Examples:
      factory temporal serve clicks.yaml
      factory temporal serve clicks.yaml orders.yaml --listen 0.0.0.0:8443 --tls-cert tls.crt --tls-key tls.key
    """
    _require()
    _log()
    try:
        from factory_agents.temporal import http
    except ModuleNotFoundError as error:
        raise ConfigurationError("factory temporal serve needs a web server: pip install 'factory-agents[http]'") from error
    from factory_agents.temporal.pipelines import read_pipeline

    token = _token(token_file)
    specs = [read_pipeline(file) for file in files]
    pipelines = {spec.pipeline: spec for spec in specs}
    if len(pipelines) != len(specs):
        raise ConfigurationError(f"expected pipelines with different names, got {', '.join(spec.pipeline for spec in specs)}")

    async def served(client: Any) -> None:
        await http.serve(http.make_app(client, pipelines, token=token), listen, certificate=tls_cert, key=tls_key)

    _served(served, traced=True)


def _token(file: str | None) -> str:
    if file is None:
        token = os.environ.get("FACTORY_HTTP_TOKEN", "")
    else:
        try:
            token = Path(file).read_text().strip()
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(f"--token-file {file}: {getattr(error, 'strerror', None) or error}") from None
    if not token:
        raise ConfigurationError("expected a token for clients in FACTORY_HTTP_TOKEN or --token-file, such as of `openssl rand -hex 32`")
    return token


@schedules.command("apply")
def schedule_apply(
    file: _Pipeline,
    every: _Every,
    delay: Annotated[str, typer.Option(help="how long after a window's end it is done", metavar="TIME")] = "0 s",
    catch_up: Annotated[
        str | None,
        typer.Option(
            help="windows missed for up to so long are done later, at most 1,000; by default of 7 days", metavar="TIME", show_default=False
        ),
    ] = None,
) -> None:
    """Create a pipeline's schedule, or change it. It is named as the pipeline, and windows begin at whole multiples of their length (UTC).

    \b
    Example:
      factory temporal schedule apply clicks.yaml --every '1 h' --delay '2 min'
    """
    _require()
    from factory_agents.temporal import client as clients
    from factory_agents.temporal.pipelines import read_pipeline
    from factory_agents.temporal.protocol import ScheduledRequest

    late = 0.0 if delay.strip().startswith("0") else _seconds(delay, "--delay")
    request = ScheduledRequest(read_pipeline(file), _seconds(every, "--every"), late)
    if late >= request.every:
        raise ConfigurationError(f"--delay {delay}: expected less than --every {every}")
    week = min(7 * 24 * 3600, clients.MOST_MISSED * request.every)
    missed = week if catch_up is None else _seconds(catch_up, "--catch-up")
    name = _served(lambda client: clients.apply_schedule(client, request, catch_up=missed))
    console.say(f"schedule {name}: every {every}")


@schedules.command("delete")
def schedule_delete(name: Annotated[str, typer.Argument(help="the pipeline's name", metavar="NAME", show_default=False)]) -> None:
    """Delete a pipeline's schedule. What it has started goes on.

    \b
    Example:
      factory temporal schedule delete clicks
    """
    _require()
    from factory_agents.temporal import client as clients

    _served(lambda client: clients.delete_schedule(client, name))


def _seconds(text: str, flag: str) -> float:
    found = seconds_of(text)
    if found is None:
        raise ConfigurationError(f"{flag} {text}: expected a time such as '1 h' or '30 min'")
    return found


@temporal.command("progress")
def progress(id_: _Id, json: Json = False) -> None:
    """Show how far a workflow is: its stages with their counts, and what the one that runs has done.

    \b
    Example:
      factory temporal progress software_factory_pipeline/2018-06-05T08:00:00.000Z/2018-06-05T09:00:00.000Z
    """
    _require()
    from factory_agents.temporal import client as clients

    async def asked(client: Any) -> Any:
        found = await clients.progress(client, id_)
        _name_unserved(await clients.unserved(client, await clients.waited_for(client, id_)))
        return found

    _print_progress(id_, _served(asked), json)


@temporal.command("pause")
def pause(id_: _Id, json: Json = False) -> None:
    """Let a workflow begin no further slice; what runs goes on to the end of its own.

    \b
    Example:
      factory temporal pause software_factory_pipeline/2018-06-05T08:00:00.000Z/2018-06-05T09:00:00.000Z
    """
    _set_paused(id_, True, json)


@temporal.command("resume")
def resume(id_: _Id, json: Json = False) -> None:
    """Let a paused workflow go on.

    \b
    Example:
      factory temporal resume software_factory_pipeline/2018-06-05T08:00:00.000Z/2018-06-05T09:00:00.000Z
    """
    _set_paused(id_, False, json)


@temporal.command("retry")
def retry(id_: _Id, json: Json = False) -> None:
    """Try again what failed for good in a workflow that waits for it (its pipeline has a "hold"). What was done stays done.

    \b
    Example:
      factory temporal retry software_factory_pipeline/2018-06-05T08:00:00.000Z/2018-06-05T09:00:00.000Z
    """
    _require()
    from factory_agents.temporal import client as clients

    _print_progress(id_, _served(lambda client: clients.retry(client, id_)), json)


def _set_paused(id_: str, paused: bool, json: bool) -> None:
    _require()
    from factory_agents.temporal import client as clients

    _print_progress(id_, _served(lambda client: clients.pause(client, id_, paused)), json)


@temporal.command("cancel")
def cancel(id_: _Id, wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until its agents have ended")] = True) -> None:
    """Cancel a workflow. Its agents commit what they have in hand and end; another start of the window goes on there (--again).

    \b
    Example:
      factory temporal cancel software_factory_pipeline/2018-06-05T08:00:00.000Z/2018-06-05T09:00:00.000Z
    """
    _require()
    from factory_agents.temporal import client as clients

    async def cancelled(client: Any) -> None:
        await _patiently(client, clients.cancel(client, id_, wait=wait), lambda: clients.waited_for(client, id_))

    _served(cancelled)


def _name_unserved(queues: list[str]) -> None:
    for queue in queues:
        console.note(f"no worker takes tasks of queue {queue!r}: is its name right? else run factory temporal worker --task-queue {queue}")


def _print_progress(id_: str, found: Any, json: bool) -> None:
    if console.wants_json(json):
        console.print_json(found)
        return
    if hasattr(found, "waiting"):
        console.say(f"{id_}: {found.windows:,} windows, {found.waiting:,} events wait for the next")
        for name in found.failed:
            console.say(f"failed: {name}")
        return
    if hasattr(found, "windows"):
        console.say(f"{id_}: {found.windows:,} windows, {found.known:,} of them done before, {len(found.failed):,} failed")
        return
    _print_stages(id_, found.stages)
    if found.stage and all(done.stage != found.stage for done in found.stages):
        total = f" of up to {found.total:,}" if found.total >= 0 else ""
        shards = f", {found.shards_done} of {found.shards} shards" if found.shards > 1 else ""
        console.say(f"{found.stage}: {found.done:,}{total} events as of its last slice{shards}{' (paused)' if found.paused else ''}")
    for error in found.held:
        console.say(f"waits for a retry: {error}")


def _print_stages(id_: str, stages: Any) -> None:
    console.print_table(
        ["stage", "consumed", "forwarded", "rejected", "wrote to", "shards", "slices", ""],
        [
            [
                done.stage,
                done.counts.consumed,
                done.counts.forwarded,
                done.counts.rejected,
                done.table or done.topic,
                done.shards,
                done.slices,
                "done before" if done.reused == done.shards else "",
            ]
            for done in stages
        ],
        right=["consumed", "forwarded", "rejected", "shards", "slices"],
        title=id_,
    )
