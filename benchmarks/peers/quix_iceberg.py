"""Quix Streams' Iceberg sink in a catalog in SQLite: JSON lines into a table, a flush every 10,000 rows."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from pyiceberg.catalog import load_catalog
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.types import DoubleType, LongType, NestedField, StringType, TimestampType
from quixstreams.sinks.community.iceberg import AWSIcebergConfig, IcebergSink
from quixstreams.utils.json import loads

lines, folder, table = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
types = {"event_id": StringType, "user": LongType, "payload": StringType, "amount": DoubleType, "kind": StringType}
types |= {"_timestamp": TimestampType, "_key": StringType}
schema = Schema(*(NestedField(n, name, type_(), required=False) for n, (name, type_) in enumerate(types.items(), 1)))
catalog = load_catalog("default", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
catalog.create_namespace_if_not_exists("bench")
began, used = time.monotonic(), time.process_time()
config = AWSIcebergConfig(f"file://{folder}/warehouse/bench/{table}", "eu-central-1", "local", "local")
sink = IcebergSink(f"bench.{table}", config, "aws_glue", schema, PartitionSpec())
sink.data_catalog = catalog  # it knows Glue's alone
sink.setup()
with lines.open("rb") as file:
    for offset, line in enumerate(file):
        sink.add(value=loads(line), key="k", timestamp=0, headers=[], topic="bench", partition=0, offset=offset)
        if offset % 10_000 == 9_999:
            sink.flush()
sink.flush()
seconds, cpu = time.monotonic() - began, time.process_time() - used
print(json.dumps({"seconds": seconds, "cpu": cpu, "rows": catalog.load_table(f"bench.{table}").scan().to_arrow().num_rows}))
