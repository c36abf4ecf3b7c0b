"""What the tests of hostile inputs share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.runs import Runs

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

    from tests.conftest import TopicFactory


@pytest.fixture
def runs(bootstrap: str, prefix: str, topic: TopicFactory, admin: AdminClient) -> Iterator[Runs]:
    """A pipeline of this test's own."""
    own = Runs(bootstrap, prefix, topic, admin)
    yield own
    own.close()
