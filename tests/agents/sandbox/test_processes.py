"""Ports for servers that are started a little later."""

from __future__ import annotations

import socket
from pathlib import Path

from factory_agents.sandbox.processes import free_port, is_free

HOST = "127.0.0.1"


def test_a_free_port_is_none_that_an_outgoing_connection_may_be_given_before_it_is_used() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = {free_port(HOST) for _ in range(200)}
    assert len(ports) > 150
    assert not {port for port in ports if first <= port <= last}
    assert all(is_free(HOST, port) for port in ports)


def test_a_port_is_taken_by_a_server_and_by_the_near_end_of_a_connection_and_free_when_they_are_gone() -> None:
    with socket.create_server((HOST, free_port(HOST))) as server:
        port = server.getsockname()[1]
        assert not is_free(HOST, port)
        client = socket.create_connection((HOST, port))
        near = client.getsockname()[1]
        assert not is_free(HOST, near)
        accepted, _ = server.accept()
        accepted.close()  # first: what is left behind is the server's
        client.close()
    assert is_free(HOST, port)
