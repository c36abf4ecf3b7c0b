"""The reference is what the docstrings say now, and explains every parameter that a user sets."""

from __future__ import annotations

import re

import reference


def test_the_page_is_up_to_date() -> None:
    assert reference.main(["--check"]) == 0, "docs/reference.md is not what the docstrings say; run make reference"


def test_every_operator_sensor_and_decorator_that_there_is_stands_in_it() -> None:
    from airflow_provider_factory.get_provider_info import get_provider_info

    info, page = get_provider_info(), reference.page()
    modules = [
        module for kind in ("operators", "sensors", "hooks", "triggers") for group in info[kind] for module in group["python-modules"]
    ]
    assert modules
    assert all(f"`{module}." in page for module in modules)
    for decorator in info["task-decorators"]:
        assert decorator["class-name"].rpartition(".")[0] in page


def test_every_parameter_of_operators_and_sensors_is_explained() -> None:
    for title in ("Operators", "Sensors"):
        for member in reference.members(reference.PROVIDER[title]):
            silent = [row.name for row in reference.documented(member)[1] if not row.text]
            assert not silent, f"{member.__name__}: no :param for {', '.join(silent)}"


def test_every_command_and_option_is_explained() -> None:
    items = re.split("^- ", "\n".join([*reference.commands(), reference.configuration()]), flags=re.MULTILINE)[1:]
    assert items
    assert not [item for item in items if ": " not in " ".join(item.split())]
