"""Pictures to vectors by EfficientNet-Lite0's pooled features: pictures that look alike lie near each other.

The features come after a ReLU6, so none is negative and the cosine of any two pictures is well above 0; only the order
means something. Files are decoded by a few threads while the network works on the batch before (JPEG decoding lets go
of Python's lock), which nearly halves the time of a folder of photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepwell.library.encoders.fingerprint import fingerprint
from deepwell.library.encoders.vectors import unit
from deepwell.library.senses.labels import MODEL, PREPROCESSING, PictureClassifier, crop, pixels_of
from deepwell.library.senses.pictures import load_rgb

if TYPE_CHECKING:
    from deepwell.models import ModelInfo

DIM = 1280

_BATCH = 16
_DECODERS = 2


class EfficientNetEncoder:
    """An ``ImageEncoder``. The network loads at the first call.

    Args:
        folder: Holds the checkpoint, as ``deepwell models pull efficientnet-lite0`` leaves it.
        name: As in the catalogue.
    """

    dim = DIM

    def __init__(self, folder: Path, name: str = MODEL) -> None:
        self.name = name
        self._classifier = PictureClassifier(folder)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the weights and with how pictures are prepared."""
        weights = self._classifier.weights
        return fingerprint(weights.parent, [weights.name], preprocessing=PREPROCESSING, pooling="mean", dim=DIM)

    def encode_images(self, images: Sequence[Path]) -> NDArray[np.float32]:
        """Unit vectors [N, 1280] in the order of ``images``.

        Raises ``UnreadableFileError`` for the first file that is not a whole picture.
        """
        rows = np.empty((len(images), DIM), dtype=np.float32)
        with ThreadPoolExecutor(_DECODERS) as pool:
            starts = range(0, len(images), _BATCH)
            ahead = [pool.submit(_pixels, path) for path in images[:_BATCH]]
            for start in starts:
                current, ahead = (
                    ahead,
                    [pool.submit(_pixels, path) for path in images[start + _BATCH : start + 2 * _BATCH]],
                )
                pixels = np.stack([future.result() for future in current])
                rows[start : start + len(current)] = self._classifier.features(pixels)
        return unit(rows)


def _pixels(path: Path) -> NDArray[np.float32]:
    return pixels_of(crop(load_rgb(path, near=256)))


def load(folder: Path, info: ModelInfo | None, *, dim: int | None = None) -> EfficientNetEncoder:
    """The entry point. The features cannot be shortened, so ``dim`` may only be the full length."""
    if dim not in (None, DIM):
        from deepwell.errors import UsageError

        raise UsageError(f"{MODEL} makes {DIM} numbers, {dim} were asked for", hint=f"Use {DIM}.")
    return EfficientNetEncoder(folder, info.name if info is not None else folder.name)
