"""Deepwell: search, ask and analyse your own text, images and audio on your own machine.

``Library`` and ``Model`` are the names a Python user imports. Nothing heavy is loaded by ``import deepwell``; they are
fetched on first use, so ``deepwell --help`` stays quick.

    >>> import deepwell
    >>> with deepwell.Library("my-library") as lib:      # doctest: +SKIP
    ...     lib.add("~/Documents")
    ...     for hit in lib.search("how do heat pumps work"):
    ...         print(hit.path, hit.place.describe(), hit.score)
    >>> model = deepwell.Model.load("smollm2-135m-instruct")      # doctest: +SKIP
    >>> print(model.chat([{"role": "user", "content": "What is a heat pump?"}]).text)      # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from deepwell.errors import DeepwellError

if TYPE_CHECKING:
    from deepwell.library.library import Library
    from deepwell.lm.engine.model import Model

__version__ = "0.1.0"
__all__ = ["DeepwellError", "Library", "Model", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Library":
        from deepwell.library.library import Library

        return Library
    if name == "Model":
        from deepwell.lm.engine.model import Model

        return Model
    raise AttributeError(f"module 'deepwell' has no attribute {name!r}")
