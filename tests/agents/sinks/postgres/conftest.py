"""What the tests of PostgreSQL's sink share."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from factory_agents.sinks.postgres import copy
from tests.support.sink_bench import Bench, SmallDisk


@pytest.fixture
def bench(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    bench = Bench(database_url)
    yield bench
    bench.close()


@pytest.fixture
def small_disk(bench: Bench) -> Iterator[SmallDisk]:
    [(data, pid)] = bench.admin.execute("SELECT current_setting('data_directory'), pg_backend_pid()").fetchall()
    server = Path(f"/proc/{pid}")
    if os.geteuid() != 0 or not server.exists():
        pytest.skip("a full disk needs root, to mount a small file system beside the server's files")
    name = f"small_{secrets.token_hex(4)}"
    disk = SmallDisk(Path(data).parent / name, name)
    disk.place.mkdir()
    mounted = disk.mount(f"size=1m,uid={server.stat().st_uid},mode=700")
    if mounted.returncode:
        disk.place.rmdir()
        pytest.skip(f"a full disk needs a small file system, and mount refuses: {mounted.stderr.strip()}")
    try:
        bench.admin.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(sql.Identifier(name), sql.Literal(str(disk.place))))
        yield disk
        bench.admin.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(bench.name)))
        bench.admin.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(name)))
    finally:
        subprocess.run(["umount", "--lazy", disk.place], check=True)
        disk.place.rmdir()


@pytest.fixture(autouse=True)
def _a_chunk_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that go straight into the table do so in many chunks, small as these windows are."""
    monkeypatch.setattr(copy, "_CHUNK_BYTES", 1)
