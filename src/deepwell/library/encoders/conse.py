"""Words find pictures without a network that was ever shown a picture with its words.

ConSE, the convex combination of semantic embeddings (Norouzi et al. 2013, https://arxiv.org/abs/1312.5650): a
classifier says what a picture or sound may be, a text encoder knows what those names mean, and the picture's vector is
the mean of the names' vectors weighted by probability. It then lies in the text encoder's own space, between
"seashore" and "surfboard", and "people at the beach" finds it though no label says so.

Three things make it better than the paper's recipe for search; ``benchmarks/senses.py pictures`` prints both:
- a class is encoded with its dictionary definition and, for animals, its group, not by its bare name: they hold the
  everyday words that captions use;
- weights are the probabilities to the power 0.4, flatter than they are: second guesses describe the scene;
- thirty labels, not ten.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepwell.library.encoders.vectors import unit
from deepwell.library.protocols import TextEncoder
from deepwell.library.records import Label

VERSION = 1
_POWER = 0.4


class Conse:
    """Labels to vectors in a text encoder's space. Thread-safe; each name is encoded once.

    Args:
        encoder: Whose space it is.
        phrases: For a label's name, the words to encode in its place (``class_phrases``); others stand for themselves.
    """

    def __init__(self, encoder: TextEncoder, phrases: Mapping[str, str] | None = None) -> None:
        self._encoder = encoder
        self._phrases = dict(phrases or {})
        self._rows: dict[str, NDArray[np.float32]] = {}
        self._lock = threading.Lock()
        words = "\n".join(f"{name}\t{phrase}" for name, phrase in sorted(self._phrases.items()))
        self.name = f"conse over {encoder.name}"
        self.dim = encoder.dim
        self.fingerprint = hashlib.blake2b(
            f"{VERSION} {_POWER} {encoder.fingerprint}\n{words}".encode(), digest_size=8
        ).hexdigest()

    @classmethod
    def open(cls, encoder: TextEncoder, classifier_folder: Path | None = None) -> Conse:
        """With the phrases of the picture classifier on this machine; without them when there is none.

        Args:
            encoder: Whose space it is.
            classifier_folder: Where the classifier's names are; None asks the catalogue of models.
        """
        from deepwell.errors import MissingModelError, ModelSourceError
        from deepwell.library.senses.labels import MODEL, class_phrases

        try:
            if classifier_folder is None:
                from deepwell import models

                classifier_folder = models.folder(MODEL)
            return cls(encoder, class_phrases(classifier_folder))
        except (MissingModelError, ModelSourceError):
            return cls(encoder)

    def encode_labels(self, rows: Sequence[Sequence[Label]]) -> NDArray[np.float32]:
        """Unit vectors [N, dim]; a row without labels is NaN, for it has no meaning yet."""
        names = sorted({label.name for row in rows for label in row})
        known = self._vectors(names)
        vectors = np.full((len(rows), self.dim), np.nan, dtype=np.float32)
        for vector, row in zip(vectors, rows, strict=True):
            if row:
                weights = np.array([max(label.score, 1e-6) for label in row], dtype=np.float32) ** _POWER
                vector[:] = weights @ np.stack([known[label.name] for label in row])
        filled = ~np.isnan(vectors).any(axis=1)
        vectors[filled] = unit(vectors[filled])
        return vectors

    def _vectors(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        with self._lock:
            new = [name for name in names if name not in self._rows]
            if new:
                encoded = self._encoder.encode([self._phrases.get(name, name) for name in new])
                self._rows.update(zip(new, encoded, strict=True))
            return {name: self._rows[name] for name in names}
