"""The project's errors in Airflow's terms."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_factory.errors import airflow_errors
from factory_agents.errors import ContractError, UnavailableError


def test_what_a_retry_cant_mend_fails_at_once_in_one_line() -> None:
    with pytest.raises(AirflowFailException, match=r"^ContractError: c.yaml:1:2: no$") as failed, airflow_errors():
        raise ContractError("c.yaml:1:2: no")
    assert failed.value.__cause__ is None


@pytest.mark.parametrize("error", [UnavailableError("later"), KeyError("a bug")])
def test_anything_else_passes_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, airflow_errors():
        raise error
    assert raised.value is error
