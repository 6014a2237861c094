"""Documents that are equal to an earlier one, or nearly.

Equal is what has the same letters when case and runs of white space are not looked at. Nearly equal is a Jaccard
similarity of at least 0.8 between the sets of word 5-grams of two documents (as in Lee et al. 2022, "Deduplicating
Training Data Makes Language Models Better", arXiv 2107.06499). Pairs are found by MinHash and locality-sensitive
hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3): of 120 hash functions each keeps its
minimum over a document's 5-grams, and documents that agree in one of 20 bands of 6 minima are compared in full. A pair
of similarity 0.8 is found with 99.8%, and nothing that is less similar is ever taken for a duplicate.

Memory is about 2 kB for each document; the 5-grams lie in a temporary file.
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIMILAR = 0.8
"""Jaccard similarity from which two documents are the same for training."""
WORDS = 5
_BANDS, _ROWS = 20, 6
_BLOCK = 1024
_HELD_WORDS = 500_000

_random = np.random.Generator(np.random.PCG64(20107))
_FACTORS = _random.integers(0, 1 << 32, size=_BANDS * _ROWS, dtype=np.uint32) | np.uint32(1)
_SHIFTS = _random.integers(0, 1 << 32, size=_BANDS * _ROWS, dtype=np.uint32)
# Odd numbers for hashing five words to one, and the six minima of a band to one.
_MIX = _random.integers(0, 1 << 63, size=max(WORDS, _ROWS), dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def normalised(text: str) -> list[str]:
    """The words of a text, without a difference of case."""
    return text.casefold().split()


def fingerprint(words: list[str]) -> int:
    """A number of 64 bits that two texts share if their words are the same; the split goes by it as well."""
    digest = hashlib.blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class _WordHashes(dict[str, int]):
    """Hashes of words, each computed once; Python's own differ from one process to the next."""

    def __missing__(self, word: str) -> int:
        if len(self) > _HELD_WORDS:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
        number = self[word] = int.from_bytes(digest, "little")
        return number


class Duplicates:
    """Finds for each document those before it that it repeats.

    Use as a context manager, which removes the temporary file.
    """

    def __init__(self, *, near: bool = True) -> None:
        """``near=False`` finds equal documents alone, which is faster and needs less memory."""
        self._near = near
        self._hashes = _WordHashes()
        self._exact: dict[int, int] = {}
        self._bands: dict[int, int] = {}
        self._ends = array("q", [0])
        self._key = 0
        self._keys: list[int] = []
        self._grams: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)
        self._file: Any = tempfile.TemporaryFile() if near else None  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> Duplicates:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def compare(self, text: str) -> tuple[int, list[int]]:
        """Look for a document among those held.

        Returns:
            Its ``fingerprint``, and the numbers (from 0, in the order of ``hold``) of documents: the first that it is
            equal to and no other, or those that it is similar to.
        """
        words = normalised(text)
        key = fingerprint(words)
        self._grams, self._keys = np.empty(0, dtype=np.uint32), []
        self._key = key
        if key in self._exact:
            return key, [self._exact[key]]
        if not self._near:
            return key, []
        self._grams = self._grams_of(words)
        self._keys = _bands(self._grams).tolist()
        candidates = sorted({self._bands[band] for band in self._keys if band in self._bands})
        return key, [one for one in candidates if _similarity(self._grams, self._held(one)) >= SIMILAR]

    def hold(self) -> int:
        """Let later documents be compared with the one that ``compare`` looked at last; returns its number.

        Of documents that agree in a band the first stays in it: the others have 19 more to be found by.
        """
        number = len(self._ends) - 1
        self._exact.setdefault(self._key, number)
        for band in self._keys:
            self._bands.setdefault(band, number)
        if self._near:
            self._file.seek(0, 2)
            self._file.write(self._grams.tobytes())
        self._ends.append(self._ends[-1] + len(self._grams))
        return number

    # ---- inside ----

    def _grams_of(self, words: list[str]) -> NDArray[np.uint32]:
        """The hashes of all 5-grams, sorted, each once; a shorter text is one gram."""
        table = self._hashes
        hashed = np.fromiter((table[word] for word in words), np.uint64, len(words))
        size = max(min(WORDS, len(words)), 1)
        count = max(len(words) - size + 1, 0)
        mixed = np.zeros(count, dtype=np.uint64)
        for place in range(size):
            mixed += hashed[place : place + count] * _MIX[place]
        return np.unique((mixed >> np.uint64(32)).astype(np.uint32))

    def _held(self, number: int) -> NDArray[np.uint32]:
        begin, end = self._ends[number], self._ends[number + 1]
        self._file.seek(4 * begin)
        return np.frombuffer(self._file.read(4 * (end - begin)), dtype=np.uint32)


def _bands(grams: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One number for each band of minima, in which the band's own number is mixed."""
    least = np.full(_BANDS * _ROWS, 0xFFFFFFFF, dtype=np.uint32)
    for begin in range(0, len(grams), _BLOCK):
        # [functions, grams]: the minimum runs along memory, and a block stays in the cache.
        hashed = grams[begin : begin + _BLOCK] * _FACTORS[:, None]
        hashed += _SHIFTS[:, None]
        np.minimum(least, hashed.min(axis=1), out=least)
    rows = least.reshape(_BANDS, _ROWS).astype(np.uint64)
    mixed: NDArray[np.uint64] = (rows * _MIX[:_ROWS]).sum(axis=1, dtype=np.uint64)
    mixed ^= mixed >> np.uint64(29)
    result: NDArray[np.uint64] = (mixed + np.arange(_BANDS, dtype=np.uint64)) * _MIX[0]
    return result


def _similarity(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Jaccard similarity of two sorted sets."""
    if not len(one) or not len(other):
        return float(len(one) == len(other))
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
