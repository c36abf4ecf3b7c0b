"""``factory schemas register|check`` beside a real registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Command
from tests.support.registries import Subjects, record

V1 = record(event_id="int", text="string")


def written(folder: Path, name: str, schema: Any) -> str:
    path = folder / name
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema, indent=2))
    return str(path)


def test_a_schema_is_registered_once_and_a_breaking_one_is_refused_by_name(
    offline: Command, registry_url: str, prefix: str, tmp_path: Path
) -> None:
    client = Subjects(registry_url).client
    env = {"SCHEMA_REGISTRY_URL": registry_url}
    first = written(tmp_path, "event.avsc", V1)
    assert offline("schemas", "check", prefix, first, "--json", **env).data["compatible"]
    done = offline.ok("schemas", "register", prefix, first, "--json", **env).data
    assert done == offline.ok("schemas", "register", prefix, first, "--json", **env).data
    assert (done["subject"], done["version"]) == (prefix, 1)
    client.set_compatibility(prefix, "BACKWARD")
    breaking = written(tmp_path, "breaking.avsc", record(event_id="int", text="string", amount="double"))
    checked = offline("schemas", "check", prefix, breaking, "--json", **env)
    assert (checked.code, checked.data["compatible"]) == (1, False)
    assert checked.data["why"] == ["the new version can't read old records: field 'amount' has no default, and isn't in the records"]
    refused = offline("schemas", "register", prefix, breaking, **env)
    assert refused.code == 1
    assert refused.error.startswith(f"the registry {registry_url} refuses this schema for subject {prefix!r} (HTTP 409): ")
    assert "amount" in refused.error
    added = written(tmp_path, "added.avsc", record(event_id="int", text="string", amount={"type": "double", "default": 0.0}))
    assert offline("schemas", "check", prefix, added, **env).code == 0
    assert offline.ok("schemas", "register", prefix, added, "--json", **env).data["version"] == 2
    client.close()


def test_a_rule_may_be_named_instead_of_the_subjects_own(offline: Command, registry_url: str, prefix: str, tmp_path: Path) -> None:
    """Some registries have none unless told: Apicurio's takes any schema."""
    env = {"SCHEMA_REGISTRY_URL": registry_url}
    offline.ok("schemas", "register", prefix, written(tmp_path, "event.avsc", V1), "--normalize", **env)
    dropped = written(tmp_path, "dropped.avsc", record(event_id="int"))
    needed = written(tmp_path, "needed.avsc", record(event_id="int", text="string", amount="double"))
    assert offline("schemas", "check", prefix, dropped, **env).code == 0
    assert offline("schemas", "check", prefix, needed, **env).code == 0
    assert offline("schemas", "check", prefix, needed, "--compatibility", "backward", **env).code == 1
    assert offline("schemas", "check", prefix, dropped, "--compatibility", "backward", **env).code == 0
    checked = offline("schemas", "check", prefix, dropped, "--compatibility", "full", **env)
    assert checked.code == 1
    assert "the old version can't read new records: field 'text' has no default" in checked.out + checked.err
    assert offline("schemas", "check", f"{prefix}.new", dropped, "--compatibility", "full", **env).code == 0


def test_a_schema_may_refer_to_others(offline: Command, registry_url: str, prefix: str, tmp_path: Path) -> None:
    env = {"SCHEMA_REGISTRY_URL": registry_url}
    offline.ok("schemas", "register", f"{prefix}.place", written(tmp_path, "place.avsc", record("Place", x="int")), **env)
    whole = written(tmp_path, "whole.avsc", record(event_id="int", at="Place"))
    done = offline.ok("schemas", "register", prefix, whole, "--reference", f"Place={prefix}.place:1", "--json", **env)
    assert done.data["version"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "options", "says"),
    [
        ("event.txt", "{}", (), "event.txt: expected a schema in a file named *.avsc, *.json, *.proto"),
        ("event.avsc", "{", (), "event.avsc: not JSON: "),
        ("event.avsc", "{}", ("--reference", "Place"), "--reference Place: expected NAME=SUBJECT:VERSION, such as Place=place-value:1"),
    ],
)
def test_what_is_no_schema_is_one_line(offline: Command, tmp_path: Path, name: str, text: str, options: tuple[str, ...], says: str) -> None:
    done = offline("schemas", "register", "s", written(tmp_path, name, text), *options, SCHEMA_REGISTRY_URL="http://127.0.0.1:1")
    assert says in done.error


def test_a_registry_that_does_not_answer_is_a_later_try(offline: Command, tmp_path: Path) -> None:
    env = {"SCHEMA_REGISTRY_URL": "http://127.0.0.1:1", "SCHEMA_REGISTRY_CONFIG": '{"max.retries": 0}'}
    done = offline("schemas", "check", "s", written(tmp_path, "event.avsc", V1), **env)
    assert (done.code, done.error.partition(":")[0]) == (75, "the registry http")
    assert "cannot be asked for subject 's': ConnectError" in done.error
