"""Kafka's own command-line tools, at the version of the sandbox's broker; fetched when they are first asked for."""

from __future__ import annotations

import csv
import functools
import os
import subprocess
import sys
from pathlib import Path

from factory_agents.sandbox.kafka import KAFKA_VERSION, java_home

_FETCH = "import sys, jgo; print('\\n' + str(jgo.build(sys.argv[1]).path))"


@functools.cache
def _class_path() -> str:
    parts = [f"org.apache.kafka:{name}:{KAFKA_VERSION}" for name in ("kafka-tools", "kafka-clients")]
    fetched = subprocess.run(
        [sys.executable, "-c", _FETCH, "+".join([*parts, "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5"])],
        env={**os.environ, "JAVA_HOME": str(java_home())},
        capture_output=True,
        text=True,
        check=True,
    )
    root = Path(fetched.stdout.strip().splitlines()[-1])
    return os.pathsep.join(str(jar) for part in ("jars", "modules") for jar in (root / part).glob("*.jar"))


def described_groups(bootstrap: str) -> dict[tuple[str, str, int], tuple[int, int, int]]:
    """What ``kafka-consumer-groups --describe --all-groups`` says: by group, topic and partition, the position, the end and the lag."""
    java = [str(java_home() / "bin" / "java"), "-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", _class_path()]
    tool = ["org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", "--bootstrap-server", bootstrap]
    said = subprocess.run([*java, *tool, "--describe", "--all-groups"], capture_output=True, text=True, check=True).stdout
    rows = csv.reader((" ".join(line.split()) for line in said.splitlines()), delimiter=" ")
    return {
        (row[0], row[1], int(row[2])): (int(row[3]), int(row[4]), int(row[5]))
        for row in rows
        if len(row) >= 6 and row[0] != "GROUP" and row[3] != "-"
    }
