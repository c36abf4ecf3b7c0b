"""A pipeline's file: YAML or JSON into a ``PipelineSpec``, whole, so that it means the same on every worker."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import msgspec

from factory_agents.contracts import is_text, load_contract, pack_contract, split_name
from factory_agents.contracts.documents import Document, read_document
from factory_agents.errors import ConfigurationError, ContractError
from factory_agents.paths import candidates, resolve_path
from factory_agents.temporal.protocol import PipelineSpec, StageSpec

__all__ = ["read_pipeline"]


def read_pipeline(path: str) -> PipelineSpec:
    """The pipeline that a file describes, with the texts of its contracts put in; a contract that isn't here is left to the workers.

    Raises ConfigurationError, which names the line of a key that is not known.
    """
    try:
        document = read_document(resolve_path(path, "pipeline file"), path)
    except ContractError as error:
        raise ConfigurationError(str(error)) from None
    if not isinstance(document.data, dict):
        raise ConfigurationError(f"{document.where(())}: expected a pipeline, a mapping, got {type(document.data).__name__}")
    _check_keys(document, (), document.data, PipelineSpec)
    stages = document.data.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list) else ()):
        if isinstance(stage, dict):
            _check_keys(document, ("stages", i), stage, StageSpec)
    try:
        spec = msgspec.convert(document.data, PipelineSpec)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return msgspec.structs.replace(spec, stages=tuple(_packed(stage) for stage in spec.stages))


def _check_keys(document: Document, where: tuple[str | int, ...], data: Mapping[str, Any], kind: type[msgspec.Struct]) -> None:
    for name in data:
        if name not in kind.__struct_fields__:
            near = difflib.get_close_matches(name, kind.__struct_fields__, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(kind.__struct_fields__)}"
            raise ConfigurationError(f"{document.where((*where, name), key=True)}: unknown key {name!r}; {hint}")


def _packed(stage: StageSpec) -> StageSpec:
    named = stage.params.get("contract")
    if not isinstance(named, str) or is_text(named) or not any(path.is_file() for path in candidates(split_name(named)[0])):
        return stage
    return msgspec.structs.replace(stage, params={**stage.params, "contract": pack_contract(load_contract(named))})
