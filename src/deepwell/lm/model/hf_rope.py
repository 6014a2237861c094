"""Rotary positions in a ``config.json``, in its older and its newer spelling.

Older: ``rope_theta`` beside ``rope_scaling: {type or rope_type, factor, ...}``. Since transformers 5:
``rope_parameters: {rope_type, rope_theta, factor, ...}``. Where both are given they must say the same.
"""

from __future__ import annotations

from typing import Any, cast

from deepwell.lm.model.config import ModelConfig, RopeKind, RopeScaling
from deepwell.lm.model.hf_fields import Fields


def read_rope(f: Fields, positions: int) -> tuple[float, RopeScaling | None]:
    """``rope_theta`` and the scaling of a config's fields.

    Args:
        f: The fields of the whole file.
        positions: ``max_position_embeddings``, from where a scaling that does not say so is taken to start.

    Raises:
        ModelConfigError: A kind of rope that is not supported, or two fields that disagree.
    """
    f.only("partial_rotary_factor", 1, why="rope over a part of the dimensions is not supported")
    thetas = {"rope_theta": f.number("rope_theta", None)}
    scalings: dict[str, RopeScaling | None] = {}
    for name in ("rope_scaling", "rope_parameters"):
        inner = f.inner(name)
        if inner is not None:
            thetas[f"{name}.rope_theta"] = inner.number("rope_theta", None)
            scalings[name] = _scaling(inner, positions)
    given = {name: theta for name, theta in thetas.items() if theta is not None}
    if len(set(given.values())) > 1:
        f.wrong("rope_theta", f"it is not the same everywhere: {given}")
    if len(scalings) == 2 and scalings["rope_scaling"] != scalings["rope_parameters"]:
        f.clash("rope_scaling", "rope_parameters", "one is the older spelling of the other")
    return next(iter(given.values()), 10_000.0), next(iter(scalings.values()), None)


def _scaling(f: Fields, positions: int) -> RopeScaling | None:
    kind = f.text("rope_type", f.text("type", "default"))
    if kind != f.text("type", kind):
        f.clash("rope_type", "type", "one is the older spelling of the other")
    f.only("partial_rotary_factor", 1, why="rope over a part of the dimensions is not supported")
    if kind == "default":
        return None
    if kind not in {"yarn", "llama3", "linear"}:
        f.wrong("rope_type" if "rope_type" in f else "type", "supported are default, linear, llama3 and yarn")
    more: dict[str, Any] = {}
    if kind != "linear":
        more["original_max_position_embeddings"] = f.whole("original_max_position_embeddings", positions)
    if kind == "yarn":
        f.only("truncate", True, why="YaRN here rounds its range to whole dimensions, as DeepSeek's does")
        more |= {name: f.number(name, default) for name, default in _YARN.items()}
        more["attention_factor"] = f.number("attention_factor", None)
    if kind == "llama3":
        more |= {name: f.number(name) for name in ("low_freq_factor", "high_freq_factor")}
    return RopeScaling(kind=cast(RopeKind, kind), factor=f.number("factor"), **more)


_YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.0, "mscale_all_dim": 0.0}


def write_rope(c: ModelConfig) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` as every version of transformers, and DeepSeek's own code, reads them."""
    s = c.rope_scaling
    if s is None:
        return {"rope_theta": c.rope_theta, "rope_scaling": None}
    scaling: dict[str, Any] = {"type": s.kind, "rope_type": s.kind, "factor": s.factor}
    if s.kind != "linear":
        scaling["original_max_position_embeddings"] = s.original_max_position_embeddings
    if s.kind == "yarn":
        scaling |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow}
        # Readers differ on a zero; absent, all agree.
        scaling |= {name: getattr(s, name) for name in ("mscale", "mscale_all_dim") if getattr(s, name)}
        if s.attention_factor is not None:
            scaling["attention_factor"] = s.attention_factor
    if s.kind == "llama3":
        scaling |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
    return {"rope_theta": c.rope_theta, "rope_scaling": scaling}
