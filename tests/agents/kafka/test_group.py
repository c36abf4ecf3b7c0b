"""Where a member of a group begins to read: from its word, as long as that is about this topic and what it names is there."""

from __future__ import annotations

import pytest

from factory_agents.kafka.group import Start, decide_start

THIS, OTHER = "topic-id:this", "topic-id:other"


@pytest.mark.parametrize(
    ("offset", "metadata", "log_start", "more", "start"),
    [
        (-1001, "", 0, {}, Start(0)),
        (-1001, "", 7, {}, Start(7)),  # nothing was read before, so nothing is lost
        (5, THIS, 0, {}, Start(5, committed=5)),
        (5, "", 0, {}, Start(5)),  # by an older release, or set by hand
        (5, "a note of somebody else's", 0, {}, Start(5)),
        (5, THIS, 5, {}, Start(5, committed=5)),
        (5, THIS, 9, {}, Start(9, lost="offsets 5 to 9 were deleted by retention", records=4)),
        (5, OTHER, 0, {}, Start(0, lost="the topic was deleted and created again")),
        (5, OTHER, 9, {}, Start(9, lost="the topic was deleted and created again")),
        (5, "", 0, {"replaced": True}, Start(0, lost="the topic was deleted and created again")),
        (5, THIS, 0, {"replaced": True}, Start(5, committed=5)),
        (5, THIS, 0, {"end": 5}, Start(5, committed=5)),
        (5, THIS, 0, {"end": 3}, Start(3, lost="the log ends at 3, the group stands at 5")),
        (5, "", 1, {"end": 3}, Start(1, lost="the log ends at 3, the group stands at 5")),
    ],
)
def test_a_partition_is_read_from_where_the_group_stands(
    offset: int, metadata: str, log_start: int, more: dict[str, int], start: Start
) -> None:
    assert decide_start(offset, metadata, "this", log_start, **more) == start  # type: ignore[arg-type]
