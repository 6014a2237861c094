"""Puts tensors into a network, one after the other, and hands it out only when it is whole.

Every reader of files (safetensors, GGUF) ends here. The network is built on the meta device, so it costs nothing until
its tensors come; each tensor gets its memory when its first part arrives and is converted to the network's dtype while
it is copied in. So reading holds the network, what has just been read, and nothing more.

    filling = Filling(config, dtype=torch.bfloat16, device="cpu")
    filling.put("norm.weight", tensor, source="model.safetensors")
    filling.put("layers.3.mlp.experts.down_proj", tensor, source="model.safetensors", expert=7)
    model = filling.finish(source="the folder my-model")

Each part of each tensor is filled exactly once: twice is an error at ``put``, never at ``finish``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepwell.errors import ModelFileError
from deepwell.lm.model.config import ModelConfig

if TYPE_CHECKING:
    from deepwell.lm.model.transformer import Transformer

_SHOWN = 4
"""How many missing tensors a message names; a model of the wrong kind lacks hundreds."""


class Filling:
    """A network that is being filled.

    Args:
        config: What network.
        dtype: Of its parameters. What a network keeps in float32 (the router's balancing bias) stays so.
        device: Where the tensors go.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
        from deepwell.lm.model.transformer import Transformer

        self._model = Transformer(config, device="meta", dtype=dtype)
        self._device = torch.device(device)
        kept = self._model.state_dict().keys()
        self._shapes: dict[str, Tensor] = dict(self._model.named_parameters())
        self._shapes |= {name: buffer for name, buffer in self._model.named_buffers() if name in kept}
        self._tensors: dict[str, Tensor] = {}
        # Ranges of rows by expert; None where the tensor is filled as a whole.
        self._filled: dict[str, dict[int | None, list[tuple[int, int]]]] = {}

    @property
    def device(self) -> torch.device:
        """Where the network's tensors are."""
        return self._device

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor that the network has, by its in-memory name."""
        return tuple(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole shape of a tensor of the network. Raises ``KeyError`` for a name that it does not have."""
        return tuple(self._shapes[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which the network keeps a tensor. Raises ``KeyError`` for a name that it does not have."""
        return self._shapes[name].dtype

    def tensor(self, name: str) -> Tensor:
        """What has been put so far; parts that have not come hold anything. Raises ``KeyError`` if nothing has."""
        return self._tensors[name]

    def put(
        self, name: str, tensor: Tensor, *, source: str, expert: int | None = None, rows: slice | None = None
    ) -> None:
        """Copy a tensor, or a part of one, to its place.

        Args:
            name: The in-memory name.
            tensor: The values, in any dtype, on any device.
            source: The file (and the tensor's name there), for messages.
            expert: Which slice of a tensor that stacks all experts.
            rows: Which rows (of that slice), with both ends given; None: all.

        Raises:
            ModelFileError: The network has no such tensor, the shape does not fit, or this part was filled before.
        """
        target = self.claim(name, tuple(tensor.shape), source=source, expert=expert, rows=rows)
        target.copy_(tensor)

    def claim(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        source: str,
        expert: int | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        """The memory of a tensor or a part of one, for the caller to fill. Arguments and errors as for ``put``.

        It counts as filled from now on, so a caller that fails to fill it must not ``finish``.
        """
        if name not in self._shapes:
            raise ModelFileError(f"{source}: a network of this config has no tensor {name}", hint=_CHECK_CONFIG)
        whole = self.shape(name)
        if expert is not None and not 0 <= expert < whole[0]:
            raise ModelFileError(f"{source}: expert {expert} of {name}, and there are {whole[0]}", hint=_CHECK_CONFIG)
        slot = whole[1:] if expert is not None else whole
        begin, end = (0, slot[0]) if rows is None else (rows.start, rows.stop)
        fits = 0 <= begin < end <= slot[0]
        if not fits or shape != (end - begin, *slot[1:]):
            part = f"rows {begin} to {end} of " if rows is not None else ""
            raise ModelFileError(
                f"{source}: shape {list(shape)} does not fit {part}{name} {list(slot)}", hint=_CHECK_CONFIG
            )
        parts = self._filled.setdefault(name, {expert: []})
        filled = parts.setdefault(expert, [])
        if (None in parts and len(parts) > 1) or any(begin < stop and start < end for start, stop in filled):
            raise ModelFileError(f"{source}: {name} is there twice", hint="keep one of the files that hold it")
        filled.append((begin, end))
        if name not in self._tensors:
            self._tensors[name] = torch.empty(whole, dtype=self._shapes[name].dtype, device=self._device)
        target = self._tensors[name] if expert is None else self._tensors[name][expert]
        return target[begin:end]

    def missing(self) -> tuple[str, ...]:
        """What is not filled yet: names, with the first missing expert or row where a part is there."""
        return tuple(gap for name in self._shapes if (gap := self._gap(name)))

    def finish(self, *, source: str) -> Transformer:
        """The network, every tensor in its place, in evaluation mode.

        Raises:
            ModelFileError: Some tensors never came; the message names the first of them.
        """
        missing = self.missing()
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise ModelFileError(
                f"{source}: tensors are missing: {', '.join(missing[:_SHOWN])}{more}",
                hint="fetch the file again, or check that config.json belongs to it",
            )
        model = self._model
        model.load_state_dict(self._tensors, assign=True, strict=False)
        self._tensors = {}
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:  # a counter, which files do not hold
                    setattr(module, name, torch.zeros_like(buffer, device=self._device))
        return model.eval()

    def _gap(self, name: str) -> str:
        """The name and the first part that is missing; empty when the tensor is whole."""
        shape = self.shape(name)
        parts = self._filled.get(name)
        if parts is None:
            return name
        if None in parts:
            row = _first_gap(parts[None], shape[0])
            return "" if row is None else f"{name} (from row {row})"
        for expert in range(shape[0]):
            row = _first_gap(parts.get(expert, []), shape[1])
            if row is not None:
                return f"{name} (expert {expert}, from row {row})"
        return ""


_CHECK_CONFIG = "check that config.json belongs to these weights"


def _first_gap(filled: list[tuple[int, int]], rows: int) -> int | None:
    """The first row that no range covers; ranges never overlap."""
    reached = 0
    for begin, end in sorted(filled):
        if begin > reached:
            break
        reached = end
    return reached if reached < rows else None
