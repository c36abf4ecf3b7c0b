"""The programs behind ``make demo``, ``try``, ``shell`` and ``ui``."""

from __future__ import annotations

import socket
import subprocess

import pytest

from factory_agents.errors import UnavailableError


@pytest.mark.parametrize(
    ("error", "status"),
    [(UnavailableError("no broker"), "error: no broker"), (subprocess.CalledProcessError(3, ["airflow"]), 3)],
)
def test_what_goes_wrong_is_one_line_and_a_status(error: Exception, status: object) -> None:
    from airflow_env import run

    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == status


def test_the_ui_takes_another_port_where_its_own_is_taken() -> None:
    from airflow_components import free_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) not in (0, port)
    assert free_port(port) == port
