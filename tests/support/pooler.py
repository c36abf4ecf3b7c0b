"""PgBouncer before the tests' PostgreSQL: few sessions of the server, each lent for one transaction."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg

from factory_agents.sandbox.processes import alive, free_port, last_line, spawn, stop, wait_until
from factory_agents.sandbox.state import HOST

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def pooler(folder: Path, url: str, *, mode: str = "transaction", sessions: int = 2) -> Iterator[str]:
    """The URL of the same database through a pooler in this mode, which has so many sessions at the server."""
    assert PROGRAM is not None
    parts, port = urlsplit(url), free_port(HOST)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    folder.mkdir(parents=True, exist_ok=True)
    users, settings, log = folder / "users.txt", folder / "pgbouncer.ini", folder / "pgbouncer.log"
    users.write_text(f'"{user}" "{password}"\n')
    settings.write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port}\n[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {port}\n"
        f"auth_type = scram-sha-256\nauth_file = {users}\npool_mode = {mode}\ndefault_pool_size = {sessions}\nquery_wait_timeout = 5\n"
        "unix_socket_dir =\n"
        "ignore_startup_parameters = extra_float_digits\n" + ("user = nobody\n" if os.geteuid() == 0 else "")
    )
    process = spawn([PROGRAM, str(settings)], log=log)
    try:
        through = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{HOST}:{port}").geturl()
        assert wait_until(lambda: not alive(process) or _answers(through), 20), last_line(log)
        assert alive(process), last_line(log)
        yield through
    finally:
        stop(process, (signal.SIGINT, 10), (signal.SIGKILL, 5))


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
