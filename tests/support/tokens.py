"""OAUTHBEARER tokens as a deployment's ``oauth_cb`` gives them: unsigned ones, which a broker without a validator takes."""

from __future__ import annotations

import base64
import json
import time


def unsecured(config: str) -> tuple[str, float]:
    """An unsigned token for an hour, and when it ends."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": config or "factory", "iat": now, "exp": now + 3600})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + ".", now + 3600
