"""What changed between two contracts, and whom it breaks: those who write events, those who read them, or the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import msgspec

from factory_agents.contracts.contract import Contract
from factory_agents.contracts.documents import show

__all__ = ["Change", "Side", "diff_contracts"]

Side: TypeAlias = Literal["producers", "consumers", "table"]

_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_REMARKS = ("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id")
_BOTH: tuple[Side, ...] = ("producers", "consumers")


class Change(msgspec.Struct, frozen=True):
    """One difference: in what, from what to what, and whom it ``breaks`` (nobody: empty).

    Producers break where an event that was valid may be so no longer, consumers where an event may come that couldn't before, the table
    where it has to be altered.
    """

    what: str
    text: str
    breaks: tuple[Side, ...] = ()


def diff_contracts(old: Contract, new: Contract) -> list[Change]:
    """What is different in meaning, the breaking changes first; nothing where the digests are equal."""
    changes = [
        *_facts(old, new),
        *_schemas(old.schema, new.schema, ""),
        *_named("rule", {r.name: r.text for r in old.rules}, {r.name: r.text for r in new.rules}, breaking=True),
        *_named("reference of", *({k.field: k.source for k in c.foreign_keys} for c in (old, new)), breaking=True),
        *_conditions(old, new),
        *_columns(old, new),
    ]
    return sorted(changes, key=lambda change: not change.breaks)


def _facts(old: Contract, new: Contract) -> Iterator[Change]:
    sides: dict[str, tuple[Side, ...]] = {
        "name": (), "version": (), "id": ("consumers",), "time": ("consumers",), "time_unit": _BOTH,
        "version_field": ("table",), "key": ("table",), "deletes": ("table",), "delete_marker": ("table",), "duplicate_keys": _BOTH,
    }  # fmt: skip
    for name, breaks in sides.items():
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield Change(name, f"{_shown(before)} → {_shown(after)}", breaks)


def _shown(value: Any) -> str:
    return "none" if value is None or value == () else ", ".join(value) if isinstance(value, tuple) else str(value)


def _named(what: str, old: Mapping[str, str], new: Mapping[str, str], *, breaking: bool) -> Iterator[Change]:
    for name in {**old, **new}:
        before, after = " ".join(old.get(name, "").split()), " ".join(new.get(name, "").split())
        if before != after:
            sides: tuple[Side, ...] = _BOTH if before and after else ("producers",) if after else ("consumers",)
            text = f"{before} → {after}" if before and after else f"added: {after}" if after else f"removed: {before}"
            yield Change(f"{what} {name}", text, sides if breaking else ())


def _conditions(old: Contract, new: Contract) -> Iterator[Change]:
    for level, before, after in (("fail_if", old.fail_if, new.fail_if), ("warn_if", old.warn_if, new.warn_if)):
        texts = {c.text: c.text for c in before}, {c.text: c.text for c in after}
        for change in _named("", *texts, breaking=level == "fail_if"):
            yield Change(level, change.text, change.breaks)
    counted = [{f"{'missing' if f.missing else 'invalid'}({f.name})": show(f.meaning[2:]) for f in c.figures} for c in (old, new)]
    yield from _named("values of", counted[0], counted[1], breaking=True)


def _columns(old: Contract, new: Contract) -> Iterator[Change]:
    before, after = ({c.name: c for c in contract.columns()} for contract in (old, new))
    for name in {**before, **after}:
        b, a = before.get(name), after.get(name)
        if a is None:
            yield Change(f"column {name}", "removed", ("table",))
        elif b is None:
            yield Change(f"column {name}", f"added: {a.type}{'' if a.nullable else ' not null'}", ("table",))
        else:
            if b.type != a.type:
                yield Change(f"column {name}", f"{b.type} → {a.type}", ("table",))
            if b.nullable != a.nullable:
                yield Change(f"column {name}", "may be null now" if a.nullable else "may not be null any more", ("table",))


def _schemas(old: Any, new: Any, path: str) -> Iterator[Change]:
    """Differences of two schemas of one value; ``path`` names it."""
    if old == new:
        return
    what = f"field {path}" if path else "the event"
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        yield Change(what, f"{show(old)} → {show(new)}", _BOTH)
        return
    yield from _types(old, new, what)
    yield from _properties(old, new, path)
    if old.get("items") != new.get("items"):
        yield from _schemas(old.get("items", {}), new.get("items", {}), f"{path}[]")
    done = {"type", "properties", "required", "items", *_REMARKS}
    for keyword in sorted((old.keys() | new.keys()) - done):
        if old.get(keyword) != new.get(keyword):
            yield _keyword(keyword, old.get(keyword), new.get(keyword), what)


def _types(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> Iterator[Change]:
    before, after = _type_set(old), _type_set(new)
    gone, come = before - after, after - before
    sides: list[Side] = [side for side, kinds in zip(_BOTH, (gone, come), strict=True) if kinds]
    if sides:
        was, is_ = (" or ".join(_listed(schema)) or "anything" for schema in (old, new))
        yield Change(what, f"type {was} → {is_}", tuple(sides))


def _listed(schema: Mapping[str, Any]) -> list[str]:
    given = schema.get("type") or []
    return [given] if isinstance(given, str) else list(given)


def _type_set(schema: Mapping[str, Any]) -> set[str]:
    """Its types, none meaning all; a number takes integers too."""
    given = set(_listed(schema)) or {"string", "integer", "number", "boolean", "object", "array", "null"}
    return given | {"integer"} if "number" in given else given


def _properties(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[Change]:
    before, after = old.get("properties") or {}, new.get("properties") or {}
    must, must_now = set(old.get("required") or ()), set(new.get("required") or ())
    for name in {**before, **after}:
        inner = f"{path}.{name}" if path else name
        if name not in after:
            closed: tuple[Side, ...] = ("producers",) if new.get("additionalProperties") is False else ()
            yield Change(f"field {inner}", "removed", (*closed, "consumers"))
        elif name not in before:
            needed: tuple[Side, ...] = ("producers",) if name in must_now else ()
            yield Change(f"field {inner}", "added, required" if needed else "added", needed)
        else:
            yield from _schemas(before[name], after[name], inner)
    for name in sorted((must ^ must_now) & (before.keys() | must) & (after.keys() | must_now)):
        inner = f"{path}.{name}" if path else name
        if name in must_now and name in before:
            yield Change(f"field {inner}", "required now", ("producers",))
        elif name in must and name in after:
            yield Change(f"field {inner}", "may be missing now", ("consumers",))


def _keyword(keyword: str, old: Any, new: Any, what: str) -> Change:
    text = f"{keyword} {_of(old)} → {_of(new)}"
    if keyword == "enum" and isinstance(old, list) and isinstance(new, list):
        gone, come = [v for v in old if v not in new], [v for v in new if v not in old]
        sides = [side for side, values in zip(_BOTH, (gone, come), strict=True) if values]
        parts = [f"no longer {show(gone)}" if gone else "", f"also {show(come)}" if come else ""]
        return Change(what, f"enum: {', '.join(p for p in parts if p) or 'in another order'}", tuple(sides))
    if keyword in (*_LEAST, *_MOST) and all(isinstance(v, (int, float, Decimal)) for v in (old, new)):
        stricter = (new > old) == (keyword in _LEAST)
        return Change(what, text, ("producers",) if stricter else ("consumers",))
    if keyword in ("additionalProperties", "uniqueItems", "unevaluatedProperties"):
        open_ = keyword != "uniqueItems"
        before, after = (open_ if v is None else v for v in (old, new))
        if before is after:
            return Change(what, text)
        if isinstance(before, bool) and isinstance(after, bool):
            return Change(what, text, ("producers",) if after is not open_ else ("consumers",))
    if old is None or new is None:
        return Change(what, text, ("producers",) if old is None else ("consumers",))
    return Change(what, text, _BOTH)


def _of(value: Any) -> str:
    return "none" if value is None else show(value, 80)
