"""Parameters of the built-in agents are typed, and a mistyped one is told the name that was meant."""

from __future__ import annotations

import msgspec
import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.params import read_params


class Params(msgspec.Struct):
    path: str = ""
    batch: int = 10
    strict: bool = False


def test_numbers_and_booleans_may_come_as_text() -> None:
    assert read_params("ingest", {"batch": "20", "strict": "true"}, Params) == Params(batch=20, strict=True)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"batsh": 1}, r"agent 'ingest': .*'batsh'.*did you mean 'batch'"),
        ({"batch": "many"}, r"agent 'ingest': .*batch"),
        ({"batch": [1]}, r"agent 'ingest': .*batch"),
    ],
)
def test_what_is_no_parameter_is_named(given: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        read_params("ingest", given, Params)


@pytest.mark.parametrize("given", [{}, {"path": ""}])
def test_what_is_required_is_there_and_not_empty(given: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="agent 'ingest': parameter 'path' is required: a file"):
        read_params("ingest", given, Params, required={"path": "a file"})
