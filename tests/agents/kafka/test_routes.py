"""Which version is to handle what, and who holds it."""

from __future__ import annotations

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.kafka.group import TOPIC_TAG, decide_start, topic_id_of, writes_of
from factory_agents.kafka.routes import (
    Limits,
    Route,
    Spell,
    Token,
    check_version,
    finished,
    first_route,
    grown,
    holder,
    read_token,
    rolled_back,
    shifted,
    started,
    steps_of,
    without_versions,
)

FIRST = first_route("g", "t", 4, "v1", {})


def begun(*steps: float) -> Route:
    return started(FIRST, "v2", steps, hold=60, limits=Limits())


def test_the_first_version_that_runs_is_to_handle_all() -> None:
    assert (FIRST.base, FIRST.owners, FIRST.state) == ("v1", ("v1",) * 4, "steady")


def test_where_the_order_was_lost_who_holds_most_is_the_base() -> None:
    route = first_route("g", "t", 4, "v9", {0: Token("v2", 7), 1: Token("v1", 3), 2: Token("v2", 7)})
    assert (route.base, route.epoch) == ("v2", 8)


def test_a_rollout_goes_in_steps_and_is_finished_when_the_new_version_holds_all() -> None:
    route = begun(0.25, 0.5, 1.0)
    assert route.owners == ("v2", "v1", "v1", "v1")
    assert route.steps == (0.5, 1.0)
    route = shifted(route, route.steps[0], steps=route.steps[1:])
    assert route.owners == ("v2", "v2", "v1", "v1")
    route = shifted(route, 1.0)
    with pytest.raises(ConfigurationError, match=r"not \[3\]"):
        finished(route, ["v2", "v2", "v2", "v1"])
    done = finished(route, ["v2"] * 4)
    assert (done.base, done.new, done.state, done.initial) == ("v2", "", "steady", ("v2",) * 4)


def test_a_rollback_gives_all_back_and_says_why() -> None:
    route = rolled_back(begun(1.0), "errors")
    assert (route.owners, route.state, route.back, route.reason) == (("v1",) * 4, "rolled-back", True, "errors")
    with pytest.raises(ConfigurationError, match="'v2' was rolled back: errors"):
        shifted(route, 1.0)
    assert started(route, "v3", (), hold=0, limits=Limits()).owners == ("v3",) * 4


def test_one_rollout_at_a_time() -> None:
    with pytest.raises(ConfigurationError, match="'v2' is being rolled out"):
        started(begun(0.25), "v3", (), hold=0, limits=Limits())
    with pytest.raises(ConfigurationError, match="handles all partitions already"):
        started(FIRST, "v1", (), hold=0, limits=Limits())
    with pytest.raises(ConfigurationError, match="there is no rollout"):
        rolled_back(FIRST, "")


def test_partitions_that_are_added_are_the_base_versions_own() -> None:
    route = grown(begun(1.0), 6)
    assert route.owners == ("v2",) * 4 + ("v1",) * 2
    assert holder(route, 5, None) == "v1"
    assert holder(FIRST, 5, None) == ""  # nobody's, until an order says so
    assert grown(route, 6) is route


@pytest.mark.parametrize(("texts", "shares"), [(["1", "50%", "100%"], (0.25, 0.5, 1.0)), (["4"], (1.0,)), ([" 25% "], (0.25,))])
def test_steps_are_numbers_of_partitions_or_shares(texts: list[str], shares: tuple[float, ...]) -> None:
    assert steps_of(texts, 4) == shares


@pytest.mark.parametrize("texts", [["0"], ["5"], ["101%"], ["50%", "25%"], ["half"], [""], ["50%5"], ["nan"], ["-1"]])
def test_other_steps_are_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="expected a number of partitions"):
        steps_of(texts, 4)


@pytest.mark.parametrize(
    ("partitions", "shares"),
    [(1, (1.0,)), (2, (0.5, 1.0)), (3, (1 / 3, 1.0)), (4, (0.25, 1.0)), (5, (0.2, 0.25, 1.0)), (12, (1 / 12, 0.25, 1.0))],
)
def test_the_usual_steps_are_right_for_every_topic(partitions: int, shares: tuple[float, ...]) -> None:
    assert steps_of(["1", "25%", "100%"], partitions) == shares


def test_a_token_remembers_who_handled_what() -> None:
    token = Token("v1", 1, 0).passed_to("v2", 2, 100).passed_to("v1", 3, 150).passed_to("v2", 4, 150)
    assert token == Token("v2", 4, 150, (Spell("v1", 1, 0, 100), Spell("v2", 2, 100, 150)))
    assert token.spells(160)[-1] == Spell("v2", 4, 150, 160)


def test_a_token_stays_small_enough_for_a_brokers_metadata() -> None:
    token = Token("v" * 63)
    for n in range(200):
        token = token.passed_to(f"{n % 10}" * 63, n, n * 10**12)
    assert token.before[-1].end == 199 * 10**12
    assert len(token.before) > 20
    import msgspec

    assert len(msgspec.json.encode(token)) < 4000


def test_a_position_with_a_token_is_one_of_the_same_topic() -> None:
    metadata = f'{TOPIC_TAG}abc writes:out.events|["v2",3,10,[]]'
    assert (topic_id_of(metadata), writes_of(metadata)) == ("abc", "out.events")
    assert (topic_id_of(f"{TOPIC_TAG}abc"), writes_of(f"{TOPIC_TAG}abc"), topic_id_of(""), writes_of("x writes:y")) == ("abc", "", "", "")
    assert read_token(metadata) == Token("v2", 3, 10)
    assert decide_start(50, metadata, "abc", 0).offset == 50
    assert decide_start(50, metadata, "other", 0).lost
    assert read_token(f"{TOPIC_TAG}abc") is None
    assert read_token(f"{TOPIC_TAG}abc|no json") is None


@pytest.mark.parametrize("version", ["", "a b", "v|1", "v~1", "-v", "v" * 64, "v/1"])
def test_names_that_no_group_and_no_label_can_hold_are_no_versions(version: str) -> None:
    with pytest.raises(ConfigurationError, match="expected up to 63"):
        check_version(version)


def test_groups_of_versions_are_told_by_their_official_group() -> None:
    assert without_versions(["a", "a~v1", "a~v2", "b~c", "d"]) == ["a", "b~c", "d"]
