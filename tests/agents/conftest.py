"""What the tests of agents and of the command share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import Command, clean_environment
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


@pytest.fixture
def factory(bootstrap: str, prefix: str, tmp_path: Path, admin: AdminClient) -> Iterator[Command]:
    """The factory command, told of the broker by its environment, with a ledger of this test's own."""
    command = Command(tmp_path, clean_environment(KAFKA_BOOTSTRAP=bootstrap, FACTORY_PREFIX=prefix))
    yield command
    command.close()
    made = [name for name in admin.list_topics(timeout=10).topics if name.startswith(f"{prefix}.")]
    for future in admin.delete_topics(made).values() if made else ():
        future.exception()


@pytest.fixture
def offline(tmp_path: Path) -> Command:
    """The factory command where no broker is to be reached."""
    return Command(tmp_path, clean_environment(KAFKA_BOOTSTRAP="127.0.0.1:1"))
