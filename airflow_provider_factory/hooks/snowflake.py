"""The official snowflake connection as the variables by which agents reach Snowflake."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow.sdk.log import mask_secret

from factory_agents.errors import ConfigurationError

__all__ = ["CONNECTION_TYPE", "snowflake_environment"]

CONNECTION_TYPE = "snowflake"

_PREFIX = "extra__snowflake__"
_NOT_TAKEN = ("refresh_token", "azure_conn_id", "proxy_host")
_SECRETS = ("PRIVATE_KEY", "PRIVATE_KEY_PASSPHRASE", "PASSWORD", "TOKEN", "OAUTH_CLIENT_SECRET")
_OURS = (
    *("ACCOUNT", "USER", "HOST", "PORT", "PROTOCOL", "DATABASE", "SCHEMA", "WAREHOUSE", "ROLE", "AUTHENTICATOR"),
    *("OAUTH_CLIENT_ID", "OAUTH_TOKEN_REQUEST_URL", "OAUTH_SCOPE", "PRIVATE_KEY_FILE", "TOKEN_FILE"),
)


def snowflake_environment(connection: Any) -> dict[str, str]:
    """Account, credentials and defaults, as ``publish`` reads them; secrets are masked in logs.

    A key's file is read here: it need not be in the agent's image. Every variable is set, empty if the connection doesn't have it, so that
    none of the worker's reaches the agent. Raises ConfigurationError for what cannot be taken, without showing secrets.

    :param connection: an Airflow connection of type ``snowflake``.
    """
    where = f"connection {connection.conn_id!r}"
    extra = {name.removeprefix(_PREFIX): value for name, value in (connection.extra_dejson or {}).items() if value not in (None, "")}
    for name in _NOT_TAKEN:
        if name in extra:
            raise ConfigurationError(f"{where}: extra {name!r} is not taken here; give a private key, or grant_type client_credentials")
    account = str(extra.get("account") or "")
    named = {
        "ACCOUNT": f"{account}.{extra['region']}" if "region" in extra and account else account,
        "SCHEMA": connection.schema,
        **{name.upper(): extra.get(name) for name in ("host", "port", "protocol", "database", "warehouse", "role")},
        **_credentials(where, connection, extra),
    }
    found = {f"SNOWFLAKE_{name}": str(named.get(name) or "") for name in (*_OURS, *_SECRETS)}
    for name in _SECRETS:
        if secret := found[f"SNOWFLAKE_{name}"]:
            mask_secret(secret)
    return found


def _credentials(where: str, connection: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    authenticator = str(extra.get("authenticator") or "snowflake")
    if extra.get("grant_type") == "client_credentials":
        return {
            "OAUTH_CLIENT_ID": connection.login,
            "OAUTH_CLIENT_SECRET": connection.password,
            "OAUTH_TOKEN_REQUEST_URL": extra.get("token_endpoint"),
            "OAUTH_SCOPE": extra.get("scope"),
        }
    named = {"USER": connection.login, "AUTHENTICATOR": "" if authenticator.lower() in ("snowflake", "snowflake_jwt") else authenticator}
    key = _private_key(where, extra)
    if key:  # the password is the key's, as the official hook has it
        return {**named, "PRIVATE_KEY": key, "PRIVATE_KEY_PASSPHRASE": connection.password}
    if "token" in extra or authenticator.lower() in ("oauth", "programmatic_access_token"):
        return {**named, "TOKEN": extra.get("token") or connection.password}
    return {**named, "PASSWORD": connection.password}


def _private_key(where: str, extra: Mapping[str, Any]) -> str:
    """A key in PEM, from itself (perhaps in base64) or from the file that holds it."""
    if "private_key_file" in extra and "private_key_content" in extra:
        raise ConfigurationError(f"{where}: extras private_key_file and private_key_content: expected one of them")
    if "private_key_file" in extra:
        try:
            return Path(str(extra["private_key_file"])).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no PEM"
            raise ConfigurationError(f"{where}: extra 'private_key_file': the file cannot be read on the worker: {why}") from None
    text = str(extra.get("private_key_content") or "")
    if not text or "-----BEGIN" in text:
        return text
    try:
        return base64.b64decode(text, validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        raise ConfigurationError(
            f"{where}: extra 'private_key_content': expected a key in PEM, or that in base64 (it is not shown)"
        ) from None
