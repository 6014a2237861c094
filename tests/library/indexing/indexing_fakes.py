"""Readers for worker processes in tests; found there by the name of this module."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepwell.errors import MissingExtraError
from deepwell.library.records import Document, Passage, Place
from deepwell.testing import FakeReader, FakeSenses


@dataclass
class SlowReader(FakeReader):
    name: str = "slow"
    suffixes: frozenset[str] = frozenset({".slow"})
    cost: Literal["fast", "slow"] = "slow"


class TrickReader(FakeReader):
    """Does what a ``.trick`` file says: crash, hang, eat memory, raise."""

    def read(self, path: Path, senses: object) -> Document:
        word = path.read_text().split()[0]
        if word == "crash":
            os.kill(os.getpid(), 11)
        if word == "hang":
            time.sleep(1000)
        if word == "eat":
            held = []
            while True:
                held.append(b"x" * (64 << 20))
                time.sleep(0.01)
        if word == "raise":
            raise KeyError("a bug in a reader")
        if word == "extra":
            raise MissingExtraError("reading tricks needs an extra", hint="pip install tricks")
        return Document("text", path.stem, (Passage(path.read_text(), Place(lines=(1, 1))),))


READER = FakeReader()
SLOW = SlowReader()
TRICK = TrickReader(name="trick", suffixes=frozenset({".trick"}))


def choose(path: Path) -> FakeReader | None:
    for reader in (READER, SLOW, TRICK):
        if path.suffix in reader.suffixes:
            return reader
    return None


def senses() -> FakeSenses:
    return FakeSenses()
