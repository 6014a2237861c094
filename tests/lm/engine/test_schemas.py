"""Patterns that exclude what JSON escapes are kept, and nothing else of a schema is touched."""

import json
import re

import pytest

from deepwell.lm.engine.grammar import Grammars
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.schemas import closed, sound
from deepwell.lm.weights.tokenizer import Tokenizer


def _keeps(grammars: Grammars, tokenizer: Tokenizer, pattern: str, value: str) -> bool:
    grammar = grammars.begin(SamplingParams(json_schema={"type": "string", "pattern": pattern}))
    assert grammar is not None
    ids = tokenizer.encode(json.dumps(value, ensure_ascii=False), bos=False)
    taken = grammar._matcher.try_consume_tokens(ids)
    return taken == len(ids) and grammar._matcher.is_accepting()


@pytest.mark.parametrize("pattern", [
    '^[^"]$', r"^[^\\]$", r'^[^"\\]$', '^[^"a]$', r"^[^\n]$", "^[^a]$", "^.$", r"^\S$", r"^[^\s]$", '^"[^"]?"$',
])  # fmt: skip
def test_a_string_under_a_pattern_is_what_the_pattern_matches(pattern: str, deepseek: Tokenizer) -> None:
    grammars = Grammars(deepseek)
    for value in ('"', "\\", "\n", "\t", "a", "/", "é", "😀", " ", '""', '"a"', '"""', "[^", "["):
        assert _keeps(grammars, deepseek, pattern, value) == bool(re.search(pattern, value)), value


def test_the_grammar_library_still_needs_this(deepseek: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepwell.lm.engine.grammar.sound", lambda schema: schema)
    assert _keeps(Grammars(deepseek), deepseek, '^[^"]$', '"'), "llguidance has mended it: drop schemas.py"


@pytest.mark.parametrize(("pattern", "wanted"), [
    ("[^]a]", r"[^]\x01a]"), (r"\[^a]", r"\[^a]"), (r"\\[^a]", r"\\[^\x01a]"), ("a[bc]^", "a[bc]^"), ("\\", "\\"),
])  # fmt: skip
def test_only_negated_classes_change(pattern: str, wanted: str) -> None:
    assert closed(pattern) == wanted


def test_only_patterns_change() -> None:
    class_, shut = "[^b]", "[^\\x01b]"
    schema = {
        "properties": {"pattern": {"pattern": class_}, "const": {"items": [{"pattern": class_}]}},
        "patternProperties": {class_: {"enum": [{"pattern": class_}]}}, "const": {"pattern": class_},
        "anyOf": [True, {"pattern": class_, "description": class_}],
    }  # fmt: skip
    before = json.dumps(schema)
    assert sound(schema) == {
        "properties": {"pattern": {"pattern": shut}, "const": {"items": [{"pattern": shut}]}},
        "patternProperties": {shut: {"enum": [{"pattern": class_}]}}, "const": {"pattern": class_},
        "anyOf": [True, {"pattern": shut, "description": class_}],
    }  # fmt: skip
    assert json.dumps(schema) == before
