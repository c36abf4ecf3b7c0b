"""Where Airflow shows the Factory page: in its navigation, and on DAGs and runs."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from airflow_provider_factory.plugins.page import FactoryPagePlugin
from tests.provider.page.conftest import hourly, page_of, users
from tests.support.pages import OfHand, PerDagManager, dead, figures, plan

__all__ = ["hourly", "page_of", "users"]


def test_every_view_leads_to_a_page(page_of: Callable[..., OfHand], users: PerDagManager, hourly: str) -> None:
    page, token = page_of(figures(plan(hourly, 1), dead(hourly, 1))), users.token(f"viewer-of-{hourly}")
    run_id = "manual__2026-11-02T05:00:00+00:00"
    for view in FactoryPagePlugin.external_views:
        path = view["href"].replace("{DAG_ID}", quote(hourly, safe="")).replace("{RUN_ID}", quote(run_id, safe=""))  # as Airflow's UI does
        answer = page.get(path.removeprefix("factory"), token)
        assert answer.status_code == 200, path
        assert "Factory" in answer.text
    assert len({view["url_route"] for view in FactoryPagePlugin.external_views}) == len(FactoryPagePlugin.external_views)


def test_a_tab_on_a_dag_without_windows_says_so_and_offers_nothing(
    page_of: Callable[..., OfHand], users: PerDagManager, hourly: str
) -> None:
    page, token = page_of(figures()), users.token(f"editor-of-{hourly}")
    for path in (f"/pipelines/{hourly}", f"/pipelines/{hourly}/runs/some"):
        text = page.get(path, token).text
        assert "The ledger" in text
        assert "<button" not in text
