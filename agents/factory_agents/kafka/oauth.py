"""SASL/OAUTHBEARER tokens that librdkafka doesn't fetch itself: for Amazon MSK, Google's managed Kafka, or by a function of yours."""

from __future__ import annotations

import base64
import datetime
import importlib
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from factory_agents.errors import ConfigurationError

__all__ = ["CALLBACK", "token_source"]

CALLBACK = "oauth_cb"
"""The setting that names a function as ``module.function``: it takes ``sasl.oauthbearer.config``, and returns a token and when it ends."""

TokenSource = Callable[[str], tuple[Any, ...]]

_MSK = re.compile(r"\.kafka(?:-serverless)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?(?::\d+)?\s*(?:,|$)", re.IGNORECASE)
_GOOGLE = re.compile(r"\.managedkafka\.[^,:]*cloud\.goog(?::\d+)?\s*(?:,|$)", re.IGNORECASE)
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def token_source(bootstrap: str, values: Mapping[str, str]) -> TokenSource | None:
    """What a client calls for a token; None where its settings need none from here.

    Raises ConfigurationError where OAUTHBEARER is asked for without a source, or its package isn't installed.
    """
    if not _wanted(values):
        return None
    if path := values.get(CALLBACK):
        return _function(path)
    if region := _MSK.search(bootstrap):
        return _msk_tokens(region[1].lower())
    if _GOOGLE.search(bootstrap):
        return _google_tokens()
    raise ConfigurationError(
        f"Kafka at {bootstrap}: sasl.mechanism OAUTHBEARER needs a source of tokens: sasl.oauthbearer.method=oidc with its "
        f"sasl.oauthbearer.* keys, {CALLBACK}=module.function, or brokers of Amazon MSK or Google's managed Kafka"
    )


def _wanted(values: Mapping[str, str]) -> bool:
    mechanism = values.get("sasl.mechanism") or values.get("sasl.mechanisms") or ""
    unsecure = values.get("enable.sasl.oauthbearer.unsecure.jwt", "").lower() in ("true", "t", "1")
    by_itself = values.get("sasl.oauthbearer.method", "").lower() == "oidc" or unsecure
    return mechanism.upper() == "OAUTHBEARER" and (not by_itself or CALLBACK in values)


def _function(path: str) -> TokenSource:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{CALLBACK}: cannot import {path!r} here ({error}); an agent's image needs it too") from None
    if not callable(found):
        raise ConfigurationError(f"{CALLBACK}: expected a function as module.function, got {path!r}")
    source: TokenSource = found
    return source


def _msk_tokens(region: str) -> TokenSource:
    try:
        signer = importlib.import_module("aws_msk_iam_sasl_signer").MSKAuthTokenProvider
    except ImportError:
        raise ConfigurationError("Amazon MSK with IAM: no signer is installed here: pip install aws-msk-iam-sasl-signer-python") from None

    def token(_: str) -> tuple[str, float]:
        text, milliseconds = signer.generate_auth_token(region)
        return text, milliseconds / 1000

    return token


def _google_tokens() -> TokenSource:
    """By the application's default credentials, in the form that Google's brokers take: header, claims and access token, each in base64."""
    try:
        auth, requests = importlib.import_module("google.auth"), importlib.import_module("google.auth.transport.requests")
    except ImportError:
        raise ConfigurationError("Google's managed Kafka: its credentials need a package: pip install 'google-auth[requests]'") from None
    credentials, _ = auth.default(scopes=[_GOOGLE_SCOPE])

    def token(_: str) -> tuple[str, float]:
        credentials.refresh(requests.Request())
        ends = credentials.expiry.replace(tzinfo=credentials.expiry.tzinfo or datetime.UTC).timestamp()
        claims = {
            "iss": "Google",
            "scope": "kafka",
            "sub": getattr(credentials, "service_account_email", ""),
            "iat": time.time(),
            "exp": ends,
        }
        parts = (json.dumps({"typ": "JWT", "alg": "GOOG_OAUTH2_TOKEN"}), json.dumps(claims), credentials.token)
        return ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts), ends

    return token
