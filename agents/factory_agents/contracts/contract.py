"""Data contracts: what one event must be, what a window of them must be, and which table they make."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar, get_args

import msgspec

from factory_agents.contracts.conditions import Condition, parse_condition
from factory_agents.contracts.documents import (
    Document,
    KeyPath,
    did_you_mean,
    inline_document,
    one_of,
    parse_document,
    read_document,
    show,
)
from factory_agents.contracts.expressions import Expression, ExpressionError, Getter, compile_all, compile_each, parse_expression
from factory_agents.contracts.fast import EventTime, FastPath, compile_fast
from factory_agents.contracts.figures import Figure, read_figures
from factory_agents.contracts.foreign_keys import ForeignKey, pack_data, read_foreign_keys, unpack_data
from factory_agents.contracts.notations import schema_names, translated
from factory_agents.contracts.schema import FieldType, Schema, Violation, compile_schema
from factory_agents.contracts.sql import Query, WindowTable, read_queries
from factory_agents.contracts.table import COLUMN_TYPES, Column, ColumnSpec, ColumnType, DeleteMarker, TableSpec
from factory_agents.contracts.times import iso_time
from factory_agents.digits import to_json, with_floats
from factory_agents.errors import ConfigurationError, ContractError
from factory_agents.paths import confined_path, resolve_path
from factory_agents.protocol import digest

__all__ = ["Contract", "Rule", "is_text", "load_contract", "pack_contract", "untrusted_contract"]

_T = TypeVar("_T")
TimeUnit = Literal["s", "ms", "us", "iso"]
DuplicateKeys = Literal["last", "refuse"]
Members: TypeAlias = Mapping[str, Callable[[Any], bool]]
"""Of a field, the test whether a value, not null, is in the column that its foreign key names."""

_KEYS = (
    *("name", "version", "description", "owner", "id", "time", "time_unit"),
    *("version_field", "key", "deletes", "duplicate_keys"),
    *("schema", "rules", "references", "window", "columns", "masked"),
)
_WINDOW_KEYS = ("fail_if", "warn_if", "nulls", "missing", "invalid", "sql")
_RESERVED = ("schema", "decode", "time")
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_FIRST_US = int(datetime(1, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
_LAST_US = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()) * 1_000_000


class Rule(msgspec.Struct, frozen=True):
    """A record rule: its name and its text, for people; the contract holds it compiled."""

    name: str
    text: str


@dataclass(frozen=True)
class Contract:
    """A checked data contract.

    ``id``, ``time`` and ``version_field`` name fields, None where the events have none. ``time_unit`` is what the event time is
    counted in (``iso``: ISO-8601 text). ``deletes``: a record without a value deletes its key's row, and so does an event with the
    ``delete_marker``. ``duplicate_keys``: of a key that is twice in an object the last counts, or the event is rejected. ``nulls`` are the
    fields whose nulls are counted, ``figures`` what else is, ``duplicates_of`` the fields whose values, taken together, should come once,
    ``volumes_of`` those that are the keys whose events are counted, ``queries`` the SQL over a window, ``foreign_keys`` the fields whose
    values must be in other data; the values of ``masked`` fields stand in no reason, report or log. ``digest`` is equal for equal meaning:
    comments, layout and descriptions don't enter it. ``notes`` say what in it checks nothing, ``not_run`` which checks are not ours to run.
    ``text`` is its own; ``texts`` are those of the files that it refers to, by their names relative to its folder.
    """

    name: str
    version: str
    id: str | None
    time: str | None
    time_unit: TimeUnit
    version_field: str | None
    key: tuple[str, ...]
    deletes: bool
    delete_marker: DeleteMarker | None
    duplicate_keys: DuplicateKeys
    rules: tuple[Rule, ...]
    fail_if: tuple[Condition, ...]
    warn_if: tuple[Condition, ...]
    nulls: tuple[str, ...]
    figures: tuple[Figure, ...]
    duplicates_of: tuple[tuple[str, ...], ...]
    volumes_of: tuple[tuple[str, ...], ...]
    queries: tuple[Query, ...]
    foreign_keys: tuple[ForeignKey, ...]
    masked: frozenset[str]
    source: str
    digest: str
    notes: tuple[str, ...]
    not_run: tuple[str, ...]
    text: str = field(repr=False)
    texts: Mapping[str, str] = field(repr=False)
    _columns: tuple[Column, ...] = field(repr=False)
    _schema: Schema = field(repr=False)
    _expressions: tuple[Expression, ...] = field(repr=False)
    _all_rules: Callable[[Getter], Any] = field(repr=False)
    _broken_rules: Callable[[Getter], list[int]] = field(repr=False)
    _read_time: Callable[[Any], int | None] = field(repr=False)

    @property
    def schema(self) -> Any:
        """The JSON Schema of an event, as it is in the contract."""
        return self._schema.content[0]

    def columns(self) -> tuple[Column, ...]:
        """The table's columns, in the order of their declaration."""
        return self._columns

    def table(self) -> TableSpec:
        """The columns as the table that a sink writes; where the event time is a number it is read in the contract's unit.

        Raises ConfigurationError for a contract without columns.
        """
        unit = self.time_unit if self.time_unit != "iso" else ""
        columns = tuple(
            ColumnSpec(c.name, type_, c.nullable, unit if c.name == self.time else "")
            for c in self._columns
            if (type_ := ColumnType.parse(c.type)) is not None
        )
        if not columns:
            raise ConfigurationError(
                f"contract {self.source}: it declares no fields, so it gives a table no columns; add a schema or columns"
            )
        return TableSpec(columns, self.key, self.time, self.version_field, self.deletes, self.delete_marker)

    def checker(self, members: Members | None = None) -> Callable[[dict[str, Any]], bool]:
        """The fast test of one decoded event against schema and rules; what it calls false, ``violations`` explains.

        ``members`` says of each field with a foreign key whether it may have a value; without them these aren't checked.
        """
        is_valid, rules = self._schema.is_valid, self._all_rules
        if not self._expressions and not members:
            return is_valid
        known = tuple((members or {}).items())

        def check(event: dict[str, Any]) -> bool:
            try:
                if not (is_valid(event) and rules(event.get)):
                    return False
                return all((value := event.get(name)) is None or contains(value) for name, contains in known)
            except Exception:  # a rule of these values cannot be decided: that is theirs, whatever was raised
                return False

        return check

    def fast_path(self, more: Sequence[str] = (), members: Members | None = None) -> FastPath:
        """A decoder and a test for most events; what they don't take, or raise at, ``checker`` decides. Raises NotFast with the reason.

        ``more`` are fields whose values are read besides those that the contract's figures are about; ``members``: see ``checker``.
        """
        values = [
            *more,
            *(members or ()),
            *([] if self.id is None else [self.id]),
            *(f.field for f in self.figures),
            *(n for names in (*self.duplicates_of, *self.volumes_of) for n in names),
        ]
        return compile_fast(self._schema, self._expressions, values, self.nulls, members or {}, self._event_time())

    def _event_time(self) -> EventTime | None:
        if self.time is None:
            return None
        limits = () if self.time_unit == "iso" else _limits(self.time_unit)
        return EventTime(self.time, self._read_time, *limits)

    def window_table(self, queries: Sequence[Query] | None = None) -> WindowTable:
        """A table for the events of one window, for the contract's queries or some of them; not opened yet."""
        times = {c.name: self._read_time if c.name == self.time else iso_time for c in self._columns if c.type.startswith("timestamp")}
        return WindowTable(self.queries if queries is None else queries, self._columns, times)

    def time_reader(self) -> Callable[[Any], int | None]:
        """Turns a value of the time field into microseconds since 1970 UTC, None into None; it raises ValueError for no time."""
        return self._read_time

    @property
    def weighs_numbers(self) -> bool:
        """Whether the schema says of some number more than that it is one."""
        return self._schema.weighs_numbers

    def event_time(self, event: Mapping[str, Any]) -> int | None:
        """When an event happened: microseconds since 1970 UTC (as is text without a zone), or None. Raises ValueError for no time."""
        return None if self.time is None else self._read_time(event.get(self.time))

    def violations(self, event: Any, members: Members | None = None, exact: Any = None) -> tuple[Violation, ...]:
        """Every rule that an event breaks, with path, what was expected and what came: none for a valid event.

        ``members``: see ``checker``. ``exact`` is the event with decimals, where a float doesn't hold every digit of its numbers.
        """
        broken = self._schema.violations(event if exact is None else exact)
        if not isinstance(event, dict):
            return tuple(broken) or (Violation("schema", f"the event: expected object, got {show(event)}"),)
        fits = not broken
        if self.time is not None:
            told = f"schema:{self.time}"
            for violation in broken:
                if violation.rule == told:
                    break
            else:
                try:
                    self._read_time(event.get(self.time))
                except ValueError as error:
                    broken.append(Violation("time", f"{self.time}: {error}"))
        for i in self._broken_rules(event.get):
            if i >= 0 or fits:  # one that can't be decided because the schema is broken already adds nothing
                rule = i if i >= 0 else ~i
                name = self.rules[rule].name
                reason = _why_broken(self._expressions[rule], event, self.masked, decided=i >= 0)
                broken.append(Violation(name, f"rule {name}: {reason}"))
        if members:
            broken += self._unknown_values(event, members, {v.rule for v in broken})
        return tuple(map(self._without_values, broken)) if self.masked else tuple(broken)

    def _unknown_values(self, event: Mapping[str, Any], members: Members, broken: set[str]) -> Iterator[Violation]:
        for key in self.foreign_keys:
            value = event.get(key.field)
            if value is not None and key.field in members and f"schema:{key.field}" not in broken and not members[key.field](value):
                yield Violation(key.rule, f"{key.field}: expected a value of {key.source}, got {show(value)}")

    def _without_values(self, broken: Violation) -> Violation:
        """What was broken, without a value that is masked. One of the whole event may quote any, unless it names fields only."""
        of, _, name = broken.rule.partition(":")
        if name in self.masked or (of == "time" and self.time in self.masked):
            return Violation(broken.rule, f"{name or self.time}: not what the contract says; its value is masked")
        if broken.rule == "schema" and not broken.reason.startswith("the event: expected only declared fields"):
            return Violation(broken.rule, "the event: not what the contract says; it has masked values")
        return broken


def _why_broken(expression: Expression, event: dict[str, Any], masked: frozenset[str], *, decided: bool) -> str:
    """Why a rule doesn't hold."""
    undecided: Exception | None = None
    if not decided:
        try:
            expression.test(event.get)
        except Exception as error:
            undecided = error
    names = expression.names
    verb = "expected"
    if undecided is not None:
        why = type(undecided).__name__ if masked.intersection(names) else str(undecided)
        verb = f"cannot be decided ({why}): expected"
    got = [f"{n} = {show(event[n]) if n not in masked else 'a masked value'}" if n in event else f"no {n}" for n in names]
    return f"{verb} {expression.line}, got {', '.join(got)}"


def load_contract(
    source: str | Path | Mapping[str, Any], *, name: str = "", folder: Path | None = None, untrusted: bool = False
) -> Contract:
    """Read a contract from a file (found as ``resolve_path`` does), from YAML or JSON text, from a mapping, or from ``pack_contract``.

    A text is told from a path by a line break or a leading brace; ``name`` is what messages call a file. What the contract refers to is
    relative to its own file (else to ``folder``, ``$FACTORY_INCLUDE`` or the working directory). Raises ContractError beginning with
    ``file:line:column``, and ConfigurationError where there is no such file. An ``untrusted`` source may only be the name of a file that
    is allowed (see ``confined_path``), of which no error shows anything.
    """
    if isinstance(source, Mapping) and source.keys() - {"data"} == _PACKED:
        texts = dict(source["files"])
        file, wanted = _split(source["name"])
        document = parse_document(source["text"], file)
        if wanted not in schema_names(document):
            document, wanted = replace(document, name=source["name"]), ""
        return read_contract(document, wanted, folder_of(texts), texts, unpack_data(source.get("data", {})))
    if untrusted:
        return untrusted_contract(source, None)
    wanted = split_name(source)[1] if isinstance(source, (str, Path)) else ""
    document, folder = open_contract(source, name, folder or Path(os.environ.get("FACTORY_INCLUDE") or Path.cwd()))
    return read_contract(document, wanted, folder)


def read_contract(
    document: Document,
    wanted: str,
    folder: Path,
    texts: Mapping[str, str] | None = None,
    contents: Mapping[str, bytes] | None = None,
) -> Contract:
    """The contract that a document holds, in whichever notation; of several schemas the ``wanted`` one.

    With ``texts`` only these files are read; ``contents`` are those of the files that its ``references`` name.
    """
    translation = translated(document, wanted)
    return _Builder(translation.document, folder, texts, translation.notes, translation.not_run, wanted, contents).build()


def split_name(source: str | Path) -> tuple[str, str]:
    """A contract's file, and which of its schemas is meant: ``orders.odcs.yaml#receivers``."""
    name = os.fspath(source)
    return (name, "") if is_text(name) or os.path.exists(name) else _split(name)  # noqa: PTH110  # it takes any text


def _split(name: str) -> tuple[str, str]:
    file, _, schema = name.partition("#")
    return (file, schema) if file else (name, "")


def untrusted_contract(source: Any, roots: Sequence[Path] | None) -> Contract:
    """The contract of a file whose name came from outside: it must lie in one of the ``roots``; what is wrong with it isn't quoted."""
    if not isinstance(source, str) or is_text(source):
        raise ConfigurationError(
            f"contract: it comes from a parameter of the run, so expected the name of a file, such as contracts/events.yaml, got "
            f"{'the text of one' if isinstance(source, str) else type(source).__name__}"
        )
    source, wanted = _split(source)
    path = confined_path(source, "contract", roots)
    try:
        return read_contract(read_document(path, source), wanted, path.parent.absolute())
    except ContractError as error:
        place = re.match(re.escape(source) + r"(?::\d+:\d+)?", str(error))
        where = place[0] if place else source
        raise ContractError(f"{where}: no contract; what it says isn't shown, since a parameter of the run named it") from None


def pack_contract(contract: Contract) -> dict[str, Any]:
    """The contract as data that mean the same wherever they are read: the texts of its file and of those that it refers to.

    Data of its foreign keys are among them up to a size (see ``pack_data``).
    """
    packed = {"name": contract.source, "text": contract.text, "files": dict(contract.texts)}
    data = pack_data(contract.foreign_keys)
    return packed | ({"data": data} if data else {})


_PACKED = {"name", "text", "files"}


def is_text(source: str) -> bool:
    """Whether it is a contract's text, not the name of its file."""
    return "\n" in source or source.lstrip().startswith("{")


def open_contract(source: str | Path | Mapping[str, Any], name: str, folder: Path) -> tuple[Document, Path]:
    """A contract's document, and the folder where its references start."""
    if isinstance(source, Mapping):
        return inline_document(source), folder.absolute()
    if isinstance(source, str) and is_text(source):
        return parse_document(source, "inline contract"), folder.absolute()
    file = split_name(source)[0]
    path = resolve_path(file, "contract")
    return read_document(path, split_name(name)[0] if name else file), path.parent.absolute()


def folder_of(texts: Mapping[str, str]) -> Path:
    """A folder that is nowhere, deep enough for names that lead out of it."""
    up = max((name.split("/").count("..") for name in texts), default=0)
    return Path("/", *["contract"] * (up + 1))


_NO_TIME: tuple[str | None, TimeUnit] = (None, "iso")
_NO_RULES: list[tuple[Rule, Expression]] = []
_Window: TypeAlias = "tuple[tuple[Condition, ...], tuple[Condition, ...], tuple[str, ...], tuple[Figure, ...], tuple[Query, ...]]"
_NO_WINDOW: _Window = ((), (), (), (), ())
_NO_FOREIGN_KEYS: tuple[ForeignKey, ...] = ()
_NO_KEY: tuple[str, ...] = ()
_NO_DELETES: tuple[bool, DeleteMarker | None] = (False, None)
_MARKS = {str: "string", bool: "boolean", int: "integer", float: "number"}
"""What an event may be marked with, and how a schema calls that."""
_NO_COLUMNS: tuple[Column, ...] = ()
_NO_MASKS: frozenset[str] = frozenset()


class _Builder:
    """Reads a contract's document part by part; each error names its place."""

    def __init__(
        self,
        document: Document,
        folder: Path,
        texts: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
        not_run: Sequence[str] = (),
        schema: str = "",
        contents: Mapping[str, bytes] | None = None,
    ) -> None:
        self._document = document
        self._folder = folder
        self._texts = texts
        self._contents = contents or {}
        self._notes = tuple(notes)
        self._not_run = tuple(not_run)
        self._source = f"{document.name}#{schema}" if schema else document.name
        data = document.mapping((), document.data, "a contract (a mapping with a name)")
        self._data: dict[str, Any] = {key: value if key == "schema" else with_floats(value) for key, value in data.items()}
        self._fields: Mapping[str, FieldType] = {}

    def build(self) -> Contract:
        self._document.check_keys((), self._data, _KEYS)
        if "name" not in self._data:
            self._document.report((), "expected a name, such as 'name: events', got none")
        name = self._try("", self._text, "name", r"[A-Za-z_][\w.-]*", "a name of letters, digits, . _ -")
        for remark in ("description", "owner"):
            self._try("", self._text, remark, r"(?s).*", "text")
        schema = self._try(None, self._schema)
        self._fields = {} if schema is None else schema.fields
        id_ = self._try(None, self._field, "id", None if self._data.get("id", "") is None else "event_id")
        time, unit = self._try(_NO_TIME, self._time)
        rules = self._try(_NO_RULES, self._rules)
        foreign_keys = self._try(_NO_FOREIGN_KEYS, self._references)
        fail_if, warn_if, nulls, figures, queries = self._try(_NO_WINDOW, self._window)
        key = self._try(_NO_KEY, self._key, id_)
        version = self._try("", self._version)
        version_field = self._try(None, self._field, "version_field", None)
        deletes, marker = self._try(_NO_DELETES, self._deletes)
        duplicate_keys = self._data.get("duplicate_keys", "last")
        if duplicate_keys not in get_args(DuplicateKeys):
            self._document.report(("duplicate_keys",), f"expected last or refuse, got {show(duplicate_keys)}")
        columns = self._try(_NO_COLUMNS, self._columns, key)
        masked = self._try(_NO_MASKS, self._masked)
        if schema is None or self._document.errors:
            raise (self._document.errors or [self._document.error((), "it cannot be read")])[0]
        expressions = tuple(e for _, e in rules)
        meaning = {
            "name": name,
            "version": version,
            "id": id_,
            "time": [time, unit],
            "version_field": version_field,
            "key": key,
            "schema": schema.content,
            "rules": [(rule.name, " ".join(rule.text.split())) for rule, _ in rules],
            "window": [[c.text for c in fail_if], [c.text for c in warn_if], nulls],
            "columns": columns,
        } | ({"deletes": True if marker is None else marker} if deletes else {})
        for what, missing in (("missing", True), ("invalid", False)):
            counted = [figure.meaning for figure in figures if figure.missing is missing]
            meaning |= {what: counted} if counted else {}
        meaning |= {"sql": sorted(query.meaning for query in queries)} if queries else {}
        meaning |= {"references": sorted(key.meaning for key in foreign_keys)} if foreign_keys else {}
        meaning |= {"duplicate_keys": duplicate_keys} if duplicate_keys != "last" else {}
        meaning |= {"masked": sorted(masked)} if masked else {}
        return Contract(
            name=name,
            version=version,
            id=id_,
            time=time,
            time_unit=unit,
            version_field=version_field,
            key=key,
            deletes=deletes,
            delete_marker=marker,
            duplicate_keys=duplicate_keys,
            rules=tuple(rule for rule, _ in rules),
            fail_if=fail_if,
            warn_if=warn_if,
            nulls=nulls,
            figures=figures,
            duplicates_of=_fields_of((*fail_if, *warn_if), "duplicates"),
            volumes_of=_fields_of((*fail_if, *warn_if), "keys", "most_per", "fewest_per"),
            queries=queries,
            foreign_keys=foreign_keys,
            masked=masked,
            source=self._source,
            digest=digest(meaning),
            notes=(*self._notes, *schema.notes),
            not_run=self._not_run,
            text=self._document.text or to_json(self._data).decode(),
            texts=schema.texts,
            _columns=columns,
            _schema=schema,
            _expressions=expressions,
            _all_rules=compile_all(expressions),
            _broken_rules=compile_each(expressions),
            _read_time=_time_reader(unit),
        )

    def _try(self, otherwise: _T, read: Callable[..., _T], *arguments: Any) -> _T:
        """A part of the contract; the other value where it is wrong and errors are collected."""
        try:
            return read(*arguments)
        except ContractError as error:
            self._document.collect(error)
            return otherwise

    def _fail(self, path: KeyPath, message: str, *, key: bool = False) -> NoReturn:
        self._document.fail(path, message, key=key)

    def _text(self, key: str, pattern: str, what: str) -> str:
        value = self._data.get(key, "")
        if key in self._data and not (isinstance(value, str) and re.fullmatch(pattern, value)):
            self._fail((key,), f"expected {what}, got {show(value)}")
        return str(value)

    def _version(self) -> str:
        value = self._data.get("version", 1)
        if isinstance(value, bool) or not isinstance(value, (int, float, str)) or value == "":
            self._fail(("version",), f"expected a number or text, such as 1 or '1.2.0', got {show(value)}")
        return (self._document.written(("version",)) if isinstance(value, float) else None) or str(value)

    def _schema(self) -> Schema:
        value = self._data.get("schema", {"type": "object"})
        schema = {"$ref": value} if isinstance(value, str) else value
        document = replace(self._document, data=self._data | {"schema": schema})
        return compile_schema(document, ("schema",), self._folder, self._texts)

    def _declared(self, name: Any, path: KeyPath, *, default: bool = False) -> str:
        """A field's name, which the schema must declare if it declares any."""
        if not isinstance(name, str) or not name:
            self._fail(path, f"expected a field's name, got {show(name)}")
        if self._fields and name not in self._fields:
            hint = did_you_mean(name, self._fields)
            if default:
                what = f"the field that identifies an event ({name!r}, the default, is not in the schema)"
                self._fail((), f"expected {path[0]}: to name {what}{hint}")
            self._fail(path, f"the schema declares no field {name!r}{hint}")
        return name

    def _field(self, key: str, default: str | None) -> str | None:
        value = self._data.get(key)
        if value is None:
            return None if default is None else self._declared(default, (key,), default=True)
        return self._declared(value, (key,))

    def _time(self) -> tuple[str | None, TimeUnit]:
        name = self._field("time", None)
        unit = self._data.get("time_unit")
        if unit is not None and unit not in get_args(TimeUnit):
            self._fail(("time_unit",), f"expected one of {', '.join(get_args(TimeUnit))}, got {show(unit)}")
        if name is None:
            if unit is not None:
                self._fail(("time_unit",), "expected time: to name the field that it is the unit of", key=True)
            return None, "iso"
        types = self._fields[name].types - {"null"} if name in self._fields else frozenset[str]()
        if unit is None and types & {"integer", "number"}:
            self._fail(("time",), f"{name!r} is a number: expected time_unit: s, ms or us beside it", key=True)
        if unit is not None and types and (unit == "iso") != (types == {"string"}):
            self._fail(("time_unit",), f"{unit!r} does not fit {name!r}, which the schema says is {' or '.join(sorted(types))}")
        return name, unit or "iso"

    def _deletes(self) -> tuple[bool, DeleteMarker | None]:
        given = self._data.get("deletes", False)
        if isinstance(given, bool):
            return given, None
        at: KeyPath = ("deletes",)
        whole = self._document.mapping(at, given, "true, false, or what marks an event that deletes, such as {field: op, values: [d]}")
        self._document.check_keys(at, whole, ("field", "values"))
        if "field" not in whole:
            self._fail(at, "expected the field that marks an event that deletes, such as {field: op, values: [d]}", key=True)
        field_, values = self._declared(whole["field"], (*at, "field")), whole.get("values")
        if not isinstance(values, list) or not values:
            self._fail((*at, "values") if "values" in whole else at, f"expected values, a list such as [d], got {show(values)}")
        types = self._fields[field_].types if field_ in self._fields else frozenset[str]()
        for i, value in enumerate(values):
            kind = _MARKS.get(type(value))
            if kind is None:
                self._fail((*at, "values", i), f"expected text, a number, true or false, got {show(value)}")
            if types and not types & ({kind, "number"} if kind == "integer" else {kind}):
                self._fail(
                    (*at, "values", i), f"{show(value)} is never in {field_!r}, which the schema says is {' or '.join(sorted(types))}"
                )
        return True, DeleteMarker(field_, tuple(values))

    def _key(self, id_: str | None) -> tuple[str, ...]:
        value = self._data.get("key", [id_] if id_ is not None else [])
        names: Any = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or (not names and "key" in self._data):
            self._fail(("key",), f"expected a field's name or a list of them, got {show(value)}")
        for i, name in enumerate(names):
            path: KeyPath = ("key", i) if value is names else ("key",)
            self._declared(name, path)
            if self._fields and self._fields[name].nullable:
                place: KeyPath = path if "key" in self._data else ("id",)
                message = f"the key field {name!r} may be missing or null"
                self._fail(place, f"{message}: expected it among the schema's required fields, with a type other than null")
        if len(set(names)) != len(names):
            self._fail(("key",), f"a field stands twice in {show(names)}")
        return tuple(names)

    def _rules(self) -> list[tuple[Rule, Expression]]:
        what = "a mapping of rule names to expressions, such as 'positive: added >= 0'"
        data = self._document.mapping(("rules",), self._data.get("rules") or {}, what)
        rules = {name: self._try(None, self._rule, name, text) for name, text in data.items()}
        return [(Rule(name, str(data[name])), expression) for name, expression in rules.items() if expression is not None]

    def _rule(self, name: str, text: Any) -> Expression:
        path = ("rules", name)
        if not re.fullmatch(r"[A-Za-z_][\w-]*", name) or name in _RESERVED:
            self._fail(path, f"expected a rule's name of letters, digits, _ and - (not {', '.join(_RESERVED)})", key=True)
        if not isinstance(text, str):
            self._fail(path, f"expected an expression, such as 'added is None or added >= 0', got {show(text)}")
        try:
            expression = parse_expression(text)
        except ExpressionError as error:
            self._document.fail_inside(path, error.line, error.column, str(error))
        for used, line, column in expression.fields:
            if self._fields and used not in self._fields:
                message = f"the schema declares no field {used!r}{did_you_mean(used, self._fields)}"
                self._document.fail_inside(path, line, column, message)
        return expression

    def _references(self) -> tuple[ForeignKey, ...]:
        return read_foreign_keys(self._document, self._data.get("references"), self._declared, self._folder, self._contents)

    def _window(self) -> _Window:
        data = self._document.mapping(("window",), self._data.get("window") or {}, "a mapping with fail_if, warn_if")
        self._document.check_keys(("window",), data, _WINDOW_KEYS)
        missing, invalid = (
            read_figures(self._document, ("window", what), data.get(what), self._declared) for what in ("missing", "invalid")
        )
        queries = read_queries(self._document, ("window", "sql"), data.get("sql"))
        known = {
            "rejected": [*(self._data.get("rules") or ()), *(f"reference:{name}" for name in self._data.get("references") or ())],
            "missing": [f.name for f in missing],
            "invalid": [f.name for f in invalid],
            "sql": [query.name for query in queries],
        }
        fail_if = self._conditions("fail_if", data.get("fail_if"), known)
        warn_if = self._conditions("warn_if", data.get("warn_if"), known)
        default = [name for name, f in self._fields.items() if f.nullable]
        nulls = data.get("nulls", default)
        if not isinstance(nulls, list):
            self._fail(("window", "nulls"), f"expected a list of fields whose nulls are counted, got {show(nulls)}")
        nulls = [self._try("", self._declared, name, ("window", "nulls", i)) for i, name in enumerate(nulls)]
        nulls = [*nulls, *(name for (name,) in _fields_of((*fail_if, *warn_if), "null_rate", "nulls"))]
        return fail_if, warn_if, tuple(dict.fromkeys(nulls)), (*missing, *invalid), queries

    def _conditions(self, key: str, value: Any, known: Mapping[str, Sequence[str]]) -> tuple[Condition, ...]:
        items = [value] if isinstance(value, str) else value or []
        if not isinstance(items, list):
            self._fail(("window", key), f"expected a condition or a list of them, such as 'rejected > 1 %', got {show(value)}")
        result = []
        for i, text in enumerate(items):
            path: KeyPath = ("window", key, i) if items is value else ("window", key)
            with self._document.attempt():
                result.append(self._condition(text, path, known))
        return tuple(result)

    def _condition(self, text: Any, path: KeyPath, known: Mapping[str, Sequence[str]]) -> Condition:
        try:
            c = parse_condition(text)
        except ConfigurationError as error:
            self._fail(path, str(error))
        whole, c = c, c.compared
        if c.figure in ("missing", "invalid"):
            if c.argument not in known[c.figure]:
                what = f"window.{c.figure} does not say which values of {c.argument!r} are {c.figure}"
                self._fail(path, f"{what}{did_you_mean(c.argument, known[c.figure])}")
        elif c.figure == "sql":
            if c.argument not in known["sql"]:
                self._fail(path, f"window.sql has no query {c.argument!r}{did_you_mean(c.argument, known['sql'])}")
        elif c.fields:
            for name in c.fields:
                self._declared(name, path)
        elif c.argument and c.argument not in known["rejected"] and c.argument.split(":")[0] not in _RESERVED:
            self._fail(path, f"there is no rule {c.argument!r}{did_you_mean(c.argument, known['rejected'])}")
        if c.figure in ("freshness", "late", "early", "untimed") and self._data.get("time") is None:
            self._fail(path, f"{c.figure} needs event times: expected time: to name their field")
        return whole

    def _masked(self) -> frozenset[str]:
        given = self._data.get("masked") or []
        if not isinstance(given, list):
            self._fail(("masked",), f"expected a list of fields whose values are shown nowhere, got {show(given)}")
        return frozenset(self._declared(name, ("masked", i)) for i, name in enumerate(given))

    def _columns(self, key: tuple[str, ...]) -> tuple[Column, ...]:
        what = "a mapping of column names to types, such as 'added: bigint'"
        given = self._document.mapping(("columns",), self._data.get("columns") or {}, what)
        for name, type_ in given.items():
            self._try("", self._declared, name, ("columns", name))
            if type_ is not None and (not isinstance(type_, str) or ColumnType.parse(type_) is None):
                self._document.report(("columns", name), f"unknown type {show(type_)}{one_of(str(type_), COLUMN_TYPES)}")
        names = list(given or self._fields)
        missing = [k for k in key if k not in names]
        if missing and names:
            self._fail(("columns",), f"expected the key field {missing[0]!r} among the columns")
        return tuple(self._column(name, given.get(name), name in key) for name in names)

    def _column(self, name: str, type_: str | None, primary_key: bool) -> Column:
        field_ = self._fields.get(name, FieldType(frozenset(), "", False))
        return Column(name, type_ or _column_type(field_), field_.nullable and not primary_key, primary_key)


def _fields_of(conditions: Sequence[Condition], *figures: str) -> tuple[tuple[str, ...], ...]:
    """The fields that conditions on these figures are about, also where they are compared with earlier windows."""
    compared = (c.compared for c in conditions)
    return tuple(dict.fromkeys(c.fields for c in compared if c.figure in figures and c.fields))


def _column_type(field_: FieldType) -> str:
    types = field_.types - {"null"}
    if types == {"string"}:
        formats = {"date-time": "timestamptz", "date": "date"}
        return formats.get(field_.format, "text")
    if types and types <= {"integer", "number"}:
        return "double" if "number" in types else "bigint"
    return "boolean" if types == {"boolean"} else "json"


def _time_reader(unit: TimeUnit) -> Callable[[Any], int | None]:
    return _text_time if unit == "iso" else _number_time(unit)


def _text_time(value: Any) -> int | None:
    micros = iso_time(value)
    if micros is None or _FIRST_US <= micros < _LAST_US + 1_000_000:
        return micros
    raise ValueError(f"expected a time between the years 1 and 9999 in UTC, got {show(value)}")


def _limits(unit: TimeUnit) -> tuple[int, int, int]:
    """How many microseconds a unit is, and the first and last time in it."""
    factor = _UNITS[unit]
    return factor, _FIRST_US // factor, _LAST_US // factor


def _number_time(unit: TimeUnit) -> Callable[[Any], int | None]:
    factor, first, last = _limits(unit)

    def read(value: Any) -> int | None:
        if type(value) is int and first <= value <= last:
            return value * factor
        if value is None:
            return None
        if type(value) is float and first <= value < last + 1:
            return min(round(value * factor), _LAST_US)
        what = "a time between the years 1 and 9999" if type(value) in (int, float) else "a number"
        raise ValueError(f"expected {what}, counted in {unit} since 1970, got {show(value)}")

    return read
