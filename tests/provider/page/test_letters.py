"""Letters are read in the background, bounded, from where the ledger says that they lie; a request never waits for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest

from airflow_provider_factory.page import letters as room
from airflow_provider_factory.page.letters import LetterPage, LetterQuery, Letters, look_up
from airflow_provider_factory.page.snapshot import LedgerReader, Snapshot
from factory_agents.codecs.registry import RegistryConfig
from factory_agents.errors import ConfigurationError, UnavailableError
from factory_agents.protocol import AgentResult
from factory_agents.reject import Reject
from factory_agents.runtime.dead_letters import Letter
from factory_agents.runtime.letter_values import LetterReader, Shown
from tests.support.pages import START
from tests.support.pages import letter as seen
from tests.support.registries import Subjects, record
from tests.support.runs import Runs
from tests.support.waiting import wait_for

READY = LetterPage("ready", (seen(),), found=1, read=1, held=1, taken_at=START)


@pytest.fixture
def made() -> Iterator[list[Letters]]:
    found: list[Letters] = []
    yield found
    for letters in found:
        letters.close()


def test_a_request_never_waits_and_the_answer_is_there_the_next_time(made: list[Letters]) -> None:
    go = threading.Event()

    def read(query: LetterQuery, snapshot: Snapshot) -> LetterPage:
        go.wait(30)
        return READY

    made.append(letters := Letters(read))
    query = LetterQuery("t", "p")
    assert letters.page(query, Snapshot()).state == "pending", "said while nothing can be read"
    go.set()
    wait_for(lambda: letters.page(query, Snapshot()) == READY, "the letters")


def test_questions_that_wait_are_bounded(made: list[Letters]) -> None:
    go = threading.Event()
    made.append(letters := Letters(lambda query, snapshot: (go.wait(30), READY)[1]))
    pages = [letters.page(LetterQuery("t", "p", text=str(n)), Snapshot()) for n in range(40)]
    assert pages[0].state == "pending"
    assert "too many questions" in pages[-1].error
    go.set()
    wait_for(lambda: letters.page(LetterQuery("t", "p", text="39"), Snapshot()) == READY, "its turn")


def test_an_outage_keeps_the_last_letters_and_is_said(made: list[Letters], monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[LetterPage | Exception] = [READY]

    def read(query: LetterQuery, snapshot: Snapshot) -> LetterPage:
        if isinstance(answers[-1], Exception):
            raise answers[-1]
        return answers[-1]

    monkeypatch.setattr(room, "_FRESH_SECONDS", 0.0)
    made.append(letters := Letters(read))
    query = LetterQuery("t", "p")
    wait_for(lambda: letters.page(query, Snapshot()) == READY, "the letters")
    answers.append(UnavailableError("no broker answered"))
    wait_for(lambda: letters.page(query, Snapshot()).error, "the outage")
    down = letters.page(query, Snapshot())
    assert (down.letters, down.error) == (READY.letters, "no broker answered")
    answers.append(ValueError("secret://user:password@host"))
    wait_for(lambda: "unexpected error" in letters.page(query, Snapshot()).error, "the next error")
    assert "password" not in letters.page(query, Snapshot()).error
    answers.append(READY)
    wait_for(lambda: not letters.page(query, Snapshot()).error, "the end of the outage")


def refuse(event: dict[str, int]) -> dict[str, int]:
    if event["event_id"] % 2:
        raise Reject(f"{event['event_id']} is odd", rule="odd")
    return event


def ran(runs: Runs, n: int = 10, name: str = "w") -> AgentResult:
    """A window with so many events, half of which are rejected."""
    topic = runs.topic("in", partitions=2)
    runs.produce(topic, [b'{"event_id": %d}' % i for i in range(n)])
    run = runs.run(runs.window(topic, name), runs.topic("out", partitions=2), max_rejected="100 %")
    return runs.transform(run, refuse)


def snapshot_of(runs: Runs) -> Snapshot:
    reader = LedgerReader(lambda: runs.config, lambda: runs.prefix)
    try:
        wait_for(lambda: [w.state for w in reader().windows] == ["finished"], "the result: its commit's marker may come after it")
        return Snapshot(reader(), START)
    finally:
        reader.close()


def test_letters_of_a_window_are_found_counted_and_told_apart_and_those_shown_are_decoded(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ran(runs)
    assert result.dead_letters is not None
    topic, shot = result.dead_letters.topic, snapshot_of(runs)
    assert shot.letter_topics(runs.prefix) == [topic]
    decoded: list[int] = []

    class Noting(LetterReader):
        def value(self, letter: Letter) -> Shown | None:
            decoded.append(letter.offset)
            return super().value(letter)

    monkeypatch.setattr(room, "LetterReader", Noting)
    page = look_up(runs.config, LetterQuery(topic, runs.prefix), shot, prefix=runs.prefix)
    assert (page.state, page.found, page.read) == ("ready", 5, 5)
    monkeypatch.setattr(room, "SHOWN", 2)
    decoded.clear()
    newest = look_up(runs.config, LetterQuery(topic, runs.prefix), shot, prefix=runs.prefix)
    assert (newest.letters, newest.groups, newest.found) == (page.letters[:2], page.groups, 5)
    assert len(decoded) == 2
    monkeypatch.setattr(room, "SHOWN", 200)
    assert {s.letter.attempt for s in page.letters} == {"finished"}
    assert [(g.rule, g.count) for g in page.groups] == [("odd", 5)]
    for query, found in (
        (LetterQuery(topic, runs.prefix, window="w"), 5),
        (LetterQuery(topic, runs.prefix, window="another"), 0),
        (LetterQuery(topic, runs.prefix, rule="even"), 0),
        (LetterQuery(topic, runs.prefix, text='"event_id": 7'), 1),
        (LetterQuery(topic, runs.prefix, text="3 is odd"), 1),
        (LetterQuery(topic, "another-pipeline"), 0),
    ):
        assert look_up(runs.config, query, shot, prefix=runs.prefix).found == found, query


def test_one_letter_is_found_by_its_place_and_one_that_is_not_there_says_so(runs: Runs) -> None:
    result = ran(runs)
    assert result.dead_letters is not None
    topic, shot = result.dead_letters.topic, snapshot_of(runs)
    first = look_up(runs.config, LetterQuery(topic, runs.prefix), shot, prefix=runs.prefix).letters[0].letter
    one = look_up(runs.config, LetterQuery(topic, runs.prefix, position=first.position), shot, prefix=runs.prefix)
    assert [s.letter.value for s in one.letters] == [first.value]
    with pytest.raises(ConfigurationError, match="it is not there"):
        look_up(runs.config, LetterQuery(topic, runs.prefix, position="0@99999"), shot, prefix=runs.prefix)
    other = look_up(runs.config, LetterQuery(topic, "another-pipeline", position=first.position), shot, prefix=runs.prefix)
    assert other.letters == ()


def test_what_is_read_and_kept_is_bounded(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOST_READ", 8)
    monkeypatch.setattr(room, "_LISTED", 5)
    result = ran(runs, 100)
    assert result.dead_letters is not None
    page = look_up(runs.config, LetterQuery(result.dead_letters.topic, runs.prefix), snapshot_of(runs), prefix=runs.prefix)
    assert page.read <= 8
    assert page.held >= 50
    assert all(s.cut and len(s.letter.value or b"") == 5 for s in page.letters)


def test_a_large_letter_is_cut_where_it_is_listed_and_where_it_is_shown(runs: Runs) -> None:
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, [b'{"event_id": 1, "text": "%s"}' % (b"x" * 900_000)])
    run = runs.run(runs.window(topic), runs.topic("out", partitions=1), max_rejected="100 %")
    result = runs.transform(run, refuse)
    assert result.dead_letters is not None
    dead, shot = result.dead_letters.topic, snapshot_of(runs)
    listed = look_up(runs.config, LetterQuery(dead, runs.prefix), shot, prefix=runs.prefix).letters[0]
    shown = look_up(runs.config, LetterQuery(dead, runs.prefix, position=listed.letter.position), shot, prefix=runs.prefix).letters[0]
    assert (len(listed.letter.value or b""), listed.size) == (1000, 900_027)
    assert (len(shown.letter.value or b""), shown.size) == (256 * 1024, 900_027)


def test_a_letter_in_avro_is_read_by_its_schema_and_without_a_registry_says_why(runs: Runs, registry_url: str) -> None:
    subjects = Subjects(registry_url)
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, subjects.written(topic, record(event_id="int", text="string"), {"event_id": 7, "text": "tëxt"}))
    subjects.client.close()
    result = runs.transform(runs.run(runs.window(topic), runs.topic("out", partitions=1), max_rejected="100 %"), refuse)
    assert result.dead_letters is not None
    dead, shot, asked = result.dead_letters.topic, snapshot_of(runs), RegistryConfig(registry_url, {})

    def page_of(query: LetterQuery, registry: Callable[[], RegistryConfig] = lambda: asked) -> LetterPage:
        return look_up(runs.config, query, shot, prefix=runs.prefix, registry=registry)

    (found,) = page_of(LetterQuery(dead, runs.prefix, text='"event_id":7')).letters
    assert found.value is not None
    assert json.loads(found.value.text) == {"event_id": 7, "text": "tëxt"}
    assert found.value.said.startswith("AVRO, schema id ")
    nobody = RegistryConfig("http://127.0.0.1:9", {"timeout": 1, "max.retries": 0})
    (left,) = page_of(LetterQuery(dead, runs.prefix), lambda: nobody).letters
    assert left.value is not None
    assert left.value.text.startswith(r"\x00\x00")
    assert "bytes, with escapes: the registry http://127.0.0.1:9 cannot be asked" in left.value.said


def test_a_topic_that_is_gone_says_so(runs: Runs) -> None:
    with pytest.raises(ConfigurationError, match="gone"):
        look_up(runs.config, LetterQuery(f"{runs.prefix}.gone", runs.prefix), Snapshot(), prefix=runs.prefix)
