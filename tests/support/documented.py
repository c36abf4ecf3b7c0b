"""Code of the documents, so that what they show is what is tested."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["documented"]

DOCS = Path(__file__).resolve().parents[2] / "docs"


def documented(page: str, name: str) -> str:
    """The text of the block ``file=name`` on a page below ``docs/``."""
    (text,) = re.findall(rf"^```python file={re.escape(name)}\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    return str(text)
