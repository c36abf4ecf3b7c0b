"""One attempt at publishing, as a process of its own: ``python -m tests.support.attempt JSON``.

It says what came of it in its last line: ``landed``, ``reused``, or the name of the error.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from factory_agents.errors import FactoryError
from factory_agents.publish import build
from factory_agents.runtime.agents import Claim
from factory_agents.testing.records import at


def attempt(params: dict[str, Any], claim: Claim, events: list[Any]) -> str:
    sink: Any = build(params)
    try:
        if sink.claim(claim) is not None:
            return "reused"
        assert sink.write(at(events)) == {}
        sink.commit(rejected=0)
    except FactoryError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        sink.close()
    return "landed"


def main() -> None:
    given = json.loads(sys.argv[1])
    print(attempt(given["params"], msgspec.convert(given["claim"], Claim), given["events"]))


if __name__ == "__main__":
    main()
