"""A server of gRPC in front of a real one: it passes calls on, and gives to some of them the answer that a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]

Refuse = Callable[[str, Any], "tuple[grpc.StatusCode, str] | None"]
"""By a call's method and context, the answer in place of the real one's."""


class _Front(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, channel: Any, refuse: Refuse) -> None:
        self._channel, self._refuse = channel, refuse

    def service(self, details: Any) -> Any:
        method = details.method

        def passed_on(request: bytes, context: Any) -> bytes:
            refused = self._refuse(method, context)
            if refused is not None:
                context.abort(*refused)
            try:
                answer: bytes = self._channel.unary_unary(method)(request, timeout=context.time_remaining())
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
            return answer

        return grpc.unary_unary_rpc_method_handler(passed_on)


@contextmanager
def in_front_of(address: str, refuse: Refuse, credentials: Any = None) -> Iterator[int]:
    """The front's port; with credentials it speaks TLS."""
    with ThreadPoolExecutor(40) as pool, grpc.insecure_channel(address) as channel:  # whose end ends the calls in the pool
        front = grpc.server(pool)
        front.add_generic_rpc_handlers((_Front(channel, refuse),))
        at = "localhost:0" if credentials is not None else "127.0.0.1:0"
        port = front.add_insecure_port(at) if credentials is None else front.add_secure_port(at, credentials)
        front.start()
        try:
            yield port
        finally:
            front.stop(None).wait(30)
