"""The official google_cloud_platform connection as the variables by which agents reach BigQuery."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow.sdk.log import mask_secret

from factory_agents.errors import ConfigurationError

__all__ = ["CONNECTION_TYPES", "google_environment"]

CONNECTION_TYPES = ("google_cloud_platform", "gcpbigquery")

_PREFIX = "extra__google_cloud_platform__"
_NOT_TAKEN = ("key_secret_name", "idp_issuer_url")


def google_environment(connection: Any) -> dict[str, str]:
    """Project, credentials and accounts to impersonate, as ``publish`` reads them; keys are masked in logs.

    A key's file, or a workload identity's configuration, is read here: it need not be in the agent's image. A connection without any of
    them means the credentials of the machine that the agent runs on. Raises ConfigurationError for unusable extras, without secrets.

    :param connection: an Airflow connection of type ``google_cloud_platform`` or ``gcpbigquery``.
    """
    where = f"connection {connection.conn_id!r}"
    extra = {name.removeprefix(_PREFIX): value for name, value in (connection.extra_dejson or {}).items() if value not in (None, "")}
    for name in _NOT_TAKEN:
        if name in extra:
            raise ConfigurationError(f"{where}: extra {name!r} is not taken here; give keyfile_dict, key_path or credential_config_file")
    given = [name for name in ("keyfile_dict", "key_path", "credential_config_file") if name in extra]
    if len(given) > 1:
        raise ConfigurationError(f"{where}: extras {' and '.join(given)}: expected one of them")
    credentials = _credentials(where, given[0], extra[given[0]]) if given else {}
    for secret in ("private_key", "client_secret", "refresh_token"):
        if credentials.get(secret):
            mask_secret(credentials[secret])
    chain = extra.get("impersonation_chain") or ""
    return {
        "GOOGLE_CLOUD_PROJECT": str(extra.get("project") or ""),
        "BIGQUERY_CREDENTIALS": json.dumps(credentials) if credentials else "",
        "BIGQUERY_IMPERSONATE": ",".join(chain) if isinstance(chain, list) else str(chain),
    }


def _credentials(where: str, name: str, value: Any) -> Mapping[str, Any]:
    """The JSON of a key or a configuration, from itself or from the file that holds it."""
    text = value
    if isinstance(text, str) and not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{where}: extra {name!r}: the file cannot be read on the worker: {getattr(error, 'strerror', '')}"
            ) from None
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{where}: extra {name!r}: expected JSON of a service account or a workload identity (it is not shown)")
    return found
