"""Where the CPU of one agent process goes: a sample of its lines every two milliseconds of CPU, for ``enrich`` and ``validate``."""

from __future__ import annotations

import json
import linecache
import signal
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from types import FrameType

from harness import ROOT, arguments, bench_sandbox, filled_window

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.topics import Cluster
from factory_agents.protocol import AgentRef, AgentRun, Window
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext

_EVERY = 0.002
_SHOWN = 14
CONTRACT = {
    "name": "bench",
    "id": "event_id",
    "schema": {
        "type": "object",
        "required": ["event_id", "user", "amount"],
        "properties": {"event_id": {"type": "string"}, "user": {"type": "integer"}, "amount": {"type": "number"}},
    },
}


class Sampler:
    """Counts lines of this repository that were running when CPU time had passed, in whichever thread was at work."""

    def __init__(self) -> None:
        self.lines: Counter[tuple[str, int]] = Counter()

    def __enter__(self) -> Sampler:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, _EVERY, _EVERY)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _sample(self, _: int, main: FrameType | None) -> None:
        frame = main
        if main is not None and main.f_code.co_filename.endswith("agent_thread.py"):  # it waits for the agent's thread
            others = [f for f in sys._current_frames().values() if f is not main and "process" in _names(f)]
            frame = others[0] if others else main
        while frame is not None and "factory_agents" not in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is not None:
            self.lines[frame.f_code.co_filename, frame.f_lineno or 0] += 1  # some bytecode is of no line


def _names(frame: FrameType | None) -> list[str]:
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def main() -> None:
    """Profile both, print the lines that take most, and one JSON line with the seconds of CPU."""
    options = arguments(__doc__ or "", events=500_000)
    events = 20_000 if options.smoke else options.events
    config = KafkaConfig(bench_sandbox().info().bootstrap)
    name = f"bench-profile-{uuid.uuid4().hex[:8]}"
    window = filled_window(config, name, events, 4)
    used = {agent: profile(config, window, agent, events) for agent in ("enrich", "validate")}
    print(json.dumps({"benchmark": "profile", "ratios": {}, "cpu_us_per_record": used}))


def profile(config: KafkaConfig, window: Window, agent: str, events: int) -> float:
    """One stage in this process; microseconds of CPU per record, librdkafka's threads included."""
    out = f"{window.topic}-{agent}"
    Cluster(config).create(out, 4, settings={"retention.ms": "-1"})
    params = {"contract": CONTRACT} if agent == "validate" else {}
    run = AgentRun(out, agent, AgentRef(agent), window=window, output_topic=out, params=params)
    cpu, own = time.process_time(), time.thread_time()
    with Sampler() as sampler:
        execute(RunContext(config), run)
    cpu, own = time.process_time() - cpu, time.thread_time() - own
    total = sum(sampler.lines.values())
    print(f"\n{agent}: {cpu / events * 1e6:.2f} µs of CPU a record in all, {own / events * 1e6:.2f} of them in the main thread\n")
    for (file, line), count in sampler.lines.most_common(_SHOWN):
        where = Path(file).relative_to(ROOT / "agents" / "factory_agents") if Path(file).is_relative_to(ROOT) else Path(file).name
        print(f"{count / total:6.1%}  {where}:{line:<4} {linecache.getline(file, line).strip()[:90]}")
    return round(cpu / events * 1e6, 2)


if __name__ == "__main__":
    main()
