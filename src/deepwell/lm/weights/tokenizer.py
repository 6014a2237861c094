"""Text to token ids and back, with the ids that the model was trained on.

A ``Tokenizer`` stands on the ``tokenizers`` library and is read from a model's folder (``tokenizer.json`` and the files
around it) or from the metadata of a GGUF file. Three things are its own:

- A control token such as ``<|im_start|>`` is never made from text unless ``specials=True`` says so; see
  ``tokenizer_control``. In a chat, the template's control tokens are control and a user's are letters.
- A text gets a token that begins it (``bos``) where the model's files say so; never one that ends it.
- Text comes back by one road only, the streaming ``Detokenizer``, so a stream and a whole decode cannot differ.

    >>> tokenizer = Tokenizer.from_folder("my-model")                       # doctest: +SKIP
    >>> tokenizer.decode(tokenizer.encode("Deep wells are"))                # doctest: +SKIP
    'Deep wells are'
"""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepwell.errors import ModelFileError, UsageError
from deepwell.lm.weights.detokenizer import Detokenizer, Spelling
from deepwell.lm.weights.tokenizer_control import ControlTokens
from deepwell.lm.weights.tokenizer_folder import read_folder, write_folder
from deepwell.lm.weights.tokenizer_parts import END_OF_TURN, TokenizerParts

if TYPE_CHECKING:
    from deepwell.lm.weights.chat import ChatTemplate, Rendered

MAX_VOCABULARY = 10_000_000
"""A higher id is damage; the largest vocabularies of the field have a quarter of a million tokens."""

_HINT = "The file may be cut short, or come from a newer version of the tokenizers library; fetch or convert it again"


class Tokenizer:
    """Text to token ids and back. Safe to use from several threads at once.

    Attributes:
        vocab_size: One more than the highest id; the network's vocabulary may be larger, for padding.
        bos_token_id: The token that begins a text, if the model has one.
        pad_token_id: The token that fills a batch up, if the model names one.
        eos_token_ids: Every token that ends an answer, the model's own end-of-text first.
        adds_bos: Whether ``encode`` begins with ``bos_token_id`` when it is not told otherwise.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        """Build one from its parts; ``from_folder`` and ``from_gguf`` are what to call.

        Raises:
            ModelFileError: The description is not that of a tokenizer, or of one that writes text in an unknown way.
        """
        import tokenizers

        self._parts = parts
        try:
            description = json.loads(parts.description)
            self._post_processor = description.get("post_processor")
            self._spelling = Spelling.of(description.get("decoder"), parts.source)
            special = [token["content"] for token in description.get("added_tokens") or [] if token.get("special")]
            self._controls = ControlTokens(description)
            self._rust = tokenizers.Tokenizer.from_str(self._controls.aliased)
            self._controls.settle(self._rust.token_to_id)
            ids = self._rust.get_vocab(with_added_tokens=True)
        except ModelFileError:
            raise
        except Exception as error:  # the Rust side raises bare Exception, and a damaged file anything at all
            reason = f"{type(error).__name__}: {error}"
            raise ModelFileError(f"{parts.source} is not a tokenizer ({reason})", hint=_HINT) from error
        self.vocab_size = max(ids.values(), default=-1) + 1
        if self.vocab_size > MAX_VOCABULARY:
            raise ModelFileError(
                f"{parts.source} has a token with the id {self.vocab_size - 1}, which cannot be", hint=_HINT
            )
        self._tokens: list[str | None] = [None] * self.vocab_size
        for text, number in ids.items():
            self._tokens[number] = text
        for text, number in self._controls.ids.items():
            self._tokens[number] = text
        self._special = frozenset(self._controls.ids[text] for text in special)
        self._bytes: list[bytes | None] = [None] * self.vocab_size
        self.bos_token_id = self._id_of_role("bos", parts.bos)
        self.pad_token_id = self._id_of_role("pad", parts.pad)
        self.eos_token_ids = self._ends()
        self.adds_bos = self.bos_token_id is not None and (
            self._post_processor_adds_bos() if parts.add_bos is None else parts.add_bos
        )

    # ---- where one comes from, and where it goes ----

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read ``tokenizer.json`` and what stands beside it.

        Raises:
            ModelFileError: A file is missing or damaged; the message names it.
        """
        return cls(read_folder(Path(folder)))

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any], *, source: str = "the GGUF file") -> Tokenizer:
        """Build one from the metadata of a GGUF file.

        Args:
            fields: Every ``tokenizer.*`` key with its value as plain Python (str, int, float, bool, list of these).
            source: The file's name, for messages.

        Raises:
            ModelFileError: A key is missing or damaged, or names a kind of tokenizer that is not known.
        """
        from deepwell.lm.weights.tokenizer_gguf import from_fields

        return cls(from_fields(fields, source=source))

    def to_gguf(self, vocab_size: int | None = None) -> dict[str, Any]:
        """The ``tokenizer.*`` keys of a GGUF file, in the types that ``from_gguf`` reads.

        Args:
            vocab_size: Rows of the network's embedding; unused tokens are added until there are as many.

        Raises:
            ModelFormatError: GGUF has no name for the way this tokenizer splits text.
        """
        from deepwell.lm.weights.tokenizer_gguf import to_fields

        return to_fields(self, vocab_size)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` with the chat templates.

        transformers' ``AutoTokenizer`` reads them to a tokenizer with the same ids.
        """
        from deepwell.lm.weights.tokenizer_gguf import with_bos

        parts = self._parts
        if self.adds_bos != self._post_processor_adds_bos():
            bos = (parts.bos or "", self.bos_token_id or 0) if self.adds_bos else None
            parts = dataclasses.replace(parts, description=with_bos(parts.description, bos))
        write_folder(parts, Path(folder), add_bos=self.adds_bos)

    # ---- ids ----

    def encode(self, text: str, *, bos: bool | None = None, specials: bool = False) -> list[int]:
        """The ids of a text.

        Args:
            text: Any text. What has no UTF-8 form (half of a surrogate pair) becomes a question mark.
            bos: Begin with the token that begins a text; None: where the model's files say so.
            specials: Let control tokens that are spelled in the text through. Leave it off for text from outside.

        Raises:
            UsageError: ``bos=True``, and the tokenizer has no such token.
        """
        text = _sound(text)
        ids: list[int] = self._rust.encode(self._controls.write_aliases(text) if specials else text).ids
        if not (self.adds_bos if bos is None else bos):
            return ids
        if self.bos_token_id is None:
            raise UsageError(f"the tokenizer of {self._parts.source} has no token that begins a text; leave bos out")
        # A prompt that already begins with it, as chat templates do, is not given a second one.
        return ids if ids[:1] == [self.bos_token_id] and bos is None else [self.bos_token_id, *ids]

    def decode(self, ids: Iterable[int], *, skip_specials: bool = True) -> str:
        """The text of some ids; special tokens are left out unless ``skip_specials=False``.

        Raises:
            UsageError: The vocabulary has no such token.
        """
        stream = self.stream(skip_specials=skip_specials)
        pieces = [stream.push(int(one)) for one in ids]
        return "".join(pieces) + stream.finish()

    def stream(self, *, skip_specials: bool = True) -> Detokenizer:
        """A detokenizer for one stream of ids; its pieces make what ``decode`` makes."""
        return Detokenizer(self._shown_bytes if skip_specials else self.token_bytes, self._spelling)

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text, as UTF-8 bytes that may end inside a character; nothing for an unused id."""
        if not 0 <= token < self.vocab_size:
            raise UsageError(f"there is no token {token}; the vocabulary has {self.vocab_size}")
        held = self._bytes[token]
        if held is None:
            text = self._tokens[token]
            held = b"" if text is None else text.encode() if self.is_control(token) else self._spelling.bytes_of(text)
            self._bytes[token] = held
        return held

    def token_id(self, text: str) -> int | None:
        """The id of a token by the text that the vocabulary has for it, control tokens too."""
        number = self._controls.ids.get(text)
        if number is None:
            number = self._rust.token_to_id(text)
        return number

    def is_control(self, token: int) -> bool:
        """Whether a token steers the model; see ``tokenizer_parts.is_control``."""
        return token in self._control_ids

    # ---- chats ----

    @cached_property
    def template(self) -> ChatTemplate:
        """How a chat becomes a prompt: the model's own template, or ours for its family when it carries none.

        Raises:
            ModelFileError: There is none, and its control tokens are those of no family that is known.
        """
        from deepwell.lm.weights.chat import template_for

        return template_for(self, self._parts.templates, self._parts.source)

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_last: bool = False,
    ) -> str:
        """The prompt of a chat as text, to look at; ``chat`` gives the ids, where content makes no control tokens."""
        rendered = self.template.render(messages, thinking=thinking, tools=tools, continue_last=continue_last)
        return rendered.text

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_last: bool = False,
    ) -> list[int]:
        """The ids of a chat, ready for the model to answer.

        Args:
            messages: ``role`` (system, user, assistant or tool) and ``content``; ``reasoning_content``, ``tool_calls``
                and ``tool_call_id`` where they apply, as in the chat API of OpenAI and DeepSeek.
            thinking: Ask for reasoning before the answer, or for none; None: as the template does by itself.
            tools: Functions that the model may call, as in the same API.
            continue_last: Leave the last message, the assistant's, open, for the model to go on with.

        Raises:
            UsageError: The messages are not a chat, or the template refuses them.
            ModelFileError: The template is broken, or does not come to an end.
        """
        rendered = self.template.render(messages, thinking=thinking, tools=tools, continue_last=continue_last)
        (ids,) = self.encode_pieces([rendered])
        return ids

    def encode_pieces(self, pieces: Sequence[Rendered]) -> list[list[int]]:
        """The ids of each piece of one rendered chat, as training on answers alone needs them.

        A byte-level vocabulary gets each piece by itself, as in a chat, where the prompt is encoded before there is an
        answer. Others put a space before a text, so the whole is encoded and a token belongs to the piece it begins in.
        """
        texts = [_sound(piece.unmark(self._controls.write_aliases(piece.marked))) for piece in pieces]
        if self._spelling.byte_level or len(texts) == 1:
            return [self._rust.encode(text).ids for text in texts]
        whole = self._rust.encode("".join(texts))
        ends = list(accumulate(map(len, texts)))
        ids: list[list[int]] = [[] for _ in texts]
        for number, (begin, _) in zip(whole.ids, whole.offsets, strict=True):
            ids[min(bisect_right(ends, begin), len(ends) - 1)].append(number)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts at once, over all cores: of each what ``encode`` with ``bos=False`` gives."""
        return [one.ids for one in self._rust.encode_batch_fast([_sound(text) for text in texts])]

    # ---- inside ----

    @property
    def parts(self) -> TokenizerParts:
        """What this tokenizer was built from."""
        return self._parts

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Every control token and its id."""
        return self._controls.ids

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self._controls.ids.values())

    def _shown_bytes(self, token: int) -> bytes:
        return b"" if token in self._special else self.token_bytes(token)

    def _id_of_role(self, role: str, text: str | None) -> int | None:
        if text is None:
            return None
        number = self.token_id(text)
        if number is None:
            raise ModelFileError(f"{self._parts.source}: the {role} token {text!r} is not in the vocabulary")
        return number

    def _ends(self) -> tuple[int, ...]:
        named = self._id_of_role("eos", self._parts.eos)
        first = [] if named is None else [named]
        usual = [self._controls.ids[text] for text in END_OF_TURN if text in self._controls.ids]
        return tuple(dict.fromkeys(one for one in (*first, *self._parts.eos_ids, *usual) if one < self.vocab_size))

    def _post_processor_adds_bos(self) -> bool:
        """Whether the description puts the token that begins a text before every text."""
        steps = self._post_processor or {}
        for step in steps.get("processors", [steps]):
            template = step.get("single") if step.get("type") == "TemplateProcessing" else None
            first = template[0].get("SpecialToken", {}).get("id") if template else None
            if first is not None and first == self._parts.bos:
                return True
        return False


def _sound(text: str) -> str:
    """The text with question marks for lone surrogates, which have no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
