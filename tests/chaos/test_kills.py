"""Random kills of a whole pipeline, seeded: ``make soak SEED=7 ROUNDS=200`` runs as many rounds as one likes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.pipeline import Pipeline
from tests.support.runs import Runs

SEED = int(os.environ.get("SOAK_SEED", "1"))
ROUNDS = int(os.environ.get("SOAK_ROUNDS", "1"))
KILLS = 9
"""Of each round."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
def test_a_pipeline_killed_at_random_points_loses_and_doubles_nothing(runs: Runs, database_url: str, tmp_path: Path, seed: int) -> None:
    pipeline = Pipeline(runs, database_url, tmp_path, random.Random(seed))
    pipeline.run(KILLS)
    print(f"seed {seed}: {pipeline.tally.kills} kills and {pipeline.tally.zombies} zombies in {pipeline.tally.attempts} attempts")
