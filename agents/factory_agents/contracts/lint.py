"""Everything that is wrong with a contract's file, each with its place: for editors and for CI."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from factory_agents import __version__
from factory_agents.contracts.contract import Contract, open_contract, read_contract, split_name
from factory_agents.contracts.documents import Document
from factory_agents.contracts.notations import schema_names
from factory_agents.contracts.odcs import is_odcs, standard_errors
from factory_agents.errors import ConfigurationError, ContractError

__all__ = ["Problem", "lint_contract", "sarif"]


_MOST_SCHEMAS = 200


class Problem(msgspec.Struct, frozen=True):
    """An error, or a note on what is not checked; ``line`` and ``column`` count from 1."""

    file: str
    line: int
    column: int
    level: Literal["error", "note"]
    message: str

    @property
    def text(self) -> str:
        """As compilers write it."""
        return f"{self.file}:{self.line}:{self.column}: {self.level}: {self.message}"


def lint_contract(source: str) -> list[Problem]:
    """What is wrong with the contract in a file (of several schemas in it: with each, unless one is named), errors first."""
    name, wanted = split_name(source)
    errors: list[ContractError] = []
    try:
        document, folder = open_contract(name, "", Path.cwd())
    except (ContractError, ConfigurationError) as error:
        return [_problem(name, str(error), "error")]
    document = replace(document, errors=errors)
    found: dict[str, Literal["error", "note"]] = {}
    for schema in _schemas(document, wanted, found):
        errors.clear()
        try:
            contract = read_contract(document, schema, folder)
        except ContractError as error:
            found |= dict.fromkeys(map(str, [*errors, error]), "error")
        else:
            found |= {text: "note" for text in (*contract.notes, *contract.not_run) if text not in found}
            found |= _of_queries(contract)
    problems = [_problem(name, text, level) for text, level in found.items()]
    return sorted(problems, key=lambda p: (p.level, p.file, p.line, p.column))


def _schemas(document: Document, wanted: str, found: dict[str, Literal["error", "note"]]) -> Sequence[str]:
    """The schemas to look at; what the standard's own schema has against the document is ``found`` first."""
    findings = standard_errors(document) if is_odcs(document.data) else []
    found |= {str(finding.error): "error" for finding in findings}
    if any(finding.of_events for finding in findings):
        return []
    names = schema_names(document)
    if len(names) > _MOST_SCHEMAS and not wanted:
        first = f"the first {_MOST_SCHEMAS} of {len(names):,} schemas are looked at; name one to see it: {document.name}#{names[-1]}"
        found[f"{document.where(('schema',))}: {first}"] = "note"
        return names[:_MOST_SCHEMAS]
    return names if len(names) > 1 and not wanted else [wanted]


def _of_queries(contract: Contract) -> dict[str, Literal["error", "note"]]:
    """What DuckDB says of a contract's SQL; a note where it isn't installed."""
    found: dict[str, Literal["error", "note"]] = {}
    for query in contract.queries:
        table = contract.window_table([query])
        try:
            table.open()
        except ContractError as error:
            found[str(error)] = "error"
        except ConfigurationError as error:
            found[str(error)] = "note"
        found |= dict.fromkeys(table.not_run, "note")
        table.close()
    return found


def _problem(file: str, text: str, level: Literal["error", "note"]) -> Problem:
    place = re.match(r"(.+?):(\d+):(\d+): (.*)", text, re.DOTALL)
    if place is None:
        return Problem(file, 1, 1, level, text)
    return Problem(place[1], int(place[2]), int(place[3]), level, place[4])


def sarif(problems: Iterable[Problem]) -> dict[str, Any]:
    """The problems as SARIF 2.1.0, which code hosts show beside the lines."""
    results = [
        {
            "ruleId": "contract",
            "level": problem.level,
            "message": {"text": problem.message},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": Path(problem.file).as_posix()},
                        "region": {"startLine": problem.line, "startColumn": problem.column},
                    }
                }
            ],
        }
        for problem in problems
    ]
    rules = [{"id": "contract", "shortDescription": {"text": "A data contract can be read, and all of it is checked"}}]
    driver = {"name": "factory contracts lint", "version": __version__, "rules": rules}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return {"$schema": schema, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
