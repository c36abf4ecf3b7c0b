"""Databases of a test's own in the sandbox's PostgreSQL."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg


@contextmanager
def own_database(url: str, name: str) -> Iterator[str]:
    """The URL of a new, empty database beside the one at ``url``, gone at the end with whoever still uses it; ``name`` begins its name."""
    database = f"{name}_{secrets.token_hex(4)}"
    _execute(url, f'CREATE DATABASE "{database}"')
    try:
        yield re.sub(r"/\w+(?=$|\?)", f"/{database}", url)
    finally:
        _execute(url, f'DROP DATABASE "{database}" WITH (FORCE)')


def end_sessions(connection: psycopg.Connection) -> None:
    """End every session of the agents in the connection's own database (other workers have theirs beside it)."""
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'factory-agents' AND datname = current_database()"
    )


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type]  # psycopg wants literals
