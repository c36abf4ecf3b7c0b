"""pyiceberg's REST catalog, with an end to its patience."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

__all__ = ["open_rest_catalog"]

_TIMEOUT = (10, 120)
"""Seconds until a connection is there, and between two pieces of an answer; by itself pyiceberg waits for ever."""


def open_rest_catalog(name: str, properties: dict[str, Any]) -> Catalog:
    """A REST catalog whose requests end; raises as pyiceberg does."""
    from pyiceberg.catalog.rest import RestCatalog

    class Patient(RestCatalog):  # type: ignore[misc]  # its first question is asked as it is made
        def _create_session(self) -> Any:
            session = super()._create_session()
            session.request = partial(session.request, timeout=_TIMEOUT)
            return session

    return Patient(name, **properties)
