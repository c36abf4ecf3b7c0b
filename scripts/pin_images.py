"""``make pin-images``: writes the digests of the images' tags into docker-compose.yaml and the Dockerfile, as the registries give them now.

It asks with ``crane``, or with Docker's ``buildx``, whichever is there (FACTORY_CRANE names another crane). Nothing is written unless
every image has answered.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["RefusedError", "asker", "main", "pinned"]

ROOT = Path(__file__).resolve().parent.parent
FILES = ("docker-compose.yaml", "Dockerfile")
_IMAGE = re.compile(r"(?m)^(\s*image: |ARG PYTHON_IMAGE=)([^\s@]+)(@sha256:[0-9a-f]{64})?(?=\s|$)")
_OURS = re.compile(r"^(factory-agents|airflow-factory):")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PATIENCE = 120.0


class RefusedError(Exception):
    """What could not be pinned, and what to do."""


def pinned(text: str, digest: Callable[[str], str]) -> str:
    """A file's text with the digest of every image that is not built here."""

    def one(found: re.Match[str]) -> str:
        start, image = found[1], found[2]
        return found[0] if _OURS.match(image) else f"{start}{image}@{digest(image)}"

    return _IMAGE.sub(one, text)


def asker() -> Callable[[str], str]:
    """Asks a registry for the digest of an image's tag; raises RefusedError where nothing here can, and for an image without an answer."""
    crane = os.environ.get("FACTORY_CRANE") or shutil.which("crane")
    if crane:
        command = [crane, "digest"]
    elif shutil.which("docker"):
        command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}"]
    else:
        raise RefusedError("expected crane or docker on the PATH, to ask the registries; found neither")

    def digest(image: str) -> str:
        try:
            done = subprocess.run([*command, image], capture_output=True, text=True, check=False, timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise RefusedError(f"{image}: its registry did not answer in {_PATIENCE:.0f} s; nothing was changed") from None
        answer = done.stdout.strip()
        if done.returncode != 0 or not _DIGEST.fullmatch(answer):
            why = (done.stderr.strip() or answer or "no answer").splitlines()[-1]
            raise RefusedError(f"{image}: its registry gave no digest ({why}); nothing was changed")
        return answer

    return digest


def main(files: Sequence[Path]) -> int:
    """Pin the images of these files: all of them, or none."""
    try:
        ask = asker()
        texts = {file: file.read_text() for file in files}
        wanted = {file: pinned(text, ask) for file, text in texts.items()}
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for file, text in wanted.items():
        if text != texts[file]:
            file.write_text(text)
        print(f"{file.name}: {len(_DIGEST.findall(text))} images with a digest")
    return 0


if __name__ == "__main__":
    sys.exit(main([ROOT / name for name in FILES]))
