"""Data contracts: what an event and a window of events must be, checked and judged."""

from factory_agents.contracts.conditions import Condition, Verdict, judge, parse_condition, parse_conditions
from factory_agents.contracts.contract import Contract, Rule, is_text, load_contract, pack_contract, split_name, untrusted_contract
from factory_agents.contracts.foreign_keys import ForeignKey
from factory_agents.contracts.schema import Violation
from factory_agents.contracts.table import Column, ColumnSpec, ColumnType, DeleteMarker, TableSpec
from factory_agents.contracts.window_rules import WindowStatistics, merge_reports

__all__ = [
    "Column",
    "ColumnSpec",
    "ColumnType",
    "Condition",
    "Contract",
    "DeleteMarker",
    "ForeignKey",
    "Rule",
    "TableSpec",
    "Verdict",
    "Violation",
    "WindowStatistics",
    "is_text",
    "judge",
    "load_contract",
    "merge_reports",
    "pack_contract",
    "parse_condition",
    "parse_conditions",
    "split_name",
    "untrusted_contract",
]
