"""Figures compared with those of earlier windows."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_agents.contracts import judge, load_contract, merge_reports, parse_condition
from factory_agents.contracts.drift import baselines
from factory_agents.contracts.odcs_export import export_odcs
from factory_agents.contracts.window_rules import WindowStatistics
from factory_agents.errors import ConfigurationError, ContractError

CONTRACT: dict[str, Any] = {
    "name": "e",
    "schema": {"required": ["event_id"], "properties": {"event_id": {"type": "integer"}, "text": {"type": ["string", "null"]}}},
    "window": {"fail_if": ["drift(rows, 24) > 50 %"]},
}


def report(rows: int, earlier: list[dict[str, Any]] | None = None, nulls: int = 0, **changes: Any) -> dict[str, Any]:
    statistics = WindowStatistics(load_contract(CONTRACT | changes))
    statistics.add_valid([{"event_id": i, "text": None if i < nulls else "x"} for i in range(rows)])
    if earlier is not None:
        statistics.compare(earlier)
    return statistics.report()


def check(*arguments: Any, **more: Any) -> dict[str, Any]:
    (only,) = judge(report(*arguments, **more)).checks
    return only


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 60), st.integers(1, 8))
def test_it_is_the_distance_from_the_median_of_the_last_windows(past: list[int], rows: int, windows: int) -> None:
    found = check(rows, [report(n) for n in past], window={"fail_if": [f"drift(rows, {windows}) > 50 %"]})
    last = past[-windows:]
    if len(last) < min(3, windows):
        assert (found["observed"], found["outcome"]) == (None, "pass")
        return
    usual = median(last)
    distance = abs(rows - usual) / usual if usual else float(rows != 0)
    assert found["observed"] == pytest.approx(distance)
    assert found["outcome"] == ("fail" if distance > 0.5 else "pass")


@pytest.mark.parametrize(
    ("condition", "observed"),
    [("drift(null_rate(text), 3) > 10 %", 4.0), ("drift( nulls( text ) ,3) > 10 %", 4.0), ("drift(rejected(schema:text), 3) > 1 %", 0.0)],
)
def test_of_figures_with_an_argument(condition: str, observed: float) -> None:
    past = [report(10, nulls=n) for n in (1, 1, 2)]
    assert check(10, past, nulls=5, window={"fail_if": [condition]})["observed"] == observed


def test_the_first_windows_are_judged_by_nothing_and_say_so() -> None:
    found = check(5, [report(5)])
    assert (found["outcome"], found["note"]) == ("pass", "not known yet: 1 of 3 earlier windows")


def test_where_nobody_looked_at_earlier_windows_it_warns() -> None:
    found = check(5)
    assert found["outcome"] == "warn"
    assert found["note"].startswith("not known: earlier windows are looked at by a pipeline's validate stage")
    assert judge(report(5, [report(5)] * 3), "drift(valid, 3) > 1 %").checks[-1]["outcome"] == "warn"


def test_reports_of_before_the_contract_counted_it_are_no_windows_of_it() -> None:
    contract = load_contract(CONTRACT | {"window": {"fail_if": ["drift(keys(text), 3) > 1 %"]}})
    now = {**report(5), "volumes": {"text": {"keys": 7, "most": 1, "fewest": 1}}}
    assert baselines(contract.fail_if, [report(5), now, now]) == {"keys(text), 3": {"median": 7.0, "windows": 2}}


def test_the_shards_of_a_window_are_compared_as_one() -> None:
    past = [report(10)] * 3
    parts = [report(5, past), report(6, past)]
    (found,) = judge(merge_reports(parts)).checks
    assert (found["observed"], found["outcome"]) == (0.1, "pass")
    assert [judge(part).outcome for part in parts] == ["pass", "pass"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("drift(rows) > 5 %", "expected a figure and a number of windows from 1 to 1,000"),
        ("drift(rows, 0) > 5 %", "expected a figure and a number of windows from 1 to 1,000"),
        ("drift(rows, 99999) > 5 %", "expected a figure and a number of windows from 1 to 1,000"),
        ("drift(rows, ٣) > 5 %", "expected a figure and a number of windows from 1 to 1,000"),
        ("drift(rows, 24) > 5", "expected a share in per cent"),
        ("drift(rowz, 24) > 5 %", "unknown figure 'rowz'; did you mean 'rows'?"),
        ("drift(, 24) > 5 %", "expected a figure, a comparison and a threshold"),
        ("drift(drift(rows, 3), 24) > 5 %", "expected a figure that is no drift itself"),
        ("drift(nulls, 24) > 5 %", "expected a field in brackets, such as nulls(added)"),
    ],
)
def test_what_it_cannot_be_is_one_line(condition: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_condition(condition)
    assert message in str(raised.value)
    assert str(raised.value).startswith("condition ")


def test_names_in_it_are_looked_up() -> None:
    with pytest.raises(ContractError, match="declares no field 'texts'; did you mean 'text'"):
        load_contract(CONTRACT | {"window": {"fail_if": ["drift(nulls(texts), 3) > 1 %"]}})


def test_it_goes_into_the_standard_and_back() -> None:
    contract = load_contract(CONTRACT)
    assert load_contract(export_odcs(contract)).digest == contract.digest
