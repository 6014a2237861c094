"""JSON read letter by letter: where a value ends, and what a call's name and arguments are before it has ended.

Nothing here checks that what stands inside of a value is JSON; it finds its end, as a reader of a stream must.
"""

from __future__ import annotations

import json


class JsonExtent:
    """Finds the end of one JSON value.

    Attributes:
        done: Whether it has ended.
    """

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def push(self, text: str) -> int:
        """How many letters of ``text`` belong to the value. A number ends before what stands behind it."""
        for place, letter in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._quoted = False
                    self.done = self._depth == 0
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]" or (self._depth == 0 and (letter == "," or letter.isspace())):
                if self._depth == 0:
                    self.done = True
                    return place
                self._depth -= 1
                self.done = self._depth == 0
            if self.done:
                return place + 1
        return len(text)


class JsonCall:
    """Reads ``{"name": NAME, "arguments": ARGUMENTS}`` as it comes; ``parameters`` is the same as ``arguments``.

    Attributes:
        name: The function's, once it is known.
        argued: Whether arguments have begun.
        done: Whether the object has ended.
        broken: Whether it is no such object.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.argued = False
        self.done = False
        self.broken = False
        self._wanted = "{"
        self._value: JsonExtent | None = None
        self._text = ""
        self._key: str | None = None
        self._fresh = ""

    def push(self, text: str) -> int:
        """Read on; how many letters were read, which is all unless the object has ended or is none."""
        place = 0
        while place < len(text) and not self.done and not self.broken:
            if self._value is not None:
                count = self._value.push(text[place:])
                self._take_value(text[place : place + count], whole=self._value.done)
                place += count
                continue
            letter = text[place]
            if letter.isspace():
                place += 1
            elif self._wanted == "value" or (self._wanted == "key" and letter == '"'):
                self._value, self._text = JsonExtent(), ""
                self._key = None if self._wanted == "key" else self._key
                self.argued |= self._key in ("arguments", "parameters")
                self._wanted = self._wanted if letter not in ",:}]" else "nothing"
                self.broken = self._wanted == "nothing"
            elif letter == "}" and self._wanted in ("key", ","):
                self.done = True
                place += 1
            elif letter == self._wanted:
                self._wanted = {"{": "key", ":": "value", ",": "key"}[letter]
                place += 1
            else:
                self.broken = True
        return place

    def take(self) -> str:
        """The arguments that have come since this was last asked."""
        fresh, self._fresh = self._fresh, ""
        return fresh

    def _take_value(self, piece: str, *, whole: bool) -> None:
        begun = self._text == ""
        self._text += piece if not self._streams or begun else ""
        if self._streams:
            self._fresh += piece
        if not whole:
            return
        self._value = None
        if self._wanted == "key":
            self._key = self._string()
            self._wanted = ":"
            self.broken = self._key is None
            return
        if self._key == "name":
            self.name = self._string()
            self.broken = self.name is None
        elif self._key in ("arguments", "parameters") and not self._streams:
            # Some models write the arguments as a text that holds JSON, or null where there are none.
            self._fresh += self._string() or "{}"
        self._wanted = ","

    @property
    def _streams(self) -> bool:
        return self._wanted == "value" and self._key in ("arguments", "parameters") and self._text[:1] == "{"

    def _string(self) -> str | None:
        try:
            value = json.loads(self._text)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, str) else None
