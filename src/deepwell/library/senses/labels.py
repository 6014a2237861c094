"""What a picture shows, as some of 1,000 ImageNet classes, and its feature vector for finding similar pictures.

The preprocessing is the one the weights were trained with (EfficientNet-Lite: centre crop of 87.5%, bicubic to 224,
``(value - 127) / 128``). It was chosen by measuring: on 500 photographs the log loss of "there is a dog" was 0.188 with
it, 0.233 with ImageNet's means and deviations, 0.197 with symmetric instead of TensorFlow's padding.

The network's probabilities are soft (it was trained with smoothed labels), and its second and third guesses say much of
a scene: a man on a surfboard is "swimming trunks", "paddle", "seashore". So 30 classes are kept, not 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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

KEEP = 30
"""Labels kept of a picture."""

_CROP = 0.875
_FAINTEST = 0.002
_BATCH = 16

_GROUPS = (
    ("fish", 0, 7), ("bird", 7, 25), ("frog", 30, 33), ("turtle", 33, 38), ("lizard", 38, 49), ("snake", 52, 69),
    ("spider", 72, 78), ("bird", 80, 101), ("crab", 118, 122), ("lobster", 122, 125), ("bird", 127, 147),
    ("whale", 147, 149), ("dog", 151, 269), ("wolf", 269, 273), ("wild dog", 273, 276), ("fox", 277, 281),
    ("cat", 281, 286), ("big cat", 286, 294), ("bear", 294, 298), ("beetle", 300, 308), ("insect", 308, 321),
    ("butterfly", 321, 327), ("rabbit", 330, 333), ("horse", 339, 340), ("pig", 341, 343), ("cow", 345, 348),
    ("sheep", 348, 350), ("goat", 350, 351), ("antelope", 351, 354), ("ape", 365, 370), ("monkey", 370, 383),
    ("elephant", 385, 387), ("fish", 389, 398),
)  # fmt: skip
"""Classes (first, past the last) that a layman asks for by their group: nobody who wants a dog says
kuvasz."""


@dataclass
class PictureClassifier:
    """EfficientNet-Lite0 over pictures. The network loads at the first call.

    Attributes:
        folder: Holds one ``*.pth`` and ``labels.txt``, a name a line in the order of the classes; ``definitions.txt``
            and ``synonyms.txt``, when there, say more of the class on the same line.
    """

    folder: Path

    @cached_property
    def network(self) -> EfficientNetLite:
        """The network, loaded at first use."""
        try:
            from deepwell.library.senses.efficientnet import load_network
        except ImportError as error:
            raise MissingExtraError("pictures need PyTorch", hint="Run: pip install 'deepwell[images]'") from error
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
        """A name for each class, no two the same."""
        return class_names(self.folder)

    def look(self, images: Sequence[Image]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Class probabilities [N, 1000] and pooled features [N, 1280] of RGB images."""
        import numpy as np
        import torch

        features = np.empty((len(images), self.network.classifier.in_features), dtype=np.float32)
        for start in range(0, len(images), _BATCH):
            pixels = np.stack([pixels_of(crop(image)) for image in images[start : start + _BATCH]])
            features[start : start + len(pixels)] = self.features(pixels)
        with torch.inference_mode():
            probabilities = self.network.classifier(torch.from_numpy(features)).softmax(dim=1).numpy()
        return probabilities, features

    def features(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pooled features [N, 1280] of prepared pixels [N, 224, 224, 3]."""
        import numpy as np
        import torch

        with torch.inference_mode():
            # [N, H, W, 3] in memory is channels last already: permuting the axes copies nothing.
            pooled = self.network.features(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        return np.asarray(pooled.numpy(), dtype=np.float32)

    def labels(self, image: Image) -> tuple[Label, ...]:
        """The likeliest classes of an RGB image, best first, ``score`` their probability."""
        return self.label_rows(self.look([image])[0])[0]

    def label_rows(self, probabilities: NDArray[np.float32]) -> list[tuple[Label, ...]]:
        """Labels for each row of class probabilities [N, 1000]."""
        best = (-probabilities).argsort(axis=1, kind="stable")[:, :KEEP]
        return [
            tuple(Label(self.names[i], round(float(row[i]), 4)) for i in top if row[i] >= _FAINTEST)
            for row, top in zip(probabilities, best, strict=True)
        ]


def class_names(folder: Path) -> tuple[str, ...]:
    """A name for each class in the order of the network's outputs, no two the same.

    A name comes with its group (``kuvasz dog``), and where two classes share one (ImageNet has two cranes), with the
    start of its definition. Raises ``ModelSourceError`` when there is no ``labels.txt``.
    """
    names = _lines(folder / "labels.txt")
    if names is None:
        raise ModelSourceError(f"{folder} holds no labels.txt", hint=f"Run: deepwell models pull {MODEL}")
    if len(names) == 1000:
        for group, first, end in _GROUPS:
            for i in range(first, end):
                if group not in names[i].lower():
                    names[i] = f"{names[i]} {group}"
    more = _lines(folder / "definitions.txt") or _lines(folder / "synonyms.txt") or [""] * len(names)
    shared = {name for name, count in Counter(names).items() if count > 1}
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):
        if name in shared:
            seen[name] += 1
            start = " ".join(more[i].split()[:4]).strip(" ,;")
            names[i] = f"{name} ({start})" if start and start != name else f"{name} {seen[name]}"
    return tuple(names)


def class_phrases(folder: Path) -> Mapping[str, str]:
    """For each name of ``class_names``, more words for a text encoder: the name and its definition or synonyms."""
    names = class_names(folder)
    more = _lines(folder / "definitions.txt") or _lines(folder / "synonyms.txt") or [""] * len(names)
    return {name: f"{name}, {words}" if words else name for name, words in zip(names, more, strict=True)}


def _lines(path: Path) -> list[str] | None:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else None


def crop(image: Image) -> Image:
    """The middle of an RGB image, 224 by 224 pixels."""
    from PIL.Image import Resampling

    width, height = image.size
    side = max(1.0, min(width, height) * _CROP)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((SIDE, SIDE), Resampling.BICUBIC, box=(left, top, left + side, top + side), reducing_gap=3.0)


def pixels_of(image: Image) -> NDArray[np.float32]:
    """An image of 224 by 224 as the network wants it: [224, 224, 3], about -1 to 1."""
    import numpy as np

    return (np.asarray(image, dtype=np.float32) - 127.0) / 128.0
