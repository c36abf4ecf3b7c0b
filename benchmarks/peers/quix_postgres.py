"""Quix Streams' PostgreSQL sink, told to upsert by the key as ours does: JSON lines into a table, a flush every 10,000 rows."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from quixstreams.sinks.community.postgresql import PostgreSQLSink
from quixstreams.utils.json import loads

lines, table, url = Path(sys.argv[1]), sys.argv[2], urlsplit(sys.stdin.read())
began = time.monotonic()
sink = PostgreSQLSink(
    host=url.hostname,
    port=url.port,
    dbname=url.path[1:],
    user=url.username,
    password=url.password,
    table_name=table,
    primary_key_columns="event_id",
    upsert_on_primary_key=True,
    include_metadata=False,
)
sink.setup()
with lines.open("rb") as file:
    for offset, line in enumerate(file):
        sink.add(value=loads(line), key=None, timestamp=0, headers=[], topic="bench", partition=0, offset=offset)
        if offset % 10_000 == 9_999:
            sink.flush()
sink.flush()
print(json.dumps({"seconds": time.monotonic() - began}))
