"""Control tokens that a text cannot spell.

``<|im_start|>`` in a model's vocabulary begins a turn. The same letters in a user's text must stay letters, or a
document could speak in the assistant's name. A tokenizer as its files describe it makes no difference, so here each
control token is given an *alias*, a name with a random number in it that no text contains. Text is encoded by a
tokenizer that knows the aliases only; a control token is written into a text by writing its alias. Everything else
about the token stays: its id, and whether it eats the spaces around it. So text without mark-up has the ids that the
original tokenizer gives it, and so has text with mark-up once its control tokens are put in by alias.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from typing import Any

from deepwell.lm.weights.tokenizer_parts import is_control


class ControlTokens:
    """The control tokens of a description and their aliases.

    Attributes:
        ids: Text of each control token to its id.
        aliased: The description with aliases in place of control tokens and nothing added before or after a text.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        """Take over ``description``, the content of a tokenizer.json; it is changed."""
        added = description.get("added_tokens") or []
        controls = [token for token in added if is_control(token)]
        nonce = secrets.token_hex(8)
        self.ids: dict[str, int] = {token["content"]: token["id"] for token in controls}
        self._alias = {text: f"\U0010fffe{nonce}x{number}\U0010ffff" for number, text in enumerate(self.ids)}
        # The longest first, so that <|end|> does not hide <|end|>s; the sort is stable.
        texts = sorted(self.ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        for token in controls:
            token["content"] = self._alias[token["content"]]
        description["post_processor"] = None
        description["truncation"] = description["padding"] = None
        self._hide(description["model"])
        self.aliased = json.dumps(description, ensure_ascii=False)

    def settle(self, token_id: Callable[[str], int | None]) -> None:
        """Take the ids that the library gave the aliases: for a token in the vocabulary, that of the vocabulary."""
        for text, alias in self._alias.items():
            number = token_id(alias)
            if number is None:
                raise ValueError(f"the control token {text!r} has no id")
            self.ids[text] = number

    def _hide(self, model: dict[str, Any]) -> None:
        """Rename the control tokens that the vocabulary holds, and drop the merges that would spell one."""
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, dict):
            for text, alias in self._alias.items():
                if text in vocabulary:
                    vocabulary[alias] = vocabulary.pop(text)
        elif isinstance(vocabulary, list):
            model["vocab"] = [[self._alias.get(entry[0], entry[0]), *entry[1:]] for entry in vocabulary]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = self._alias.get(model["unk_token"], model["unk_token"])
        if model.get("merges"):
            model["merges"] = [merge for merge in model["merges"] if not self._spells_control(merge)]

    def _spells_control(self, merge: str | list[str]) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return left + right in self._alias or left in self._alias or right in self._alias

    def write_aliases(self, text: str) -> str:
        """Every control token in ``text`` replaced by its alias, so that encoding makes it a control token."""
        return self._pattern.sub(lambda found: self._alias[found[0]], text) if self._pattern else text
