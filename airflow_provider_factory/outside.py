"""Which arguments of a task its DAG's author wrote, and which come from whoever started the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from airflow.sdk.definitions.param import DagParam

__all__ = ["from_outside", "names_from_outside"]

_OF_THE_AUTHOR = {
    *("ds", "ds_nodash", "ts", "ts_nodash", "ts_nodash_with_tz", "logical_date", "data_interval_start", "data_interval_end"),
    *("prev_data_interval_start_success", "prev_data_interval_end_success", "prev_start_date_success", "prev_end_date_success"),
    *("macros", "var", "conn"),
}
"""What templates may read without a word of whoever starts a run in it: times, and what administrators set."""


def from_outside(written: Any) -> bool:
    """Whether an argument as the DAG file has it lets whoever starts a run decide (a part of) it: it reads ``params``, for example.

    What another task returns is what that task's author made of it.
    """
    if isinstance(written, str):
        return _reads_the_run(written)
    if isinstance(written, Mapping):
        return any(from_outside(part) for pair in written.items() for part in pair)
    if isinstance(written, Collection):
        return any(from_outside(part) for part in written)
    return isinstance(written, DagParam)


def names_from_outside(written: Any, rendered: Collection[str]) -> set[str]:
    """Those of the ``rendered`` parameters that come from outside."""
    if isinstance(written, Mapping):
        return {str(name) for name, value in written.items() if from_outside({name: value})} & set(rendered)
    return set(rendered) if from_outside(written) else set()


def _reads_the_run(text: str) -> bool:
    if "{{" not in text and "{%" not in text:
        return False
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        return not meta.find_undeclared_variables(Environment(autoescape=True).parse(text)) <= _OF_THE_AUTHOR
    except TemplateSyntaxError:
        return True
