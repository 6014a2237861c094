"""What a model loses when its weights are rounded to 8 or 4 bits, matrix by matrix.

    found = quantisation("smollm2-135m-instruct", 4)
    found.error.snr_db                      # all matrices together
    found.by_part["attention"].snr_db
    found.worst(5)                          # the matrices that lose most of themselves

What is rounded is what the compiled engine rounds. The head, and so an embedding that is the head too, keeps 8 bits in
either case: it is where rare tokens are told apart, and files of 4 bits keep more for it too. Norms, biases, routers,
the up-projection of a latent (small matrices, one a head) and an embedding that is only looked up are not rounded. A
network that was read from a Q4_0, Q4_1 or Q8_0 file loses nothing at its own bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from deepwell.errors import UsageError
from deepwell.lm.model.accounting import Weight, weights_of
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.precision.integers import GROUP, QuantisationError, QuantisedMatrix, error_of, quantise

WORDS = {"int8": 8, "int4": 4}
"""Words for weights of integers, and their bits."""


@dataclass(frozen=True, slots=True)
class MatrixLoss:
    """One matrix, or the stacked matrices of a layer's experts."""

    name: str
    part: str
    """One of ``accounting.PARTS``."""
    bits: int
    size: int
    """Bytes, scales included."""
    error: QuantisationError


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A whole network."""

    bits: int
    matrices: tuple[MatrixLoss, ...]
    kept: int
    """Bytes of what is not rounded, in bf16."""

    @property
    def error(self) -> QuantisationError:
        """Of all matrices together."""
        return sum((one.error for one in self.matrices), QuantisationError())

    @property
    def bytes(self) -> int:
        """Of all weights in memory."""
        return sum(one.size for one in self.matrices) + self.kept

    @property
    def by_part(self) -> dict[str, QuantisationError]:
        """In the network's order."""
        sums: dict[str, QuantisationError] = {}
        for one in self.matrices:
            sums[one.part] = sums.get(one.part, QuantisationError()) + one.error
        return sums

    def worst(self, count: int) -> list[MatrixLoss]:
        """The matrices that lose most, relative to their own size; those that lose nothing are not among them."""
        losing = [one for one in self.matrices if one.error.lost]
        return sorted(losing, key=lambda one: -one.error.relative)[:count]


def bits_for(weight: Weight, bits: int) -> int | None:
    """Bits of one weight of a network that is rounded to ``bits``; None for what is not rounded."""
    looked_up = weight.name == "embed_tokens.weight" and not weight.active
    if len(weight.shape) < 2 or looked_up or weight.name.endswith(("mlp.gate.weight", "kv_b_proj.weight")):
        return None
    return 8 if weight.name in {"embed_tokens.weight", "lm_head.weight"} else bits


def quantisation(
    name_or_path: str, bits: int, *, on_progress: Callable[[int, int], None] | None = None
) -> Quantisation:
    """Read a model and round it; nothing is written.

    Args:
        name_or_path: A name as in ``deepwell models list``, a folder with a checkpoint, or a GGUF file.
        bits: 8 or 4.
        on_progress: Called with the weights that are rounded and the weights there are.

    Raises:
        MissingModelError, UsageError: There is no such model, or it is a shape without weights.
        ModelFileError, ModelConfigError: Its files cannot be read.
        ModelFormatError: Its weights are not finite.
    """
    from deepwell.lm.weights.inspecting import inspect_model

    found = inspect_model(name_or_path)
    if found.path is None:
        raise UsageError(
            f"{name_or_path} is a shape: there are no weights to round", hint="give a model of: deepwell models list"
        )
    # As the file has them if that is a float of 16 bits; integers and FP8 are exact only in float32.
    dtype = {"BF16": torch.bfloat16, "F16": torch.float16}.get(next(iter(found.bytes_by_kind), ""), torch.float32)
    if found.source == "gguf":
        from deepwell.lm.weights.gguf.container import open_gguf
        from deepwell.lm.weights.gguf.reading import read_network

        network = read_network(open_gguf(found.path), dtype=dtype)
    else:
        from deepwell.lm.weights.reading import read_checkpoint

        network = read_checkpoint(found.path, dtype=dtype)
    return quantisation_of(network, bits, on_progress=on_progress)


@torch.no_grad()
def quantisation_of(
    network: Transformer, bits: int, *, on_progress: Callable[[int, int], None] | None = None
) -> Quantisation:
    """As ``quantisation``, of a network in memory."""
    weights = list(weights_of(network.config))
    total, done = sum(weight.size for weight in weights), 0
    matrices, kept = [], 0
    for weight in weights:
        own = bits_for(weight, bits)
        if own is None:
            kept += weight.stored_bytes("bf16")
        else:
            matrix = network.get_parameter(weight.name).flatten(0, -2)
            rounded = padded_quantise(matrix, own, where=weight.name)
            padded = F.pad(matrix, (0, rounded.shape[1] - matrix.shape[1]))
            matrices.append(MatrixLoss(weight.name, weight.part, own, rounded.bytes, error_of(padded, rounded)))
        done += weight.size
        if on_progress is not None:
            on_progress(done, total)
    return Quantisation(bits, tuple(matrices), kept)


def padded_quantise(matrix: torch.Tensor, bits: int, *, where: str) -> QuantisedMatrix:
    """``quantise`` for rows [out, in] of any width: zeros are added up to the next multiple of 32."""
    return quantise(F.pad(matrix, (0, -matrix.shape[1] % GROUP)), bits, where=where)


@torch.no_grad()
def round_in_place(network: Transformer, bits: int) -> None:
    """Give a network the weights that it has after rounding, in its own dtype: what it costs without what it saves."""
    for weight in weights_of(network.config):
        own = bits_for(weight, bits)
        if own is not None:
            matrix = network.get_parameter(weight.name)
            rows = matrix.flatten(0, -2)
            rounded = padded_quantise(rows, own, where=weight.name).dequantised(matrix.dtype)
            matrix.copy_(rounded[:, : rows.shape[1]].view(matrix.shape))
