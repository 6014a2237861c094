"""Token ids to text, one at a time, without ever breaking a character.

One character can take several tokens: an emoji is four bytes, and a byte-level vocabulary may cut it anywhere; a
SentencePiece vocabulary spells rare characters in tokens such as ``<0xF0>``. A detokenizer holds bytes back until they
make a character, or until it is certain that they never will; only then does it write the replacement character. The
pieces it returns, put together, are exactly what ``Tokenizer.decode`` returns for all ids at once: that function is
this class, run to the end. A token costs the same however long the text already is.

What invalid bytes become: one replacement character for each longest part that could begin a character, as the Unicode
standard recommends. The ``tokenizers`` library does so for byte-level vocabularies, and for SentencePiece replaces
every byte of a run that has an error anywhere; a stream could then say nothing before the run ends, so we do not.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from deepwell.errors import ModelFileError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a vocabulary writes text: read from the decoder of a ``tokenizer.json``.

    Attributes:
        byte_level: Each character of a token stands for one byte (GPT-2's alphabet).
        replacements: Pairs of what a token holds and the text that it means, such as U+2581 and a space.
        byte_fallback: Tokens such as ``<0x0A>`` are single bytes.
        strip: Character that is dropped at the beginning of a text, up to ``strip_count`` times.
        strip_first_token: Drop it wherever it stands in the first token (the Metaspace decoder), and not in the text.
    """

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip: str = ""
    strip_count: int = 0
    strip_first_token: bool = False

    def bytes_of(self, token: str) -> bytes:
        """What a token of the vocabulary adds to the text, as UTF-8."""
        if self.byte_level:
            alphabet = byte_alphabet()
            try:
                return bytes([alphabet[letter] for letter in token])
            except KeyError:  # an added token, in plain text
                return token.encode("utf-8", "replace")
        if self.byte_fallback and (found := _BYTE.fullmatch(token)):
            return bytes([int(found[1], 16)])
        for held, meant in self.replacements:
            token = token.replace(held, meant)
        return token.encode("utf-8", "replace")

    @classmethod
    def of(cls, decoder: Mapping[str, Any] | None, source: str) -> Spelling:
        """Read the ``decoder`` of a ``tokenizer.json``.

        Raises:
            ModelFileError: It is of a kind that no language model here uses.
        """
        steps = [] if decoder is None else [decoder]
        if decoder is not None and decoder.get("type") == "Sequence":
            steps = list(decoder.get("decoders", []))
        fields: dict[str, Any] = {}
        replacements: list[tuple[str, str]] = []
        for step in steps:
            kind = step.get("type")
            if kind == "ByteLevel":
                fields["byte_level"] = True
            elif kind == "ByteFallback":
                fields["byte_fallback"] = True
            elif kind == "Replace" and isinstance(step.get("pattern", {}).get("String"), str):
                replacements.append((step["pattern"]["String"], step["content"]))
            elif kind == "Strip" and not step.get("stop"):
                fields.update(strip=step["content"], strip_count=step["start"])
            elif kind == "Metaspace":
                mark = step.get("replacement", "\u2581")
                replacements.append((mark, " "))
                if step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True):
                    fields.update(strip=" ", strip_first_token=True)
            elif kind != "Fuse":
                raise ModelFileError(f"{source}: a decoder of kind {kind!r} is not known")
        if not steps:
            raise ModelFileError(f"{source}: there is no decoder, which says how tokens are written")
        return cls(replacements=tuple(replacements), **fields)


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others for U+0100 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in alphabet)
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(list(others))}


class Detokenizer:
    """Turns a stream of token ids into text. One for each stream; ``Tokenizer.stream`` makes them."""

    def __init__(self, piece: Callable[[int], bytes], spelling: Spelling) -> None:
        """``piece`` gives the bytes of a token, or none for one that is not shown."""
        self._piece = piece
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._strip = spelling.strip
        self._strips = spelling.strip_count
        self._first_token = spelling.strip_first_token

    def push(self, token: int) -> str:
        """The text that is certain now that ``token`` has come; often empty.

        Raises:
            UsageError: The vocabulary has no such token.
        """
        piece = self._piece(token)
        if self._first_token and piece:
            piece = piece.replace(self._strip.encode(), b"")
            self._first_token = False
        return self._begin(self._decode(piece))

    def finish(self) -> str:
        """What is still held back: the replacement character for a character that never became whole, or nothing."""
        return self._begin(self._decode(b"", final=True))

    def _begin(self, text: str) -> str:
        while self._strips and text:
            if not text.startswith(self._strip):
                self._strips = 0
                break
            text = text[len(self._strip) :]
            self._strips -= 1
        return text
