"""What a hundred pipelines cost a DAG processor: parse time and serialised size, made by a loop and from YAML by dag-factory.

Each file is parsed in a fork of a process that has loaded Airflow's plugins, as the DAG processor does. dag-factory is fetched beside the
environment at first use, without the network afterwards; its telemetry is off.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import ROOT, arguments

DAG_FACTORY = ROOT / "requirements" / "dag-factory.txt"

LOOP = """
from datetime import UTC, datetime
from airflow.sdk import CronDataIntervalTimetable, dag
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.operators.window import WindowOperator

def make(i):
    @dag(dag_id=f"loop_{i}", schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"), start_date=datetime(2026, 1, 1, tzinfo=UTC),
         catchup=False)
    def pipeline():
        window = WindowOperator(task_id="window", topic=f"raw_{i}")
        enriched = KafkaAgentOperator(task_id="enrich", agent="enrich", window=window.output, output_topic=f"enriched_{i}")
        valid = ValidationOperator(task_id="validate", window=enriched.output, contract="contracts/events.yaml", output_topic=f"valid_{i}")
        KafkaAgentOperator(task_id="publish", agent="publish", window=valid.output, contract="contracts/events.yaml",
                           agent_params={"table": f"table_{i}"})
    pipeline()

for i in range(COUNT):
    make(i)
"""

YAML = """
yaml_{i}:
  default_args: {{owner: data-eng, start_date: 2026-01-01}}
  catchup: false
  schedule:
    __type__: airflow.sdk.CronDataIntervalTimetable
    __args__: ["@hourly"]
    timezone: UTC
  tasks:
    - task_id: window
      operator: airflow_provider_factory.operators.window.WindowOperator
      topic: raw_{i}
    - task_id: enrich
      operator: airflow_provider_factory.operators.kafka_agent.KafkaAgentOperator
      agent: enrich
      window: "{{{{ ti.xcom_pull(task_ids='window') | tojson }}}}"
      output_topic: enriched_{i}
      dependencies: [window]
    - task_id: validate
      operator: airflow_provider_factory.operators.validation.ValidationOperator
      window: "{{{{ ti.xcom_pull(task_ids='enrich') | tojson }}}}"
      contract: contracts/events.yaml
      output_topic: valid_{i}
      dependencies: [enrich]
    - task_id: publish
      operator: airflow_provider_factory.operators.kafka_agent.KafkaAgentOperator
      agent: publish
      window: "{{{{ ti.xcom_pull(task_ids='validate') | tojson }}}}"
      contract: contracts/events.yaml
      agent_params: {{table: table_{i}}}
      dependencies: [validate]
"""

FROM_YAML = """
# Airflow looks into files that name it and a dag.
from dagfactory import load_yaml_dags
load_yaml_dags(globals_dict=globals(), config_filepath="FILE")
"""

PARSE = """
import json, os, sys, time
from airflow.plugins_manager import ensure_plugins_loaded
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
ensure_plugins_loaded()
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        began = time.monotonic()
        bag = DagBag(sys.argv[1])
        took = time.monotonic() - began
        assert not bag.import_errors, next(iter(bag.import_errors.values()))
        size = sum(len(json.dumps(DagSerialization.to_dict(dag))) for dag in bag.dags.values())
        print("RESULT", json.dumps([len(bag.dags), took, size, time.monotonic() - began - took]), flush=True)
        os._exit(0)
    os.wait()
"""


def measure(file: Path, rounds: int, environment: dict[str, str]) -> list[list[float]]:
    """[DAGs, seconds to parse, bytes serialised, seconds to serialise] of each round."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(file), str(rounds)], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode or "RESULT" not in done.stdout:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-3000:])
    return [json.loads(line.partition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("RESULT")]


def dag_factory() -> Path:
    """Where dag-factory is installed, apart from the environment: its plugin would be loaded by every Airflow there."""
    target = ROOT / ".factory" / "dag-factory"
    if not (target / "dagfactory").is_dir():
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", target, "--requirement", DAG_FACTORY], check=True
        )
    return target


def main() -> None:
    """Print one line a way of making them."""
    options = arguments(__doc__ or "", pipelines=100)
    count = 5 if options.smoke else options.pipelines
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment = {
            **os.environ,
            "AIRFLOW_HOME": scratch,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "DO_NOT_TRACK": "1",
        }
        (folder / "loop.py").write_text(LOOP.replace("COUNT", str(count)))
        (folder / "dags.yaml").write_text("".join(YAML.format(i=i) for i in range(count)))
        (folder / "from_yaml.py").write_text(FROM_YAML.replace("FILE", str(folder / "dags.yaml")))
        yaml_path = os.pathsep.join([str(dag_factory()), environment.get("PYTHONPATH", "")])
        results = {
            "a loop in Python": measure(folder / "loop.py", options.rounds, environment),
            "YAML, dag-factory": measure(folder / "from_yaml.py", options.rounds, environment | {"PYTHONPATH": yaml_path}),
        }
    print(f"\n{count} pipelines of four tasks, {options.rounds} rounds\n")
    print("| made by | DAGs | parse, s (median) | serialise, s (median) | serialised, KB a DAG |\n|---|---|---|---|---|")
    for name, found in results.items():
        dags, parse, size, serialise = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {dags:.0f} | {parse:.2f} | {serialise:.2f} | {size / dags / 1000:.1f} |")
    print(json.dumps({"benchmark": "parse_time", "pipelines": count, "results": results}))


if __name__ == "__main__":
    main()
