"""What a server serves: one language model under three names, and an encoder for embeddings if it has one.

``deepseek-chat`` and ``deepseek-reasoner`` are names that clients of DeepSeek's API have built in; here they are the
loaded model, told not to think or to think.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deepwell import __version__
from deepwell.server.errors import ApiError

if TYPE_CHECKING:
    from deepwell.library.protocols import TextEncoder
    from deepwell.server.driver import Driver

ALIASES: Mapping[str, bool] = {"deepseek-chat": False, "deepseek-reasoner": True}
"""Other names of the loaded model, and whether it is to think under them."""

FINGERPRINT = f"deepwell-{__version__}"
"""What responses say of the software that made them."""


@dataclass(frozen=True)
class Served:
    """What the endpoints work with.

    Attributes:
        driver: Of the language model.
        name: What it is called.
        encoder: For embeddings; None: there are none.
        created: When the server was started, in seconds since 1970.
    """

    driver: Driver
    name: str
    encoder: TextEncoder | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def names(self) -> list[str]:
        """Every name that a request may give, the language model's first."""
        embedding = [] if self.encoder is None else [self.encoder.name]
        return list(dict.fromkeys([self.name, *ALIASES, *embedding]))

    def thinks(self, asked: str) -> bool | None:
        """Whether the model of that name is to think by default; None: as its template has it.

        Raises:
            ApiError: It is not the language model's (404).
        """
        if asked == self.name:
            return None
        if asked in ALIASES:
            return ALIASES[asked]
        if self.encoder is not None and asked == self.encoder.name:
            raise ApiError(404, f"{asked} makes embeddings and writes no text", "model_not_found", param="model")
        raise self.unknown(asked)

    def unknown(self, asked: str) -> ApiError:
        """The error for a name that nothing here has."""
        shown = asked if len(asked) <= 100 else f"{asked[:97]}..."
        message = f"there is no model {shown!r} here; this server has {', '.join(self.names)}"
        return ApiError(404, message, "model_not_found", param="model")
