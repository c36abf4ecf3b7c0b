"""An experiment: batches move through C (``native_batch.c``), and Python handles the values of one as one block of lines."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import confluent_kafka
import msgspec
from confluent_kafka.admin import AdminClient

bootstrap, source, target, total = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
READING = {
    "bootstrap.servers": bootstrap,
    "group.id": f"bench-{target}",
    "enable.auto.commit": "false",
    "isolation.level": "read_committed",
    "enable.partition.eof": "true",
    "auto.offset.reset": "earliest",
    "fetch.wait.max.ms": "20",
    "fetch.queue.backoff.ms": "10",
    "queued.min.messages": "50000",
    "queued.max.messages.kbytes": "32768",
}
WRITING = {
    "bootstrap.servers": bootstrap,
    "transactional.id": f"bench-{target}",
    "linger.ms": "5",
    "compression.type": "lz4",
    "queue.buffering.max.messages": "500000",
    "queue.buffering.max.kbytes": "262144",
    "delivery.report.only.error": "true",
}


def compiled() -> ctypes.CDLL:
    """The C part, linked with the client library that confluent-kafka has loaded already."""
    client = next(Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka-*"))
    library = Path(tempfile.mkdtemp()) / "native_batch.so"
    code = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, code, client, f"-Wl,-rpath,{client.parent}"], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.nb_problem.restype = ctypes.c_char_p
    return loaded


def pairs(settings: dict[str, str]) -> tuple[ctypes.Array[ctypes.c_char_p], int]:
    flat = [text.encode() for pair in settings.items() for text in pair]
    return (ctypes.c_char_p * len(flat))(*flat), len(flat)


native = compiled()


def check(status: int) -> int:
    if status < 0:
        raise SystemExit(native.nb_problem().decode())
    return status


decode, encode = msgspec.json.Decoder().decode_lines, msgspec.json.Encoder().encode_lines
partitions = len(AdminClient({"bootstrap.servers": bootstrap}).list_topics(source).topics[source].partitions)
began = time.monotonic()
check(native.nb_open(*pairs(READING), *pairs(WRITING), source.encode(), partitions))
values, size = ctypes.c_void_p(), ctypes.c_size_t()
done = in_transaction = 0
check(native.nb_begin())
while done < total:
    count = check(native.nb_read(ctypes.byref(values), ctypes.byref(size)))
    if not count:
        continue
    events = decode(ctypes.string_at(values, size.value))
    for event in events:
        event["enriched"] = True
    lines = encode(events)
    check(native.nb_write(target.encode(), lines, ctypes.c_size_t(len(lines))))
    done += count
    in_transaction += count
    if in_transaction >= 100_000:
        check(native.nb_commit())
        in_transaction = 0
        check(native.nb_begin())
check(native.nb_commit())
print(json.dumps({"seconds": time.monotonic() - began}))
