"""The catalog that knows an Iceberg table: where it is, how it is opened, and what its errors mean."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from factory_agents.errors import ConfigurationError, FactoryError, SinkError, UnavailableError
from factory_agents.sinks.iceberg.rest import open_rest_catalog

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

__all__ = ["CatalogSettings", "ConflictError", "catalog_from_env", "explained", "open_catalog"]

_VARIABLE = "ICEBERG_CATALOG"


class ConflictError(UnavailableError):
    """Another commit to the table came first; nothing of this one was done."""


_DENIED = {"42501", "AccessDenied", "AccessDeniedException", "403"}
"""PostgreSQL's insufficient privilege, and what AWS says."""


class CatalogSettings(msgspec.Struct, frozen=True):
    """A catalog's name and properties, as pyiceberg takes them; without properties, those that its own configuration has for the name."""

    name: str = "default"
    properties: dict[str, str] = {}

    @property
    def place(self) -> str:
        """What tells this catalog from others, without credentials."""
        kind, uri = (self.properties.get(name, "") for name in ("type", "uri"))
        shown = urlsplit(uri)
        host = f"{shown.hostname}:{shown.port}" if shown.port else shown.hostname or ""
        return " ".join(filter(None, (kind, f"{shown.scheme}://{host}{shown.path}" if uri else "", self.properties.get("warehouse", ""))))

    @property
    def address(self) -> str:
        """Where the catalog is, or (of one without a URL) its tables; without scheme and credentials."""
        shown = urlsplit(self.properties.get("uri") or self.properties.get("warehouse", ""))
        return f"{shown.hostname or ''}{f':{shown.port}' if shown.port else ''}/{shown.path.strip('/')}".rstrip("/")

    def __repr__(self) -> str:
        """Without the credentials."""
        return f"CatalogSettings({self.name}: {self.place})"


def catalog_from_env(name: str = "default", environ: Mapping[str, str] | None = None) -> CatalogSettings:
    """The catalog of ``ICEBERG_CATALOG`` (its properties as a JSON object), else of pyiceberg's own configuration.

    Raises ConfigurationError where pyiceberg isn't installed, the variable holds something else, or there is no such catalog.
    """
    environ = os.environ if environ is None else environ
    try:
        from pyiceberg.utils.config import Config
    except ImportError as error:
        raise ConfigurationError("publish to Iceberg needs its client: pip install 'factory-agents[iceberg]'") from error
    if text := environ.get(_VARIABLE):
        return CatalogSettings(name, _properties(text))
    configured = Config().get_catalog_config(name)
    if not configured:
        raise ConfigurationError(
            f"there is no Iceberg catalog {name!r}: give an iceberg connection in Airflow, {_VARIABLE} (its properties as JSON), or"
            f" pyiceberg's own configuration, for example PYICEBERG_CATALOG__{name.upper()}__URI"
        )
    return CatalogSettings(name, {key: str(value) for key, value in configured.items()})


def _properties(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, (str, int, float, bool)) for value in found.values()):
        raise ConfigurationError(f'{_VARIABLE}: expected a JSON object of texts, such as {{"type": "rest", "uri": "https://…"}}')
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in found.items()}


def open_catalog(settings: CatalogSettings) -> Catalog:
    """Open the catalog; raises as ``explained`` says, and ConfigurationError for properties that lead to none."""
    where = f"Iceberg catalog {settings.name!r}"
    with explained(where):
        try:
            return _opened(settings)
        except ValueError as error:
            raise ConfigurationError(f"{where}: {_as_mistake(error, settings)}") from error


def _opened(settings: CatalogSettings) -> Catalog:
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config

    known = {**(Config().get_catalog_config(settings.name) or {}), **settings.properties}
    kind, uri = (str(known.get(name, "")) for name in ("type", "uri"))
    if kind.lower() == "rest" or (not kind and urlsplit(uri).scheme in ("http", "https")):
        if not uri:
            raise ValueError("a REST catalog needs its uri")
        return open_rest_catalog(settings.name, known)
    return load_catalog(settings.name, **settings.properties)


def _as_mistake(error: ValueError, settings: CatalogSettings) -> str:
    if _is_no_answer(error):
        return f"what answers at {settings.place} is no REST catalog: correct its uri"
    return _first_line(error)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """What pyiceberg, its catalogs and storage raise, as our errors.

    ConflictError: another commit came first. UnavailableError: it doesn't answer, or it is unknown what was done. ConfigurationError: we
    may not, or it is named wrongly. SinkError: it refuses. Anything else is raised as it is.
    """
    try:
        yield
    except FactoryError:
        raise
    except Exception as error:
        found = _explanation(error)
        if found is None:
            raise
        raise found(f"{where}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _explanation(error: Exception) -> type[FactoryError] | None:
    from pyiceberg import exceptions as iceberg

    if isinstance(error, iceberg.CommitFailedException):
        return ConflictError
    if _is_denied(error):
        return ConfigurationError
    unavailable = (iceberg.CommitStateUnknownException, iceberg.ServerError, iceberg.ServiceUnavailableError, iceberg.TooManyRequestsError)
    if isinstance(error, (*unavailable, iceberg.WaitingForLockException)) or _is_outage(error) or _is_no_answer(error):
        return UnavailableError
    denied = (
        iceberg.UnauthorizedError,
        iceberg.ForbiddenError,
        iceberg.OAuthError,
        iceberg.NoSuchNamespaceError,
        iceberg.NotInstalledError,
    )
    if isinstance(error, denied) or (isinstance(error, ValueError) and "catalog" in str(error)):
        return ConfigurationError
    if isinstance(error, (iceberg.RESTError, iceberg.ValidationError, iceberg.ValidationException)):
        return SinkError
    return None


def _is_no_answer(error: Exception) -> bool:
    """Whether something answered that isn't a catalog: a proxy, a page that asks to sign in."""
    return type(error).__module__.partition(".")[0] == "pydantic_core"


def _is_denied(error: Any) -> bool:
    """Whether a SQL catalog's database, AWS or the files' storage said that we may not."""
    if isinstance(error, PermissionError):
        return True
    response = getattr(error, "response", None)  # botocore's is a dict; requests has one of its own, or none
    of_aws = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    code = getattr(getattr(error, "orig", None), "sqlstate", "") or of_aws
    says = str(error) if isinstance(error, OSError) or hasattr(error, "orig") else ""
    return code in _DENIED or any(sign in says for sign in ("ACCESS_DENIED", "readonly database"))


def _is_outage(error: Any) -> bool:
    """Whether a server (REST, a SQL catalog's database, AWS) didn't answer, or was too busy to."""
    named = {f"{each.__module__.partition('.')[0]}.{each.__name__}" for each in type(error).__mro__}
    if named & {"requests.ConnectionError", "requests.Timeout", "sqlalchemy.OperationalError", "sqlalchemy.InterfaceError"}:
        return True
    if "botocore.ClientError" in named:
        return "Throttl" in str(error) or "ServiceUnavailable" in str(error) or "InternalServiceException" in str(error)
    return bool(named & {"botocore.HTTPClientError", "botocore.ConnectionError"})
