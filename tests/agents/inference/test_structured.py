"""Which fields no model sees: those that a contract classifies, in its own notation or in the standard."""

from __future__ import annotations

from factory_agents.contracts import load_contract
from factory_agents.inference.structured import classified_fields

STANDARD = """
apiVersion: v3.1.0
kind: DataContract
id: mails
name: mails
version: 1.0.0
status: active
schema:
  - name: mails
    properties:
      - {name: mail, logicalType: string, classification: restricted}
      - {name: text, logicalType: string, classification: Public}
      - {name: size, logicalType: integer}
"""


def test_a_contract_of_the_standard() -> None:
    assert classified_fields(load_contract(STANDARD)) == {"mail"}
