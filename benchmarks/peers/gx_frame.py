"""Great Expectations on a ready pandas frame of the events: what it can say of their contract's schema and rules, by seconds of CPU.

Its frame is read from JSON lines beforehand, outside the time that counts. Run by
``validation_throughput.py`` where ``FACTORY_GX_PYTHON`` names a Python that has it.
"""

from __future__ import annotations

import json
import sys
import time

import great_expectations as gx
import pandas as pd

lines, expected = sys.argv[1], int(sys.argv[2])
frame = pd.read_json(lines, lines=True, dtype=False, convert_dates=False)
present = ("event_id", "repo", "commit", "path", "occurred_at", "language", "size_class")
e = gx.expectations
expectations = [
    *(e.ExpectColumnValuesToNotBeNull(column=name) for name in present),
    e.ExpectColumnValuesToMatchRegex(column="commit", regex="^[0-9a-f]{7,40}$"),
    *(e.ExpectColumnValuesToBeBetween(column=name, min_value=0) for name in ("added", "deleted", "occurred_at")),
    e.ExpectColumnValuesToBeInSet(column="size_class", value_set=["binary", "small", "medium", "large"]),
    e.ExpectColumnValuesToBeUnique(column="event_id"),
]
context = gx.get_context(mode="ephemeral")
context.variables.progress_bars = {"globally": False, "metric_calculations": False}
batch = context.data_sources.add_pandas("frames").add_dataframe_asset("events").add_batch_definition_whole_dataframe("window")
suite = context.suites.add(gx.ExpectationSuite(name="events", expectations=expectations))
definition = context.validation_definitions.add(gx.ValidationDefinition(name="events", data=batch, suite=suite))
began = time.process_time()
result = definition.run(batch_parameters={"dataframe": frame}, result_format="SUMMARY")
seconds = time.process_time() - began
if len(frame) != expected or len(result.results) != len(expectations):
    raise SystemExit(f"expected {expected} events and {len(expectations)} results, got {len(frame)} and {len(result.results)}")
print(json.dumps({"seconds": seconds}))
