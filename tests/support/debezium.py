"""Change events as Debezium's PostgreSQL connector makes them."""

from __future__ import annotations

from typing import Any

from tests.support.registries import record

SOURCE = record("Source", lsn="long", ts_ms="long", table="string")


def change(op: str, before: dict[str, Any] | None = None, after: dict[str, Any] | None = None, *, lsn: int = 1) -> dict[str, Any]:
    """One envelope."""
    return {"before": before, "after": after, "source": {"lsn": lsn, "ts_ms": 5, "table": "orders"}, "op": op, "ts_ms": 6}


def envelope(row: dict[str, Any]) -> dict[str, Any]:
    """The Avro schema of a row's envelope."""
    return record(
        "Envelope", before={"type": ["null", row], "default": None}, after=["null", row["name"]], source=SOURCE, op="string", ts_ms="long"
    )
