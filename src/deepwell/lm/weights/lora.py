"""Low-rank adapters (LoRA, arXiv 2106.09685): a few trainable columns beside matrices that stay as they are.

    config = LoraConfig(rank=16, alpha=32, targets=("q_b_proj", "kv_b_proj", "o_proj"))
    add_lora(model, config)                 # what the model computes is unchanged: B starts at zero
    ...                                     # train; only the adapter's parameters take gradients
    save_adapter(model, "my-adapter")       # deepwell.lm.weights.adapter: PEFT's files
    merge_lora(model)                       # fold it into the weights; the model is plain again

A layer computes ``W x + (alpha / rank) B A x``. Targets are named as in the model's files. Where memory holds two of a
file's matrices as rows of one (``k_proj`` and ``v_proj`` of Llama are ``kv_a_proj_with_mqa`` here), each keeps an
adapter of its own: their A are stacked, and each B reaches its own rows. So nothing is lost on the way to a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepwell.errors import UsageError
from deepwell.lm.model.products import Linear, at_least_float32, linear
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.names import layout
from deepwell.lm.weights.rows import RotaryRows

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """How large an adapter is and where it sits.

    Raises:
        UsageError: A rank below 1, a dropout outside [0, 1), or no targets.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names of matrices as in the model's files, or endings of them: ``q_proj``, ``shared_experts.up_proj``; or
    ``all-linear``, every matrix but the head and the experts."""
    dropout: float = 0.0
    """On what enters A, in training only."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"rank is {self.rank}; an adapter has at least 1")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}; it is at least 0 and below 1")
        if not self.targets:
            raise UsageError("an adapter needs targets", hint=f"name matrices such as q_proj, or {ALL_LINEAR}")


@dataclass(frozen=True, slots=True)
class LoraPart:
    """One matrix of a file that an adapter sits on: its name there, its rows in memory, and rope's among them."""

    file_name: str
    rows: tuple[int, int]
    rotary: RotaryRows | None = None


class LoraLinear(Linear):
    """A linear layer with an adapter. The base weight keeps its name in the state dict.

    ``lora_a`` [parts * rank, in] and ``lora_b`` [rows of all parts, rank]; ``weight`` as an attribute is the adapted
    matrix, for code that multiplies by it in another order (absorbed attention, the fused loss).
    """

    def __init__(self, base: Linear, parts: tuple[LoraPart, ...], rank: int, scaling: float, dropout: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        # Past register_parameter, which sees the property below and refuses the name.
        self._parameters["weight"] = base._parameters["weight"]
        self.register_parameter("bias", base.bias)
        self.parts, self.rank, self.scaling = tuple(sorted(parts, key=lambda part: part.rows)), rank, scaling
        rows = sum(end - begin for begin, end in (part.rows for part in parts))
        self.lora_a = nn.Parameter(base.weight.new_empty(len(parts) * rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.train(base.training)  # a layer put into an evaluating model does not drop

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The base matrix and the adapter together, [out, in] in the base's dtype."""
        return (at_least_float32(self.base_weight) + self.difference()).to(self.base_weight.dtype)

    @property
    def base_weight(self) -> nn.Parameter:
        """The matrix under the adapter."""
        base = self._parameters["weight"]
        assert base is not None
        return base

    def pieces(self) -> Iterator[tuple[LoraPart, Tensor, Tensor]]:
        """Each part with its A [rank, in] and its B [rows, rank]."""
        a = self.lora_a.split(self.rank)
        b = self.lora_b.split([end - begin for begin, end in (part.rows for part in self.parts)])
        yield from zip(self.parts, a, b, strict=True)

    def difference(self) -> Tensor:
        """What the adapter adds to the matrix, [out, in] float32 or wider."""
        wide = ((part, at_least_float32(b) @ at_least_float32(a)) for part, a, b in self.pieces())
        return self.scaling * self._placed(wide)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., in] -> [..., out]."""
        low = linear(self.dropout(x), self.lora_a)
        return self.product(x, self.base_weight, self.bias) + linear(low, self._columns())

    def _columns(self) -> Tensor:
        """All B scaled, each at its own rows and at its own columns of the stacked A: [out, parts * rank].

        So what is stacked, padded and scaled is a few columns, and never activations.
        """
        behind = self.lora_a.shape[0] - self.rank
        wide = (
            (part, b if not behind else F.pad(b, (at * self.rank, behind - at * self.rank)))
            for at, (part, _, b) in enumerate(self.pieces())
        )
        return self.scaling * self._placed(wide)

    def _placed(self, pieces: Iterator[tuple[LoraPart, Tensor]]) -> Tensor:
        """The pieces at their rows, zeros between them: [out, ...]."""
        found: list[Tensor] = []
        at = 0
        for part, piece in pieces:
            begin, end = part.rows
            if begin > at:
                found.append(piece.new_zeros(begin - at, piece.shape[1]))
            found.append(piece)
            at = end
        if at < self.out_features:
            found.append(found[-1].new_zeros(self.out_features - at, found[-1].shape[1]))
        return found[0] if len(found) == 1 else torch.cat(found)


def add_lora(model: Transformer, config: LoraConfig) -> None:
    """Put an adapter beside every target of the model, in place, and freeze everything else.

    Raises:
        UsageError: A target is no matrix of this model, or one that takes no adapter: experts (they are stacked in one
            tensor), or a head that is tied to the embedding. Or the model has an adapter already.
    """
    places = adaptable(model)
    for target in config.targets:
        if target != ALL_LINEAR and not any(
            _names(part, memory, target) for memory, parts in places.items() for part in parts
        ):
            raise _unknown_target(model, target, places)
    chosen = {}
    for memory, parts in places.items():
        wanted = tuple(part for part in parts if any(_wanted(part, memory, target) for target in config.targets))
        if wanted:
            chosen[memory] = wanted
    attach(model, chosen, config.rank, config.alpha / config.rank, config.dropout)


def attach(
    model: Transformer, parts: dict[str, tuple[LoraPart, ...]], rank: int, scaling: float, dropout: float = 0.0
) -> None:
    """Replace linear layers, by name in memory, with adapted ones; freeze the rest. What ``add_lora`` ends with.

    Raises:
        UsageError: The model has an adapter already.
    """
    if has_lora(model):
        raise UsageError("the model has an adapter already", hint="merge it (merge_lora) or take it off (remove_lora)")
    model.requires_grad_(False)
    for memory, wanted in parts.items():
        base = model.get_submodule(memory)
        assert isinstance(base, Linear)
        _replace(model, memory, LoraLinear(base, wanted, rank, scaling, dropout))


def merge_lora(model: Transformer) -> None:
    """Add the adapter to the weights, in place and in float32; the model has none afterwards, and trains as a whole."""
    for memory, layer in lora_layers(model):
        with torch.no_grad():
            layer.base_weight.copy_(layer.weight)
        _plain(model, memory, layer)
    model.requires_grad_(True)


def remove_lora(model: Transformer) -> None:
    """Take the adapter off, in place; the weights are the base's, and train as a whole."""
    for memory, layer in lora_layers(model):
        _plain(model, memory, layer)
    model.requires_grad_(True)


def lora_layers(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    """The adapted layers with their names in memory."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]


def has_lora(model: nn.Module) -> bool:
    """Whether the model has an adapter that is not merged."""
    return any(isinstance(module, LoraLinear) for module in model.modules())


def adaptable(model: Transformer) -> dict[str, tuple[LoraPart, ...]]:
    """Every linear layer that takes an adapter, by its name in memory, with the matrices of a file that it holds."""
    found: dict[str, tuple[LoraPart, ...]] = {}
    for tensor in layout(model.config):
        if tensor.role != "part" or tensor.expert is not None or not tensor.into.endswith(".weight"):
            continue
        memory = tensor.into.removesuffix(".weight")
        module = model.get_submodule(memory)
        if isinstance(module, Linear):
            rows = tensor.rows or (0, module.out_features)
            part = LoraPart(tensor.name.removesuffix(".weight"), rows, tensor.rotary)
            found[memory] = (*found.get(memory, ()), part)
    return found


def _names(part: LoraPart, memory: str, target: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in (part.file_name, memory))


def _wanted(part: LoraPart, memory: str, target: str) -> bool:
    return _names(part, memory, target) or (target == ALL_LINEAR and memory != "lm_head")


def _unknown_target(model: Transformer, target: str, places: dict[str, tuple[LoraPart, ...]]) -> UsageError:
    known = ", ".join(sorted({part.file_name.rpartition(".")[2] for parts in places.values() for part in parts}))
    if target == "lm_head" and model.config.tie_word_embeddings:
        return UsageError("lm_head takes no adapter: it is tied to the embedding, which would not follow")
    if "experts" in target.split(".") or target == "gate_up_proj":
        return UsageError(
            f"{target} takes no adapter: experts are stacked in one tensor", hint=f"adapt others: {known}"
        )
    return UsageError(f"no matrix of this model is called {target!r}", hint=f"those that take an adapter: {known}")


def _plain(model: nn.Module, memory: str, layer: LoraLinear) -> None:
    base = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    base.weight = layer.base_weight
    base.bias = layer.bias
    base.train(layer.training)
    _replace(model, memory, base)


def _replace(model: nn.Module, memory: str, module: nn.Module) -> None:
    parent, _, name = memory.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
