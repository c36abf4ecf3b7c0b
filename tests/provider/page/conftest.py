"""Users, DAGs and figures for the page's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_factory.page.letters import LetterPage
from airflow_provider_factory.page.snapshot import Figures
from tests.support.airflow_env import DAGS
from tests.support.pages import HOURLY, ROOT, OfHand, PerDagManager, into_airflow, signing_in


@pytest.fixture
def users(airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PerDagManager]:
    """Airflow's security, with users whose rights are in their names."""
    with signing_in(monkeypatch) as manager:
        yield manager


@pytest.fixture
def hourly(airflow_home: Path, prefix: str) -> str:
    """An hourly DAG that Airflow knows, and the DAGs that the page starts."""
    into_airflow(DAGS / f"{prefix}.py", HOURLY.replace("DAG_ID", prefix))
    for name in ("factory_replay.py", "factory_preview.py"):
        into_airflow(DAGS / name, (ROOT / "dags" / name).read_text(encoding="utf-8"))
    return prefix


@pytest.fixture
def page_of() -> Iterator[Callable[..., OfHand]]:
    """Makes a page over figures."""
    made: list[OfHand] = []

    def make(shown: Figures, letters: LetterPage | None = None) -> OfHand:
        made.append(OfHand(shown, letters))
        return made[-1]

    yield make
    for page in made:
        page.close()


Page = Callable[..., Any]
