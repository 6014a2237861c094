"""Tensors of a run that are spread over processes: made whole for a file, and cut again for any number of processes."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor

from deepwell.errors import TrainingError


class World(Protocol):
    """The processes that save together, as ``lm.parallel`` has them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def barrier(self) -> None:
        """Wait until every process is here."""


class Alone:
    rank, size = 0, 1

    def barrier(self) -> None:
        """Nobody to wait for."""


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a DTensor; for the latter every process is needed."""
    own: Any = tensor.detach()
    full: Tensor = own.full_tensor() if hasattr(own, "full_tensor") else own
    return full


@torch.no_grad()
def copy_into(target: Tensor, full: Tensor, name: str) -> None:
    """Copy a whole tensor into one of a network or an optimizer; into a DTensor the part that this process holds.

    Needs no other process: each cuts its own part out of its own map of the file.

    Raises:
        TrainingError: Shape or dtype do not fit; names the tensor and both.
    """
    if target.shape != full.shape or target.dtype != full.dtype:
        raise TrainingError(
            f"{name} is {_described(full)} in the checkpoint and {_described(target)} in this run",
            hint="go on with the recipe that the checkpoint was made with",
        )
    part, own = full, cast(Any, target)
    if hasattr(target, "placements"):
        mesh = own.device_mesh
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            return
        for axis, placement in enumerate(own.placements):
            if hasattr(placement, "dim"):
                # Also right for a dimension that two axes of the mesh split, in either order (_StridedShard).
                parts, _ = placement._split_tensor(part, mesh.size(axis), with_padding=False, contiguous=False)
                part = parts[coordinate[axis]]
            elif not placement.is_replicate():
                raise TrainingError(f"{name} is spread as {placement}, which cannot be loaded")
        target = own.to_local()
    target.copy_(part)


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
