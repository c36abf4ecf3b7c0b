"""The suite for deletes, over DuckDB's documented sink; and that it finds what a sink does wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from factory_agents.testing import DeletesConformance
from factory_agents.testing.conformance import Publishers
from tests.support.duck import Duck
from tests.support.soak import examples as tried

MODULE, NAME = "duck_sink_with_deletes", "DuckSinkWithDeletes"


class TestDuckDBWithDeletes(DeletesConformance):
    DELETE_HISTORIES = tried(5, 20)

    @pytest.fixture
    def target(self, examples: Path, tmp_path: Path) -> Duck:
        return Duck(tmp_path / "events.duckdb", MODULE, NAME)


def _land_without(self: Any, landing: Any, **what: Any) -> Any:
    base: Any = type(self).__mro__[1]
    return base.land(self, msgspec.structs.replace(landing, **what))


WRONG = {
    "forgets what it deleted": {"discard": lambda self, _: self.db.execute(f"DELETE FROM {self.memory}")},
    "keeps the deletes of older generations": {"land": lambda self, landing: _land_without(self, landing, past=(), stale=())},
}


@pytest.mark.parametrize("how", WRONG)
def test_what_a_sink_does_wrong_is_found(examples: Path, tmp_path: Path, how: str) -> None:
    target = Duck(tmp_path / "events.duckdb", MODULE, NAME)
    target._make = type("Wrong", (target._make,), WRONG[how])
    publishers = Publishers(target)
    publishers.contract = publishers.contract | {"deletes": True}
    with pytest.raises(AssertionError):
        DeletesConformance().test_any_history_with_deletes_leaves_what_the_rules_say(publishers)
    publishers.close()
