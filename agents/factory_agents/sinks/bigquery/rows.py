"""Events into Arrow batches of a table's types: every value checked here, so that one bad event never fails a load job."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from operator import add, itemgetter
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import msgspec
from msgspec.structs import astuple

from factory_agents.kafka.messages import Message
from factory_agents.runtime.agents import Reject
from factory_agents.runtime.numbers import decode_exact, whole_number
from factory_agents.runtime.record_key import KeyColumn, KeyReader
from factory_agents.runtime.times import UNITS, moment_of_number, moment_of_text
from factory_agents.text import not_json

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DELETED", "POSITION", "TYPES", "Field", "RowReader", "arrow_type"]

TYPES = ("STRING", "INT64", "FLOAT64", "BOOL", "TIMESTAMP", "DATE", "NUMERIC", "BIGNUMERIC", "JSON", "STRUCT")
"""BigQuery's types that events are written to."""

POSITION = ("_factory_partition", "_factory_offset", "_factory_timestamp")
"""What is in every row beside the event's own columns: the record that it came from, and its milliseconds since 1970."""

DELETED = "_factory_deleted"
"""What says of a staged row that it is a delete: of its columns it has the key alone. It is staged for a table with deletes only."""

_CHUNK = 2000
_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799
_DIGITS = {"NUMERIC": (38, 9), "BIGNUMERIC": (76, 38)}
_UNFIT = (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, RecursionError)
_JSON_DEPTH = 500
_LONG_NUMBER = re.compile(r"\d{19}|[\d.]{17}|\d[eE][+-]?\d{3}")
"""What more than 64 bits, or a double, may be behind."""
_encode = msgspec.json.Encoder(decimal_format="number").encode
_milliseconds = itemgetter(1)

_Row: TypeAlias = "tuple[Any, ...]"


class Field(msgspec.Struct, frozen=True):
    """A column of a table, or a field of one.

    ``max_length`` (of a STRING) and ``digits`` (precision and scale) are None where the type has its own. ``unit`` (s, ms, us) says that
    events have a time as a number.
    """

    name: str
    type: str
    repeated: bool = False
    required: bool = False
    fields: tuple[Field, ...] = ()
    max_length: int | None = None
    digits: tuple[int, int] | None = None
    unit: str = ""

    @property
    def sql(self) -> str:
        """Its type in GoogleSQL, without limits."""
        return self._sql("")

    @property
    def limited(self) -> str:
        """Its type in GoogleSQL, as a column is declared."""
        limits = self.digits or ((self.max_length,) if self.max_length is not None else ())
        return self._sql(f"({', '.join(map(str, limits))})" if limits else "")

    def _sql(self, limits: str) -> str:
        type_ = f"STRUCT<{', '.join(f'`{f.name}` {f.sql}' for f in self.fields)}>" if self.type == "STRUCT" else self.type + limits
        return f"ARRAY<{type_}>" if self.repeated else type_


def arrow_type(field: Field) -> pa.DataType:
    """The type of its column in a batch; JSON travels as text."""
    import pyarrow as pa

    types = {
        "STRING": pa.string(),
        "JSON": pa.string(),
        "INT64": pa.int64(),
        "FLOAT64": pa.float64(),
        "BOOL": pa.bool_(),
        "TIMESTAMP": pa.timestamp("us", "UTC"),
        "DATE": pa.date32(),
        "NUMERIC": pa.decimal128(38, 9),
        "BIGNUMERIC": pa.decimal256(76, 38),
    }
    type_ = pa.struct([(f.name, arrow_type(f)) for f in field.fields]) if field.type == "STRUCT" else types[field.type]
    return pa.list_(type_) if field.repeated else type_


class RowReader:
    """Makes batches of records: whole chunks at msgspec's speed, one by one where a chunk holds something unfit.

    Of an event's other fields nothing is looked at but that they are JSON. With ``deletes``, the columns of a key, a record without a value
    is a row too, of what its own key says.
    """

    def __init__(self, fields: Sequence[Field], deletes: Sequence[str] = ()) -> None:
        import pyarrow as pa

        self._fields = tuple(fields)
        by_name = {f.name: f for f in fields}
        self._deletes = tuple(deletes)
        self._keys = KeyReader([_key_column(by_name[name]) for name in deletes]) if deletes else None
        self._converters = tuple((i, _converter(f)) for i, f in enumerate(fields) if not _is_plain(f))
        self._position = len(self._fields)
        columns = [(f.name, arrow_type(f)) for f in fields] + [(name, pa.int64()) for name in POSITION]
        self._schema = pa.schema(columns + ([(DELETED, pa.bool_())] if deletes else []))
        names = tuple(f.name for f in fields)
        self._typed = _reader(names, [(_type(f), None if not f.required else msgspec.NODEFAULT) for f in fields])
        self._untyped = _reader(names, [(Any, None)] * len(names))

    def read(self, messages: Sequence[Message]) -> tuple[list[pa.RecordBatch], dict[int, Reject]]:
        """The rows of records that fit, in order, deletes last, and why the others cannot be written, by their index."""
        if self._keys is None or all(message.value() is not None for message in messages):
            return self._read_events(messages)
        places = [i for i, message in enumerate(messages) if message.value() is not None]
        batches, unfit = self._read_events([messages[i] for i in places])
        rejected = {places[i]: reject for i, reject in unfit.items()}
        deletes: list[_Row] = []
        for i, message in enumerate(messages):
            if message.value() is None:
                try:
                    deletes.append((*self._keys.read(message.key()), *_place(message)))
                except Reject as reject:
                    rejected[i] = reject
        return [*batches, self._delete_batch(deletes)] if deletes else batches, rejected

    def _delete_batch(self, deletes: Sequence[_Row]) -> pa.RecordBatch:
        import pyarrow as pa

        columns = dict(zip((*self._deletes, *POSITION), zip(*deletes, strict=True), strict=True))
        columns[DELETED] = (True,) * len(deletes)
        arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(len(deletes), f.type) for f in self._schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _read_events(self, messages: Sequence[Message]) -> tuple[list[pa.RecordBatch], dict[int, Reject]]:
        batches: list[pa.RecordBatch] = []
        rejected: dict[int, Reject] = {}
        for start in range(0, len(messages), _CHUNK):
            chunk = messages[start : start + _CHUNK]
            try:
                batches.append(self._chunk(chunk))
            except _UNFIT:
                fitting = list(self._one_by_one(chunk, start, rejected))
                if fitting:
                    batches.append(self._batch(fitting))
        return batches, rejected

    def join(self, batches: Sequence[pa.RecordBatch]) -> pa.Table:
        """Batches as one table."""
        import pyarrow as pa

        return pa.Table.from_batches(batches)

    def _chunk(self, messages: Sequence[Message]) -> pa.RecordBatch:
        kind = type(messages[0])
        values = cast("list[bytes]", list(map(kind.value, messages)))
        together = b"\n".join(values)
        if not together.isascii():
            together.decode()  # the decoder doesn't look into what it passes over
        timestamps = map(_milliseconds, map(kind.timestamp, messages))
        own = zip(map(kind.partition, messages), map(kind.offset, messages), timestamps, strict=True)
        return self._batch(list(map(add, self._typed(values), own)), converted=False)

    def _batch(self, rows: Sequence[_Row], *, converted: bool = True) -> pa.RecordBatch:
        import pyarrow as pa

        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        if self._deletes:
            columns.append([False] * len(rows))
        if not converted:
            for i, convert in self._converters:
                columns[i] = list(map(convert, columns[i]))
        arrays = [pa.array(values, type_) for values, type_ in zip(columns, self._schema.types, strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        if not converted:
            self._check_times(batch)
        return batch

    def _check_times(self, batch: pa.RecordBatch) -> None:
        """A time may be written in a zone that moves it out of the years that there are."""
        import pyarrow.compute as pc

        for i, field in enumerate(self._fields):
            if field.type == "TIMESTAMP" and not field.repeated:
                span = pc.min_max(batch.column(i).cast("int64")).as_py()
                if span["min"] is not None and (span["min"] < _FIRST_S * 1_000_000 or span["max"] > _LAST_S * 1_000_000 + 999_999):
                    raise ValueError

    def _one_by_one(self, messages: Sequence[Message], start: int, rejected: dict[int, Reject]) -> Iterator[_Row]:
        for i, message in enumerate(messages, start):
            try:
                values = tuple(map(_checked, self._fields, self._values(message.value())))
            except Reject as reject:
                rejected[i] = reject
            else:
                yield (*values, *_place(message))

    def _values(self, value: bytes | None) -> tuple[Any, ...]:
        """What an event has in the columns' places; raises Reject for what is not a JSON object."""
        if value is None:
            raise Reject("the record has no value (a tombstone), expected a JSON object", rule="decode")
        try:
            value.decode()
            return next(self._untyped([value]))
        except msgspec.ValidationError as error:
            raise Reject(f"not an event: {error}", rule="decode") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Reject(f"not JSON: {not_json(value, error)}", rule="decode") from error


def _place(message: Message) -> _Row:
    return message.partition(), message.offset(), message.timestamp()[1]


def _key_column(field: Field) -> KeyColumn:
    return KeyColumn(field.name, field.sql, field.type == "STRING", lambda raw: _checked(field, decode_exact(raw)))


def _reader(names: tuple[str, ...], types: Sequence[tuple[Any, Any]]) -> Callable[[Iterable[bytes]], Iterator[_Row]]:
    """Reads what events have under these names; ``types`` are each one's type and default."""
    fields = [(f"c{i}", *type_) for i, type_ in enumerate(types)]
    event = msgspec.defstruct("Event", fields, rename={f"c{i}": name for i, name in enumerate(names)}, gc=False, kw_only=True)
    decode = msgspec.json.Decoder(event, float_hook=Decimal).decode
    return lambda values: map(astuple, map(decode, values))


def _is_plain(field: Field) -> bool:
    """Whether the decoder itself makes and checks its values."""
    return not field.repeated and field.type not in ("STRUCT", "JSON", *_DIGITS) and not field.unit


def _type(field: Field) -> Any:
    """What the decoder reads; null too, unless the field is required."""
    if not _is_plain(field):
        return Any
    type_ = _scalar(field)
    return type_ if field.required else type_ | None


def _scalar(field: Field) -> Any:
    types: dict[str, Any] = {
        "STRING": str if field.max_length is None else Annotated[str, msgspec.Meta(max_length=field.max_length)],
        "INT64": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
        "FLOAT64": float,
        "BOOL": bool,
        "TIMESTAMP": Annotated[datetime, msgspec.Meta(tz=True)],
        "DATE": date,
    }
    return types[field.type]


def _checked(field: Field, value: Any) -> Any:
    """One column's value as a batch takes it; raises Reject saying what is wrong with it."""
    if value is None and not field.repeated:
        if field.required:
            raise Reject(f"column {field.name!r}: missing or null, expected {field.sql}", rule="missing")
        return None
    try:
        return _converted(field, value)
    except _UNFIT as error:
        raise Reject(f"column {field.name!r}: {_why(error, value)} (the column is {field.sql})", rule="column") from error


def _converter(field: Field) -> Callable[[Any], Any]:
    """Converts a column's values; raises one of ``_UNFIT`` for one that doesn't fit."""

    def convert(value: Any) -> Any:
        if value is None and field.required:
            raise ValueError
        return _converted(field, value)

    return convert


def _converted(field: Field, value: Any) -> Any:
    """A value as Arrow takes it. A list that is null is an empty one: BigQuery tells no difference."""
    if field.repeated:
        if value is None:
            return []
        if type(value) is not list:
            raise TypeError(f"expected a list, got {_kind(value)}")
        return [_element(field, item) for item in value]
    return None if value is None else _one(field, value)


def _element(field: Field, value: Any) -> Any:
    if value is None:
        raise ValueError("a list holds a null, which BigQuery's arrays cannot")
    return _one(field, value)


def _one(field: Field, value: Any) -> Any:
    if field.type == "STRUCT":
        return _struct(field, value)
    if field.type == "JSON":
        return _json(value)
    if field.type in _DIGITS:
        return _numeric(value, *(field.digits or _DIGITS[field.type]))
    if field.type == "TIMESTAMP":
        return _time(field, value)
    if type(value) is Decimal:
        value = _number(field, value)
    if field.type == "DATE" and type(value) is str:
        return _date(value)
    return msgspec.convert(value, _scalar(field))


def _number(field: Field, value: Decimal) -> Any:
    """A number with a fraction, as a column of integers or floats takes it."""
    if field.type == "INT64":
        return whole_number(value)
    if field.type != "FLOAT64":
        return value
    if math.isinf(number := float(value)):
        raise ValueError("a number out of range")
    return number


def _struct(field: Field, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise TypeError(f"expected an object, got {_kind(value)}")
    unknown = value.keys() - {f.name for f in field.fields}
    if unknown:
        raise ValueError(f"the object has {', '.join(map(repr, sorted(unknown)))}, for which there is no field")
    return {f.name: _member(f, value.get(f.name)) for f in field.fields}


def _member(field: Field, value: Any) -> Any:
    if value is None and field.required:
        raise ValueError(f"{field.name}: missing or null")
    try:
        return _converted(field, value)
    except _UNFIT as error:
        raise ValueError(f"{field.name}: {_why(error, value)}") from error


def _json(value: Any) -> str:
    """As text that BigQuery's PARSE_JSON takes without loss."""
    text = _encode(value).decode()
    if _LONG_NUMBER.search(text) and any(any(map(_is_wide, level)) for level in _levels(value)):
        raise ValueError("holds a number of more digits than BigQuery's JSON keeps (integers of 64 bits, and doubles)")
    if text.count("[") + text.count("{") > _JSON_DEPTH and sum(map(_nests, _levels(value))) > _JSON_DEPTH:
        raise ValueError(f"nested more than {_JSON_DEPTH} deep, which BigQuery's JSON cannot be")
    return text


def _is_wide(value: Any) -> bool:
    if type(value) is Decimal:
        return Decimal(repr(float(value))) != value
    return type(value) is int and not -(2**63) <= value < 2**64


def _nests(level: list[Any]) -> bool:
    return any(type(value) in (dict, list) for value in level)


def _levels(value: Any) -> Iterator[list[Any]]:
    """The value itself, then what its lists and objects hold, level by level: nothing here ends at Python's own depth."""
    level = [value]
    while level:
        yield level
        level = [item for each in level for item in (each.values() if type(each) is dict else each if type(each) is list else ())]


def _numeric(value: Any, precision: int, scale: int) -> Decimal:
    if type(value) not in (int, Decimal, str):
        raise TypeError(f"expected a number or its text, got {_kind(value)}")
    try:
        number = Decimal(str(value))
    except InvalidOperation as error:
        raise ValueError("expected a number or its text") from error
    if not number.is_finite():
        raise ValueError("not a number")
    if number and number.adjusted() >= precision - scale:
        raise ValueError(f"{precision - scale} digits fit before the point")
    if number and _decimals(number) > scale:
        raise ValueError(f"{scale} digits fit after the point")
    return number


def _decimals(number: Decimal) -> int:
    """Digits after the point, zeros at the end not counted."""
    _, digits, exponent = number.as_tuple()
    zeros = next((i for i, digit in enumerate(reversed(digits)) if digit), 0)
    return -int(exponent) - zeros


def _time(field: Field, value: Any) -> datetime:
    if field.unit:
        if type(value) not in (int, Decimal):
            raise TypeError(f"expected a number, got {_kind(value)}")
        return moment_of_number(value, UNITS[field.unit])
    if type(value) is datetime:
        time = value
    elif type(value) is str:
        time = _moment(value)
    else:
        raise TypeError(f"expected a time as text, got {_kind(value)}")
    if not _FIRST <= time <= _LAST:
        raise ValueError("not a time between the years 1 and 9999")
    return time


def _moment(text: str) -> datetime:
    try:
        return moment_of_text(text)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith("not a time") else "expected a time such as 2026-11-01T04:00:00Z") from None


def _date(text: str) -> date:
    try:
        return msgspec.convert(text, date)
    except msgspec.ValidationError:
        raise ValueError("expected a date such as 2026-11-01") from None


def _kind(value: Any) -> str:
    if type(value) in (int, float, Decimal):
        return "a number"
    return {dict: "an object", list: "a list", str: "text", bool: "a boolean"}.get(type(value), "null")


def _why(error: BaseException, value: Any) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    shown = f": {value!r:.60}" if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    shown = f": {value!s:.60}" if isinstance(value, (float, Decimal)) else shown
    if isinstance(error, msgspec.ValidationError):
        return f"{str(error).replace('Expected', 'expected', 1).replace('`decimal`', '`float`')}{shown}"
    return f"{error}{shown}"
