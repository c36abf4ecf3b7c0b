"""A small classifier of changes of source code: how `dags/nightly_model.py` trains it, and the agent that runs it."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from factory_agents import agent


def folder() -> Path:
    """Where models lie: FACTORY_MODELS, which the workers and the agents share."""
    return Path(os.environ.get("FACTORY_MODELS", "models")).expanduser().resolve()


def train(labelled: Iterable[dict[str, Any]]) -> str:
    """Learn from events whose `answer.kind` says what they are; returns the model's name.

    The name is made of what the model was trained from: the same events and the same scikit-learn give the same name.
    """
    import joblib
    import sklearn
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = sorted((_text(event), str(event["answer"]["kind"])) for event in labelled)
    if len({kind for _, kind in rows}) < 2:
        raise ValueError(f"expected events of two kinds at least, got {len(rows)} events of {len({kind for _, kind in rows})}")
    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5))
    model = make_pipeline(words, LogisticRegression(C=20.0, class_weight="balanced", max_iter=1000))
    model.fit([text for text, _ in rows], [kind for _, kind in rows])
    name = "kinds-" + hashlib.sha256(repr((sklearn.__version__, rows)).encode()).hexdigest()[:12]
    path = folder() / f"{name}.joblib"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    joblib.dump(model, unfinished)
    unfinished.replace(path)
    return name


@agent(version="1", batch=True)
def classify(events: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """Add `kind`. A batch is one call of the model, which each process loads once."""
    kinds = _load(model).predict([_text(event) for event in events])
    return [event | {"kind": str(kind)} for event, kind in zip(events, kinds, strict=True)]


def _text(event: dict[str, Any]) -> str:
    return str(event.get("path") or "").lower()


@functools.cache
def _load(name: str) -> Any:
    import joblib

    if Path(name).name != name:
        raise ValueError(f"model {name!r}: expected the name of a file in {folder()}, without a folder")
    return joblib.load(folder() / f"{name}.joblib")  # it runs what is in the file: keep the folder to those who may deploy code
