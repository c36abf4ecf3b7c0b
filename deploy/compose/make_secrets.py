"""Makes what the composed factory keeps secret, once: ``python make_secrets.py FOLDER``. What is there stays as it is."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from pathlib import Path

__all__ = ["main", "write_once"]


def write_once(path: Path, content: str) -> str:
    """What the file holds, after writing ``content`` where there is none yet; its owner and the containers' group may read it."""
    if not path.exists():
        draft = path.with_suffix(".draft")
        draft.touch(mode=0o640)
        draft.write_text(content)
        draft.rename(path)
    return path.read_text()


def main(folder: Path) -> int:
    """Write each secret that is missing, and tell the person who started this how to sign in."""
    os.umask(0o027)
    password = write_once(folder / "postgres_password", secrets.token_urlsafe(24))
    address = f"airflow:{password}@postgres:5432"
    kafka = {"conn_type": "kafka", "extra": {"bootstrap.servers": "kafka:9092", "group.id": "airflow"}}
    postgres = {"conn_type": "postgres", "host": "postgres", "port": 5432, "login": "airflow", "password": password, "schema": "factory"}
    write_once(folder / "sql_alchemy_conn", f"postgresql+psycopg2://{address}/airflow")
    write_once(folder / "database_url", f"postgresql://{address}/factory")
    write_once(folder / "connections.json", json.dumps({"kafka_default": kafka, "postgres_default": postgres}))
    write_once(folder / "fernet_key", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    write_once(folder / "jwt_secret", secrets.token_hex(32))
    write_once(folder / "api_secret_key", secrets.token_hex(32))
    passwords = json.loads(write_once(folder / "passwords.json", json.dumps({"admin": secrets.token_urlsafe(12)})))
    grafana = write_once(folder / "grafana_password", secrets.token_urlsafe(12))
    print(f"Airflow: http://127.0.0.1:8080   user admin, password {passwords['admin']}")
    print(f"Grafana: http://127.0.0.1:3000   user admin, password {grafana}   (profile observability)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
