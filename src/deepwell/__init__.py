"""Deepwell: search, ask and analyse your own text, images and audio on your own machine.

``Library`` is the name a Python user imports. Nothing heavy is loaded by ``import deepwell``; the class is fetched on
first use, so ``deepwell --help`` stays quick.

    >>> import deepwell
    >>> with deepwell.Library("my-library") as lib:      # doctest: +SKIP
    ...     lib.add("~/Documents")
    ...     for hit in lib.search("how do heat pumps work"):
    ...         print(hit.path, hit.place.describe(), hit.score)
"""

from typing import TYPE_CHECKING, Any

from deepwell.errors import DeepwellError

if TYPE_CHECKING:
    from deepwell.library.library import Library

__version__ = "0.1.0"
__all__ = ["DeepwellError", "Library", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Library":
        from deepwell.library.library import Library

        return Library
    raise AttributeError(f"module 'deepwell' has no attribute {name!r}")
