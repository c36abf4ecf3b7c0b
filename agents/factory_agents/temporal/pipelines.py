"""A pipeline's file: YAML or JSON into a ``PipelineSpec``, whole, so that it means the same on every worker."""

from __future__ import annotations

from typing import Any

import msgspec

from factory_agents.codecs import codec_ref
from factory_agents.contracts import is_text, load_contract, pack_contract, parse_conditions, split_name
from factory_agents.contracts.documents import Document, read_document
from factory_agents.errors import ConfigurationError, ContractError
from factory_agents.paths import candidates, resolve_path
from factory_agents.temporal.protocol import Compensation, PipelineSpec, StageSpec
from factory_agents.topics_file import declared_codec

__all__ = ["read_pipeline"]

_MOST_BYTES = 1_900_000
"""Of a pipeline with its contracts: a server takes 2 MiB at once, and a slice's window comes on top. Longer ones the SDK tries for ever."""


def read_pipeline(path: str) -> PipelineSpec:
    """The pipeline that a file describes, with the texts of its contracts put in; a contract that isn't here is left to the workers.

    Raises ConfigurationError, which names the line of a key that is not known.
    """
    try:
        return _pipeline(read_document(resolve_path(path, "pipeline file"), path))
    except ContractError as error:
        raise ConfigurationError(str(error)) from None


def _pipeline(document: Document) -> PipelineSpec:
    data = _with_codec(document, (), PipelineSpec, "codec", "topic")
    stages = data.get("stages")
    if isinstance(stages, list):
        data["stages"] = [_stage(document, ("stages", i)) for i in range(len(stages))]
    try:
        spec = msgspec.convert(data, PipelineSpec)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{document.name}: {error}") from None
    for stage in spec.stages:
        for name, conditions in (("fail_if", stage.fail_if), ("warn_if", stage.warn_if)):
            parse_conditions(conditions, f"{document.name}: stage {stage.name!r}: {name}")
    packed = msgspec.structs.replace(spec, stages=tuple(_packed(stage) for stage in spec.stages))
    size = len(msgspec.json.encode(packed))
    if size > _MOST_BYTES:
        raise ConfigurationError(
            f"{document.name}: expected at most {_MOST_BYTES:,} bytes with the texts of its contracts, got {size:,}; a Temporal server "
            "takes no more at once: shorten the contracts, or keep them where only the workers find them"
        )
    return packed


def _stage(document: Document, where: tuple[str | int, ...]) -> dict[str, Any]:
    data = _with_codec(document, where, StageSpec, "output_codec", "output_topic")
    if isinstance(undo := data.get("compensate"), dict):
        document.check_keys((*where, "compensate"), undo, Compensation.__struct_fields__)
    return data


def _with_codec(document: Document, where: tuple[str | int, ...], kind: type[msgspec.Struct], key: str, topic: str) -> dict[str, Any]:
    """What stands there, with its topic's codec: as it is named, else as the topics file declares it."""
    found = document.data
    for part in where:
        found = found[part]
    data = dict(document.mapping(where, found, "a mapping"))
    document.check_keys(where, data, kind.__struct_fields__)
    codec = codec_ref(data[key], f"{document.where((*where, key))}: {key}") if key in data else declared_codec(str(data.get(topic, "")))
    return {**data, key: None if codec is None else msgspec.to_builtins(codec)}


def _packed(stage: StageSpec) -> StageSpec:
    named = stage.params.get("contract")
    if not isinstance(named, str) or is_text(named) or not any(path.is_file() for path in candidates(split_name(named)[0])):
        return stage
    return msgspec.structs.replace(stage, params={**stage.params, "contract": pack_contract(load_contract(named))})
