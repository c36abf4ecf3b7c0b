"""A contract in the short form while it is made out of another notation, with the place in the original of each part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from factory_agents.contracts.documents import Document, KeyPath

__all__ = ["Draft", "Translation", "contract_name"]

_EXTRA = (
    *("id", "time", "time_unit", "version_field", "key", "deletes", "duplicate_keys"),
    *("schema", "rules", "references", "window", "columns", "masked"),
)


class Translation(NamedTuple):
    """A contract of another notation in the short form; ``notes`` say what in it checks nothing, ``not_run`` what of it isn't run here."""

    document: Document
    notes: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()


def contract_name(given: str) -> str:
    """A name as ours are: letters, digits, ``.``, ``_`` and ``-``."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", given)
    return name if re.match(r"[A-Za-z_]", name) else f"_{name}"


class Draft:
    """What is known of it so far."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.data: dict[str, Any] = {}
        self.origins: dict[KeyPath, KeyPath] = {}
        self.notes: list[str] = []
        self.not_run: list[str] = []
        self._same: dict[str, int] = {}

    def pass_over(self, at: KeyPath, what: str, why: str) -> None:
        """Say of a check that it isn't run."""
        self.not_run.append(f"{self.document.where(at)}: not run: {what} ({why})")

    def put(self, path: KeyPath, value: Any, origin: KeyPath) -> None:
        """Set a value, which came from ``origin`` in the original."""
        into = self.data
        for key in path[:-1]:
            into = into.setdefault(str(key), {})
        into[str(path[-1])] = value
        self.origins[path] = origin

    def condition(self, level: str, text: Any, origin: KeyPath) -> None:
        """Add a condition to ``fail_if`` or ``warn_if``."""
        into = self.data.setdefault("window", {}).setdefault(level, [])
        self.origins["window", level, len(into)] = origin
        into.append(text)

    def rule(self, name: str, text: Any, origin: KeyPath) -> None:
        """Add a rule, under its name or one like it that is free."""
        rules = self.data.setdefault("rules", {})
        name = re.sub(r"[^\w-]", "_", name, flags=re.ASCII)
        name = name if re.match(r"[A-Za-z_]", name) and name not in ("schema", "decode", "time") else f"_{name}"
        same = self._same[name] = self._same.get(name, 0) + 1
        name = name if same == 1 else f"{name}_{same}"
        while name in rules:
            name += "_"
        self.put(("rules", name), text, origin)

    def merge(self, given: Any, at: KeyPath) -> None:
        """Add what stands at ``at`` in our own words: a mapping with keys of the short form."""
        document = self.document
        whole = document.mapping(at, given, "a mapping with keys such as time and time_unit")
        document.check_keys(at, whole, _EXTRA)
        if "schema" in whole:
            self.data.pop("columns", None)
            where = document.where((*at, "schema"))
            self.notes.append(f"{where}: events are checked against this schema, in place of the properties")
        for key, value in whole.items():
            if key in _EXTRA and key not in ("window", "rules", "references"):
                self.put((key,), value, (*at, key))
        for key, what in (("rules", "rule names to expressions"), ("references", "fields to columns")):
            for name, value in document.mapping((*at, key), whole.get(key) or {}, f"a mapping of {what}").items():
                self.put((key, name), value, (*at, key, name))
        self._merge_window(document.mapping((*at, "window"), whole.get("window") or {}, "a mapping with fail_if, warn_if"), (*at, "window"))

    def _merge_window(self, window: Mapping[str, Any], at: KeyPath) -> None:
        for key, value in window.items():
            if key not in ("fail_if", "warn_if"):
                named = value.items() if isinstance(value, Mapping) else ()
                for name, inner in named:  # beside those that are there
                    self.put(("window", key, name), inner, (*at, key, name))
                if not named:
                    self.put(("window", key), value, (*at, key))
                continue
            for i, condition in enumerate(value if isinstance(value, list) else [value]):
                self.condition(key, condition, (*at, key, i) if isinstance(value, list) else (*at, key))

    def translation(self) -> Translation:
        """The result."""
        return Translation(replace(self.document, data=self.data, origins=self.origins), tuple(self.notes), tuple(self.not_run))
