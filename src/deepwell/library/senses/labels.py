"""What a picture shows, as one of 1,000 ImageNet classes, and its feature vector for finding similar pictures.

The preprocessing is the one the weights were trained with (EfficientNet-Lite: centre crop of 87.5%, bicubic to 224,
``(value - 127) / 128``). ``benchmarks/senses.py`` keeps the proof: on 500 photographs the log loss of "there is a dog"
was 0.188 with it, 0.233 with ImageNet means, 0.197 with symmetric padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from deepwell.errors import MissingExtraError, ModelSourceError
from deepwell.library.records import Label

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from deepwell.library.senses.efficientnet import EfficientNetLite

MODEL = "efficientnet-lite0"
SIDE = 224
PREPROCESSING = 1
"""Raised when the same picture would give other numbers; part of the feature encoder's fingerprint."""

_CROP = 0.875
_BATCH = 16
KEEP = 10
"""Labels kept of a picture: ConSE's ten (Norouzi et al. 2013 found little change beyond)."""

_FAINTEST = 0.005


@dataclass
class PictureClassifier:
    """EfficientNet-Lite0 over pictures. Loading takes the first call; several threads may call.

    Attributes:
        folder: Holds one ``*.pth`` and ``labels.txt``: a line for each class in the order of its index, names separated
            by commas, the most usual first.
    """

    folder: Path

    @cached_property
    def network(self) -> EfficientNetLite:
        """The network, loaded at first use."""
        try:
            from deepwell.library.senses.efficientnet import load_network
        except ImportError as error:
            raise MissingExtraError(
                "picture labels need PyTorch", hint="Run: pip install 'deepwell[images]'"
            ) from error
        return load_network(self.weights)

    @cached_property
    def weights(self) -> Path:
        """The file of weights."""
        files = sorted(self.folder.glob("*.pth"))
        if not files:
            raise ModelSourceError(f"{self.folder} holds no .pth file", hint=f"Run: deepwell models pull {MODEL}")
        return files[0]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All names of each class, separated by commas."""
        path = self.folder / "labels.txt"
        if not path.exists():
            raise ModelSourceError(f"{path} is missing", hint=f"Run: deepwell models pull {MODEL}")
        return tuple(path.read_text(encoding="utf-8").splitlines())

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the weights, 16 hexadecimal digits."""
        with self.weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def look(self, images: Sequence[Image]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Class probabilities [N, 1000] and pooled features [N, 1280] of RGB images."""
        import numpy as np
        import torch

        probabilities = np.empty((len(images), len(self.names)), dtype=np.float32)
        features = np.empty((len(images), self.network.classifier.in_features), dtype=np.float32)
        for start in range(0, len(images), _BATCH):
            rows = slice(start, start + _BATCH)
            pixels = torch.from_numpy(np.stack([pixels_of(image) for image in images[rows]]))
            pixels = pixels.permute(0, 3, 1, 2)  # [N, H, W, 3] in memory is channels last already
            with torch.inference_mode():
                pooled = self.network.features(pixels)
                probabilities[rows] = self.network.classifier(pooled).softmax(dim=1).numpy()
                features[rows] = pooled.numpy()
        return probabilities, features

    def labels(self, image: Image) -> tuple[Label, ...]:
        """The likeliest classes of an RGB image, best first; ``name`` holds all names of the class, the usual first."""
        return self.label_rows(self.look([image])[0])[0]

    def label_rows(self, probabilities: NDArray[np.float32]) -> list[tuple[Label, ...]]:
        """Labels for each row of class probabilities [N, 1000]."""
        best = (-probabilities).argsort(axis=1, kind="stable")[:, :KEEP]
        return [
            tuple(Label(self.names[i], round(float(row[i]), 4)) for i in top if row[i] >= _FAINTEST)
            for row, top in zip(probabilities, best, strict=True)
        ]


def pixels_of(image: Image) -> NDArray[np.float32]:
    """The middle of an RGB image as the network wants it: [224, 224, 3], about -1 to 1."""
    import numpy as np
    from PIL.Image import Resampling

    width, height = image.size
    side = max(1.0, min(width, height) * _CROP)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    small = image.resize((SIDE, SIDE), Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return (np.asarray(small, dtype=np.float32) - 127.0) / 128.0
