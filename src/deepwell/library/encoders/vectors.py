"""What is done to vectors after the network, for every family."""

import numpy as np
from numpy.typing import NDArray


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [N, dim] at length one. In place; a row of zeros stays as it is."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
    return vectors
