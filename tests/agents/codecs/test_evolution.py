"""How a schema may change by the registry's rule, and who reads whose records then: a real registry, real records, old and new readers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory_agents.codecs.avro import AvroCodec
from factory_agents.codecs.registry import RegistryConfig
from factory_agents.codecs.subjects import Subjects
from factory_agents.errors import ConfigurationError
from factory_agents.reject import Reject
from tests.support.registries import Subjects as Producers
from tests.support.registries import record

OLD = record(event_id="int", text="string")
EVENT = {"event_id": 1, "text": "a"}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    # the new schema, an event of it, the field that keeps new readers from old records, and the one that keeps old readers from new ones
    "add": (record(event_id="int", text="string", more={"type": "int", "default": 0}), {**EVENT, "more": 7}, "", ""),
    "add without a default": (record(event_id="int", text="string", more="int"), {**EVENT, "more": 7}, "more", ""),
    "drop": (record(event_id="int"), {"event_id": 1}, "", "text"),
    "rename by alias": (record(event_id="int", words={"type": "string", "aliases": ["text"]}), {"event_id": 1, "words": "a"}, "", "text"),
    "widen": (record(event_id="long", text="string"), {**EVENT, "event_id": 2**40}, "", "event_id"),
    "another type": (record(event_id="string", text="string"), {**EVENT, "event_id": "x"}, "event_id", "event_id"),
}


@pytest.fixture
def producers(registry_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Producers]:
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", registry_url)
    own = Producers(registry_url)
    yield own
    own.client.close()


def reads(topic: str, version: int, value: bytes) -> bool:
    try:
        AvroCodec(topic, {}, version=version).decode_json(value, [])
    except Reject:
        return False
    return True


@pytest.mark.parametrize("rule", ["backward", "forward", "full"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_taken_or_refused_by_field_and_readers_of_what_was_taken_read_it(
    producers: Producers, registry_url: str, prefix: str, tmp_path: Path, rule: str, change: str
) -> None:
    new, event, breaks_new, breaks_old = CHANGES[change]
    subject, file = f"{prefix}-value", tmp_path / "event.avsc"
    file.write_text(json.dumps(new))
    (old_value,) = producers.written(prefix, OLD, EVENT)
    producers.client.set_compatibility(subject, rule.upper())
    subjects = Subjects(RegistryConfig(registry_url))
    broken = [field for field in ({"backward": [breaks_new], "forward": [breaks_old], "full": [breaks_new, breaks_old]})[rule] if field]
    ours = subjects.check(subject, str(file), compatibility=rule)
    assert (ours.compatible, [field in "".join(ours.why) for field in broken]) == (not broken, [True] * len(broken))
    theirs = subjects.check(subject, str(file))
    assert theirs == ours
    if broken:
        with pytest.raises(ConfigurationError, match=rf"refuses this schema for subject '{subject}' \(HTTP 409\): .*{broken[0]}"):
            subjects.register(subject, str(file))
        return
    version = subjects.register(subject, str(file)).version
    (new_value,) = producers.written(prefix, new, event)
    if rule in ("backward", "full"):
        assert reads(prefix, version, old_value)
    if rule in ("forward", "full"):
        assert reads(prefix, 1, new_value)
    assert reads(prefix, version, new_value)
    assert reads(prefix, 1, old_value)
