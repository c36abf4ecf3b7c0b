"""What a run's context says: interval, policy, whether to do it again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import opentelemetry.context
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSkipException
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from airflow_provider_factory.assets import topic_asset
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.operators.window import WindowOperator
from airflow_provider_factory.runs import (
    as_bool,
    bundle_root,
    data_interval,
    follows,
    instance,
    mapped,
    optional_interval,
    order,
    reprocess_wanted,
    traceparent,
    window_policy,
)
from factory_agents.errors import ConfigurationError, WindowError
from factory_agents.protocol import Order, plain
from factory_agents.stage_plan import StageInput, plan_shards, stage_input
from tests.support.samples import INTERVAL, context, result, window


def test_an_agents_span_is_a_part_of_the_tasks_where_airflow_writes_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    carried, current = (f"00-{digit * 32}-{digit * 16}-01" for digit in "ab")
    task = context(ti=SimpleNamespace(context_carrier={"traceparent": carried}))
    assert traceparent(task) == "", "Airflow makes ids, and writes nothing under them"
    monkeypatch.setenv("AIRFLOW__TRACES__OTEL_ON", "true")
    assert traceparent(task) == carried
    assert traceparent(context(ti=SimpleNamespace(context_carrier=None))) == ""
    inside = TraceContextTextMapPropagator().extract({"traceparent": current})
    token = opentelemetry.context.attach(inside)
    try:
        assert traceparent(task) == current
    finally:
        opentelemetry.context.detach(token)


def test_the_interval_is_the_runs_data_interval() -> None:
    assert data_interval(context()) == INTERVAL


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        (None, None, "has no data interval: a run by hand gets one with airflow dags trigger clicks --logical-date 20"),
        (datetime(2026, 3, 1, tzinfo=UTC),) * 2 + ("has an empty data interval",),
    ],
)
def test_a_run_without_an_interval_is_told_how_to_get_one(start: Any, end: Any, says: str) -> None:
    run = context(data_interval_start=start, data_interval_end=end, ti=SimpleNamespace(dag_id="clicks"))
    with pytest.raises(WindowError, match=says) as error:
        data_interval(run)
    assert "CronDataIntervalTimetable" in str(error.value)
    assert "since_last" in str(error.value)
    assert optional_interval(run) is None


@pytest.mark.parametrize(
    ("run_type", "catchup", "after_pause", "policy"),
    [
        ("scheduled", False, "carry", "carry"),
        ("scheduled", False, "leave", "index"),
        ("scheduled", True, "carry", "index"),
        ("manual", False, "carry", "index"),
        ("backfill", False, "carry", "index"),
    ],
)
def test_only_scheduled_runs_without_catchup_carry_a_pause(run_type: str, catchup: bool, after_pause: str, policy: str) -> None:
    run = context(dag_run=SimpleNamespace(run_type=run_type), dag=SimpleNamespace(catchup=catchup))
    assert window_policy(run, after_pause) == policy


@pytest.mark.parametrize(
    ("max_tries", "retries", "again"), [(2, 2, False), (3, 2, True), (0, 0, False), (1, 0, True), (2, 5, False), (None, 2, False)]
)
def test_an_order_is_what_the_task_instance_was_told_so_far(max_tries: int | None, retries: int, again: bool) -> None:
    ti, run = SimpleNamespace(max_tries=max_tries), SimpleNamespace(clear_number=4)
    assert order(context(ti=ti, task=SimpleNamespace(retries=retries), dag_run=run)) == Order("manual__1", max_tries or 0, 4, again)


def test_an_order_says_when_its_run_began() -> None:
    assert order(context(dag_run=SimpleNamespace(clear_number=0, start_date=INTERVAL.start))).began == INTERVAL.start_ms
    assert order(context(dag_run=SimpleNamespace(clear_number=0, start_date=None))).began == 0


def test_mapped_tasks_have_orders_of_their_own() -> None:
    assert order(context(ti=SimpleNamespace(max_tries=0, map_index=3), task=SimpleNamespace(retries=0))).task == "manual__1 3"


def test_a_run_made_again_under_its_old_name_has_orders_of_its_own() -> None:
    runs = [SimpleNamespace(clear_number=0, run_after=after) for after in (INTERVAL.start, INTERVAL.end)]
    assert len({order(context(dag_run=run)).task for run in runs}) == 2


def mapped_task(index: int, of: int, over: Any = None) -> dict[str, Any]:
    """The context of one of ``of`` tasks, mapped over ``over``: a mapping (expand), a list (expand_kwargs), or a group's (None)."""
    original = SimpleNamespace() if over is None else SimpleNamespace(expand_input=SimpleNamespace(value=over))
    ti = SimpleNamespace(map_index=index, dag_id="d", task_id="t", run_id="r", get_ti_count=lambda states=(), **_: 0 if states else of)
    return context(ti=ti, dag=SimpleNamespace(task_dict={"t": original}), task=SimpleNamespace(task_id="t", retries=0))


def whole(instance: int = 0) -> StageInput:
    return stage_input(window(4, instance=instance))


def shard(index: int, of: int, instance: int = 0) -> StageInput:
    return stage_input(window(4, instance=instance), (index, of))


@pytest.mark.parametrize(
    ("index", "of", "given", "expected"),
    [
        (-1, 1, whole(7), 7),
        (-1, 1, shard(1, 2, 7), 7),
        (-1, 1, None, 0),
        (2, 3, None, 2),
        (2, 3, whole(7), 2),
        (1, 4, shard(1, 4), 0),
        (0, 2, shard(3, 4), 0),
        (1, 4, shard(1, 4, 7), 7),
    ],
    ids=[
        "not mapped",
        "not mapped, a shard",
        "not mapped, a source",
        "sources",
        "windows, results, parameters",
        "shards of a plan",
        "some of them, in any order",
        "shards of a mapped task's window",
    ],
)
def test_each_mapped_task_is_told_apart_but_the_shards_of_one_plan(index: int, of: int, given: StageInput | None, expected: int) -> None:
    assert instance(mapped_task(index, of), given) == expected


@pytest.mark.parametrize("over", [None, {"window": []}, {"agent_params": [{}], "shard": [None] * 5}], ids=["group", "windows", "product"])
def test_shards_of_several_plans_are_works_of_their_own(over: Any) -> None:
    shards = [shard(i, 3) for i in range(3)] + [shard(i, 2) for i in range(2)]
    assert [instance(mapped_task(i, 5, over), given) for i, given in enumerate(shards)] == [0, 0, 0, 3, 3]


def test_what_one_mapped_stage_wrote_keeps_its_work_wherever_it_stands_if_it_is_told_apart_by_its_scope() -> None:
    def stage(name: str, kind: Any = KafkaAgentOperator, **more: Any) -> Any:
        return kind.partial(task_id=name, **({"agent": "enrich", "output_topic": "out"} | more))

    with DAG("d") as dag:
        windows = WindowOperator.partial(task_id="window").expand(topic=["a", "b"])
        stage("t").expand(window=windows.output)
        stage("of_stage").expand(window=stage("before").expand_kwargs([{}, {}]).output)
        one = WindowOperator.partial(task_id="pauses", topic="a").expand(after_pause=["carry", "leave"])
        stage("windows_of_one_topic").expand(window=one.output)
        twice = WindowOperator.partial(task_id="twice").expand(topic=["a", topic_asset("a")])
        stage("one_topic_twice").expand(window=twice.output)
        judged = stage("judge", ValidationOperator, output_topic=None).expand(results=[[], []])
        stage("of_a_judge").expand(window=judged.output)
        stage("a_list").expand(window=[stage("one", KafkaAgentOperator).expand(window=[{}]).output, windows.output])
    ti = SimpleNamespace(map_index=1, dag_id="d", task_id="t", run_id="r", get_ti_count=lambda states=(), **_: 0 if states else 2)

    def of(task_id: str, given: StageInput) -> int:
        return instance(context(ti=ti, dag=dag, task=SimpleNamespace(task_id=task_id, retries=0)), given)

    for name in ("t", "of_stage"):
        assert [of(name, given) for given in (whole(), whole(7), shard(0, 2), shard(1, 2, 7))] == [0, 7, 0, 7], name
    for name in ("windows_of_one_topic", "one_topic_twice", "of_a_judge", "a_list"):
        assert of(name, whole()) == 1, name


@pytest.mark.parametrize("argument", ["window", "shard"])
@pytest.mark.parametrize("later", [False, True], ids=["as a list", "as a task's output"])
@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ([(0, "a"), (1, "a"), (0, "b"), (1, "b")], [0, 0, 1, 1]),
        ([(0, "a"), (0, "b"), (1, "a"), (1, "b")], [0, 1, 0, 1]),
        ([(1, "a"), (0, "a")], [0, 0]),
        ([(0, "a"), (0, "b")], [0, 1]),
    ],
    ids=["table by table", "shard by shard", "one set in any order", "some shards"],
)
def test_sets_of_shards_are_told_apart_in_either_order_of_a_product(
    of: list[tuple[int, str]], expected: list[int], later: bool, argument: str
) -> None:
    plan = plan_shards(window(4), 2)
    kwargs = [{argument: plan[i], "agent_params": {"table": table}} for i, table in of]
    over = SimpleNamespace(resolve=lambda _: kwargs) if later else kwargs
    shards = [stage_input(plan[i]) for i, _ in of]
    assert [instance(mapped_task(i, len(of), over), given) for i, given in enumerate(shards)] == expected


def instances(over: Any, given: Sequence[StageInput]) -> list[int]:
    return [instance(mapped_task(i, len(given), over), one) for i, one in enumerate(given)]


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_sets_of_a_product_are_its_parameters_whatever_the_number_of_shards(shards: int) -> None:
    plan = plan_shards(window(4), shards)
    for argument in ("window", "shard"):
        over = {"agent_params": [{"table": "a"}, {"table": "b"}], argument: plan}
        assert instances(over, [stage_input(part) for part in plan * 2]) == [0] * shards + [1] * shards


def test_parameters_over_one_shard_are_works_of_their_own() -> None:
    """Two tasks of two shards look like a plan's, but both read the same one."""
    given = [shard(0, 2), shard(0, 2)]
    assert instances({"agent_params": [{}, {}]}, given) == [0, 1]
    assert instances([{"agent_params": {}}, {"agent_params": {}}], given) == [0, 1]
    assert instances([{"shard": [0, 2], "agent_params": {}}, {"shard": (0, 2), "agent_params": {}}], given) == [0, 1]
    assert instances({"agent_params": [{}, {}], "shard": [(0, 2)]}, given) == [0, 1]
    assert instances([{"shard": [0, 2]}, {"shard": [1, 2]}], [shard(0, 2), shard(1, 2)]) == [0, 0]


def test_several_plans_by_kwargs_may_be_whole_results_and_outputs_that_are_not_fetched() -> None:
    results = [plain(result(0, 2)), plain(result(1, 2)), plain(result(plan="p2"))]
    given = [stage_input(one) for one in results]
    assert instances([{"window": one} for one in results], given) == [0, 0, 2]
    with DAG("d"):
        left, right = (WindowOperator(task_id=name, topic="a").output for name in ("left", "right"))
    kwargs = [{"window": out, "shard": [i, 2]} for out in (left, right) for i in range(2)]
    assert instances(kwargs, [shard(0, 2), shard(1, 2)] * 2) == [0, 0, 2, 2]


def test_a_task_whose_arguments_a_map_function_skips_skips_no_other() -> None:
    plan = plan_shards(window(4), 3)

    def no_first(part: Any) -> Any:
        if part is plan[0]:
            raise AirflowSkipException
        return {"window": part}

    class Made(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return no_first(super().__getitem__(index))

    over = SimpleNamespace(resolve=lambda _: Made(plan))
    assert [instance(mapped_task(i, 3, over), stage_input(plan[i])) for i in (1, 2)] == [0, 0]


def test_a_topic_that_a_map_function_skips_skips_no_stage_of_another() -> None:
    class Made(Sequence[str]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: Any) -> Any:
            if index == 0:
                raise AirflowSkipException
            return "abc"[index]

    with DAG("d") as dag:
        windows = WindowOperator.partial(task_id="window").expand(topic=["a", "b", "c"])
        KafkaAgentOperator.partial(task_id="t", agent="enrich", output_topic="out").expand(window=windows.output)
    over: Any = dag.task_dict["window"]
    over.expand_input.value["topic"] = SimpleNamespace(resolve=lambda _: Made())
    ti = SimpleNamespace(map_index=1, dag_id="d", task_id="t", run_id="r", get_ti_count=lambda states=(), **_: 0 if states else 2)
    assert instance(context(ti=ti, dag=dag, task=SimpleNamespace(task_id="t", retries=0)), whole()) == 0


@pytest.mark.parametrize("name", ["window", "shard"])
def test_shards_before_parameters_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"the shards have to come last, expand\(agent_params=…, {name}=…\)"):
        instance(mapped_task(1, 4, {name: [], "agent_params": []}), shard(0, 2))


def test_mapped_tasks_are_counted_without_those_that_a_clear_removed() -> None:
    def count(states: Any = (), **_: Any) -> int:
        return 2 if "removed" in states else 5

    ti = SimpleNamespace(map_index=0, dag_id="d", task_id="t", run_id="r", get_ti_count=count)
    assert mapped(context(ti=ti)) == 3
    assert mapped(context(ti=SimpleNamespace(map_index=-1, get_ti_count=count))) == 0
    assert mapped(context(ti=SimpleNamespace(map_index=0))) == 0


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ([("scheduled", 0)], True),
        ([("scheduled", 1)], False),
        ([("manual", 0), ("scheduled", 0)], True),
        ([("manual", 0), ("backfill", 0), ("scheduled", 2)], False),
        ([], False),
        ([("manual", 0)], False),
    ],
    ids=["right before", "a pause", "a run by hand between", "a pause with runs in it", "the first", "by hand only"],
)
def test_a_scheduled_run_follows_the_one_right_before_it(
    monkeypatch: pytest.MonkeyPatch, before: list[tuple[str, int]], expected: bool
) -> None:
    runs = iter([SimpleNamespace(run_type=kind, data_interval_end=INTERVAL.start - timedelta(hours=ago)) for kind, ago in before])
    monkeypatch.setattr("airflow_provider_factory.runs.previous_run", lambda _: next(runs, None))
    assert follows(context(), INTERVAL) is expected


def test_reprocess_is_the_argument_else_the_param() -> None:
    assert reprocess_wanted(context(params={"reprocess": True}), None)
    assert not reprocess_wanted(context(params={"reprocess": True}), "False")
    assert reprocess_wanted(context(), "true")
    assert not reprocess_wanted(context(), None)


def test_a_truth_value_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="dry_run: expected true or false, got 'maybe'"):
        as_bool("maybe", "dry_run")


def test_the_bundle_root_else_the_dag_files_folder(tmp_path: Any) -> None:
    file = tmp_path / "dags" / "a.py"
    file.parent.mkdir()
    file.touch()
    assert bundle_root(context(ti=SimpleNamespace(bundle_instance=SimpleNamespace(path=tmp_path)))) == tmp_path
    assert bundle_root(context(ti=SimpleNamespace(), dag=SimpleNamespace(fileloc=str(file)))) == file.parent
    assert bundle_root(context(ti=SimpleNamespace())) is None
