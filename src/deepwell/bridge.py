"""The one module that knows both wings: a language model of this machine as a library's ``ChatModel``.

>>> import deepwell
>>> from deepwell.bridge import LocalChat
>>> with deepwell.Library("my-library") as lib:                              # doctest: +SKIP
...     print(lib.ask("when does the warranty end?", model=LocalChat("smollm2-135m-instruct")).text)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepwell.errors import ChatError, UsageError
from deepwell.library.protocols import Delta, Message

if TYPE_CHECKING:
    from deepwell.lm.engine.model import Model

__all__ = ["LocalChat"]


class LocalChat:
    """A ``ChatModel`` over ``deepwell.Model``: the own engine answers, and nothing leaves this machine.

    Attributes:
        name: The model's name, or the name of its file or folder.
    """

    def __init__(self, model: str | Path | Model, *, name: str = "", thinking: bool | None = None) -> None:
        """Say which model is to answer; it is loaded for the first question.

        Args:
            model: A name as in ``deepwell models list``, a path, or a model that is loaded already.
            name: What answers call it.
            thinking: Ask for reasoning, or for none; None: as the model does by itself.
        """
        self._given = model
        self.name = name or (Path(model).name if isinstance(model, str | Path) else "model")
        self._thinking = thinking

    def chat(self, messages: Sequence[Message], *, max_tokens: int = 512, temperature: float = 0.0) -> Iterator[Delta]:
        """Stream a reply.

        Raises:
            ChatError: The messages are too long for the model, or no chat to its template.
            DeepwellError: The model cannot be loaded.
        """
        from deepwell.lm.engine.params import SamplingParams

        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, thinking=self._thinking)
        model = self._loaded()
        try:
            for piece in model.stream([{"role": one.role, "content": one.content} for one in messages], params):
                if piece.text or piece.reasoning:
                    yield Delta(piece.text, piece.reasoning)
        except UsageError as error:
            hint = "If it is too long for the model, give fewer or shorter passages (evidence_tokens)."
            raise ChatError(f"{self.name} did not accept the question: {error.message}", hint=hint) from error

    def _loaded(self) -> Model:
        if isinstance(self._given, str | Path):
            import deepwell

            self._given = deepwell.Model.load(self._given)
        return self._given
