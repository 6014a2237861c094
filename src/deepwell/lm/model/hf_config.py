"""``config.json`` to ``ModelConfig`` and back.

Stock types (``hf_stock``) are ``deepseek_v2``, ``deepseek_v3``, ``llama``, ``mistral`` and ``qwen2``.
A config is written as the first stock type that says all of it. Whether it does is not a list of rules but a test: what
was written is read again and must be equal. What no stock type can say is written as ``model_type: "deepwell"``, with
every field under our own name.

Rope is written in the older style (``rope_theta``, ``rope_scaling``), which transformers 5 reads too; both are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from deepwell.errors import ModelConfigError
from deepwell.lm.model.config import DynamicGating, ModelConfig, RopeScaling
from deepwell.lm.model.hf_fields import Fields
from deepwell.lm.model.hf_stock import READERS, WRITERS

_NOT_OF_THE_NETWORK = {
    "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "quantization_config", "auto_map",
    "use_cache", "_name_or_path",
}  # fmt: skip


def read(mapping: Mapping[str, Any], *, where: str = "config.json") -> ModelConfig:
    """The config that the content of a ``config.json`` describes.

    ``quantization_config``, dtypes and other fields that concern files or training are passed over.

    Args:
        mapping: The parsed JSON object.
        where: What messages call it, usually the path of the file.

    Raises:
        ModelConfigError: The architecture is unknown, a field is missing or of the wrong type, two disagree, or one
            asks for something that this network does not do. The message names file, field and value.
    """
    fields = Fields(mapping, where=where)
    kind = fields.text("model_type")
    if kind not in _READERS:
        fields.wrong("model_type", f"known are {', '.join(sorted(_READERS))}")
    try:
        return _READERS[kind](fields)
    except ModelConfigError as error:
        if error.message.startswith(where):
            raise
        raise ModelConfigError(f"{where}: {error.message}", hint=error.hint) from error


def write(config: ModelConfig) -> dict[str, Any]:
    """The content of a ``config.json`` that stock tools read, or of our own type where none says it all.

    ``read(write(config)) == config``, for every config. The precision of the weights is not in it: who writes the file
    adds ``torch_dtype``.
    """
    for writer in WRITERS:
        written = writer(config)
        if written is not None and _says(written, config):
            return written
    own = {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {"architectures": ["DeepwellForCausalLM"], "model_type": "deepwell", **own}


def _says(written: Mapping[str, Any], config: ModelConfig) -> bool:
    try:
        return read(written) == config
    except ModelConfigError:
        return False


def _read_deepwell(f: Fields) -> ModelConfig:
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    unknown = sorted(set(f.mapping) - known - _NOT_OF_THE_NETWORK)
    if unknown:
        f.wrong(unknown[0], "no field of a deepwell network has that name; a newer Deepwell may know it")
    found = _own(ModelConfig, f)
    scaling, gating = f.inner("rope_scaling"), f.inner("dynamic_gating")
    if scaling is not None:
        found["rope_scaling"] = RopeScaling(**_own(RopeScaling, scaling))
    if gating is not None:
        found["dynamic_gating"] = DynamicGating(**_own(DynamicGating, gating))
    return ModelConfig(**found)


def _own(record: type[ModelConfig | RopeScaling | DynamicGating], f: Fields) -> dict[str, Any]:
    """The fields of a record that are given, each read by its annotation."""
    readers: dict[str, Callable[[str], Any]] = {
        "int": f.whole, "int | None": f.whole, "float": f.number, "float | None": f.number, "bool": f.flag,
        "str": f.text, "ScoringFunction": f.text, "TopkMethod": f.text, "RopeKind": f.text,
        "tuple[float, ...] | None": f.numbers, "tuple[int, ...]": f.tokens,
    }  # fmt: skip
    found = {}
    for field in dataclasses.fields(record):
        if field.name in f and field.type in readers:
            found[field.name] = readers[field.type](field.name)
        elif field.default is dataclasses.MISSING and field.name not in f:
            raise ModelConfigError(f"{f.where}: {f.prefix}{field.name} is missing")
    return found


def _plain(value: Any) -> Any:
    """A field as JSON spells it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value


_READERS = READERS | {"deepwell": _read_deepwell}
