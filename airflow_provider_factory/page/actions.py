"""What the page can start: Airflow's own backfills, and runs of the replay DAG. It writes nothing to Kafka itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from airflow_provider_factory.page.access import PREVIEW_DAG, REPLAY_DAG
from airflow_provider_factory.page.runs import more_intervals_than, session, unfinished_run, why_none_begins
from airflow_provider_factory.page.snapshot import Snapshot
from factory_agents.errors import ConfigurationError
from factory_agents.runtime.dead_letters import place_of_letter

__all__ = [
    "MOST_RUNS",
    "Planned",
    "backfill",
    "planned_runs",
    "preview",
    "preview_stages",
    "preview_topics",
    "replay",
    "replay_conf",
    "replay_targets",
]

MOST_RUNS = 336
"""Most runs that one backfill from here makes: as many as a calendar shows."""

_MOST_LETTERS = 200


@dataclass(frozen=True)
class Planned:
    """What a backfill would run: the starts of the intervals without a run yet, and those among them that nobody chose."""

    runs: tuple[datetime, ...]
    extra: tuple[datetime, ...]


def planned_runs(dag_id: str, chosen: Iterable[datetime]) -> Planned:
    """What Airflow would run from the first chosen interval to the last. Raises ConfigurationError with Airflow's reason for none."""
    first, last, wanted = _span(chosen)
    from airflow.models.backfill import ReprocessBehavior, _do_dry_run

    _check_begins(dag_id)
    with session() as opened, _told():
        if more_intervals_than(opened, dag_id, first, last, MOST_RUNS):
            raise ConfigurationError(f"more than {MOST_RUNS} intervals lie from {first:%F %H:%M} to {last:%F %H:%M}; choose a shorter time")
        infos = list(
            _do_dry_run(
                dag_id=dag_id,
                from_date=first,
                to_date=last,
                reverse=False,
                reprocess_behavior=ReprocessBehavior.NONE,
                session=opened,
            )
        )
    starts = tuple(sorted(_utc(getattr(info, "logical_date", info)) for info in infos))
    return Planned(starts, tuple(start for start in starts if start not in wanted))


def backfill(dag_id: str, chosen: Iterable[datetime], expected: Iterable[datetime], user: str) -> int:
    """Start the backfill that was shown (``expected``); returns its id. Raises ConfigurationError where it would be another by now."""
    chosen = list(chosen)
    planned = planned_runs(dag_id, chosen)
    if set(planned.runs) != {_utc(moment) for moment in expected}:
        raise ConfigurationError("what would run has changed since it was shown; look at it again")
    if not planned.runs:
        raise ConfigurationError("every chosen window has a run already; clear those runs to run them again")
    from airflow.models.backfill import ReprocessBehavior, _create_backfill

    first, last, _ = _span(chosen)
    with _told():
        created = _create_backfill(
            dag_id=dag_id,
            from_date=first,
            to_date=last,
            max_active_runs=4,
            reverse=False,
            dag_run_conf={},
            triggering_user_name=user,
            reprocess_behavior=ReprocessBehavior.NONE,
        )
    return int(created.id)


def _span(chosen: Iterable[datetime]) -> tuple[datetime, datetime, set[datetime]]:
    wanted = {_utc(moment) for moment in chosen}
    if not wanted:
        raise ConfigurationError("no window is chosen")
    if len(wanted) > MOST_RUNS:
        raise ConfigurationError(f"expected at most {MOST_RUNS} windows, got {len(wanted)}; choose fewer")
    return min(wanted), max(wanted), wanted


def _utc(moment: Any) -> datetime:
    return datetime.fromtimestamp(moment.timestamp(), UTC)


class _told:  # noqa: N801  # used as a function
    """Airflow's reasons why a backfill or a run can't be are told to the user; what isn't a reason stays an error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from airflow.sdk.exceptions import AirflowException

        if isinstance(error, (AirflowException, ValueError)):
            raise ConfigurationError(f"Airflow refuses: {error}") from error


def replay_targets(snapshot: Snapshot, pipeline: str, topic: str) -> list[str]:
    """Where a pipeline's letters in a topic may go: the topics on which its windows are planned, whose next window takes them."""
    if topic not in snapshot.letter_topics(pipeline):
        return []
    plans = (plan for (name, _), of in snapshot.figures.details.items() if name == pipeline for plan in of.plans)
    return sorted({plan.topic for plan in plans})


def replay_conf(pipeline: str, topic: str, to: str, *, positions: Sequence[str] = (), **chosen: Any) -> dict[str, Any]:
    """The replay DAG's parameters. Raises ConfigurationError for a mistyped position, or too many."""
    if len(positions) > _MOST_LETTERS:
        raise ConfigurationError(
            f"expected at most {_MOST_LETTERS} letters by position, got {len(positions)}; choose them by rule or window"
        )
    for position in positions:
        place_of_letter(position)
    return {"topic": topic, "to": to, "pipeline": pipeline, "positions": list(positions), **chosen}


def replay(conf: dict[str, Any], user: str) -> str:
    """Start a run of the replay DAG; returns its id.

    Raises ConfigurationError where that DAG isn't there, or takes no runs, or where just this replay is under way already.
    """
    with session() as opened:
        if same := unfinished_run(opened, REPLAY_DAG, conf):
            raise ConfigurationError(f"just this replay is under way already, as run {same!r} of {REPLAY_DAG!r}; wait for its result")
    return _start(REPLAY_DAG, conf, user)


def preview_topics(snapshot: Snapshot, pipeline: str) -> list[str]:
    """The topics that a pipeline reads and writes: those that its readers may look into."""
    found = {plan.topic for (name, _), of in snapshot.figures.details.items() if name == pipeline for plan in of.plans}
    for (name, _), of in snapshot.figures.details.items():
        if name == pipeline:
            found |= {m.topic for r in of.stages if r.result is not None and (m := r.result.manifest) is not None and m.topic}
    return sorted(found)


def preview_stages(snapshot: Snapshot, pipeline: str) -> list[tuple[str, str]]:
    """A pipeline's stages that read a topic, each with that topic; one that has never been done is taken to read what was planned."""
    mine = [of for (name, _), of in snapshot.figures.details.items() if name == pipeline]
    read = {(r.stage, m.topic) for of in mine for r in of.stages if r.result is not None and (m := r.result.input) is not None and m.topic}
    done = {r.stage for of in mine for r in of.stages if r.result is not None}
    begun = [({r.stage for r in of.stages} | {f.stage for f in of.failures}, {plan.topic for plan in of.plans}) for of in mine]
    return sorted(read | {(stage, topic) for stages, topics in begun for stage in stages - done for topic in topics})


def preview(pipeline: str, topic: str, count: int, user: str, *, contract: str = "", stage: str = "") -> str:
    """Start a run of the preview DAG over a topic's newest records, of a contract or of a stage; returns its id.

    Raises ConfigurationError where that DAG isn't there, or takes no runs.
    """
    what = {"stage": stage} if stage else {"agent": "validate", "contract": contract}
    return _start(PREVIEW_DAG, {"pipeline": pipeline, "topic": topic, **what, "count": count}, user)


def _start(dag_id: str, conf: dict[str, Any], user: str) -> str:
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.utils.types import DagRunTriggeredByType

    _check_begins(dag_id)
    try:
        with _told():
            run = trigger_dag(dag_id, triggered_by=DagRunTriggeredByType.UI, triggering_user_name=user, conf=conf)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; the DAG {dag_id!r} has to be in the DAG folder, see docs/factory-page.md") from error
    if run is None:
        raise ConfigurationError(f"Airflow made no run of {dag_id!r}; see the API server's log")
    return str(run.run_id)


def _check_begins(dag_id: str) -> None:
    """Refuse what would wait for somebody to notice it. Raises ConfigurationError."""
    with session() as opened:
        why = why_none_begins(opened, dag_id)
    if why:
        raise ConfigurationError(f"no run of the DAG {dag_id!r} would begin: {why}")
