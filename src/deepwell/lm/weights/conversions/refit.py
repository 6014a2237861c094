"""An output matrix fitted again by least squares, behind what was changed.

When the inputs of a matrix W have changed (half of them are left out, say), the matrix that then comes nearest to what
was there before is a least-squares problem with one solution: min |Y - Z W'|^2 + |(W - W0) l|^2. No gradient is
followed. The term with l keeps W near W0 where the text says little.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LeastSquares"]


class LeastSquares:
    """Collects inputs and what they should give, a few rows at a time, then solves.

    Args:
        start: [out, in], the matrix that is there.
    """

    def __init__(self, start: Tensor) -> None:
        self._start = start.detach().float()
        width = start.shape[1]
        self._gram = torch.zeros(width, width, dtype=torch.float32, device=start.device)
        self._cross = torch.zeros(width, start.shape[0], dtype=torch.float32, device=start.device)

    def add(self, inputs: Tensor, wanted: Tensor) -> None:
        """``inputs`` [N, in] should give ``wanted`` [N, out]."""
        rows = inputs.float()
        self._gram.addmm_(rows.T, rows)
        self._cross.addmm_(rows.T, wanted.float() - rows @ self._start.T)

    def solve(self, ridge: float = 1e-2) -> Tensor:
        """The matrix [out, in] in float32; ``ridge`` is l squared as a share of the inputs' mean square."""
        gram = self._gram.double()
        lift = ridge * gram.diagonal().mean() + 1e-30
        gram += lift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        change = torch.cholesky_solve(self._cross.double(), torch.linalg.cholesky(gram))
        return self._start + change.T.float()
