"""Airflow's ``[factory]`` section: read when it is needed, with the documented defaults."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_provider_factory.settings import credentials, option, option_seconds, retry_delay, runner
from factory_agents.errors import ConfigurationError


def test_an_option_has_its_documented_default_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__FACTORY__RETRY_DELAY", raising=False)
    assert (option("retry_delay"), retry_delay()) == ("300", timedelta(minutes=5))
    monkeypatch.setenv("AIRFLOW__FACTORY__RETRY_DELAY", " 10 ")
    assert (option("retry_delay"), retry_delay()) == ("10", timedelta(seconds=10))


@pytest.mark.parametrize("text", ["soon", "-1", ""])
def test_seconds_are_a_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("AIRFLOW__FACTORY__RETRY_DELAY", text)
    with pytest.raises(ConfigurationError, match=r"\[factory\] retry_delay: expected seconds"):
        option_seconds("retry_delay")


@pytest.mark.parametrize(("ask", "name", "given"), [(runner, "RUNNER", "process"), (credentials, "CREDENTIALS", "none")])
def test_a_task_overrides_the_configuration_and_nonsense_is_refused(
    monkeypatch: pytest.MonkeyPatch, ask: object, name: str, given: str
) -> None:
    assert callable(ask)
    monkeypatch.setenv(f"AIRFLOW__FACTORY__{name}", "nowhere")
    assert ask(given) == given
    with pytest.raises(ConfigurationError, match=r"expected one of .*, got 'nowhere'"):
        ask()
    monkeypatch.setenv(f"AIRFLOW__FACTORY__{name}", given)
    assert ask() == given
