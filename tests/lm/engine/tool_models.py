"""A tiny tokenizer for each way to write calls, and functions to call."""

import importlib.util
from pathlib import Path
from typing import Any

from deepwell.lm.weights.tokenizer import Tokenizer

_spec = importlib.util.spec_from_file_location(
    "tiny_tokenizers", Path(__file__).parents[1] / "weights" / "tiny_tokenizers.py"
)
assert _spec is not None and _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "look", "description": "Looks something up.", "parameters": {
        "type": "object", "required": ["at", "days"], "additionalProperties": False,
        "properties": {"at": {"type": "string", "maxLength": 5}, "days": {"type": "integer", "minimum": 1,
                                                                          "maximum": 7}}}}},
    {"type": "function", "function": {"name": "no-arguments"}},
]  # fmt: skip

_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
_V31 = "{{ tools }}{{ '<｜tool▁calls▁begin｜>' }}{% for m in messages %}{{ m.content }}{% endfor %}"
_TAGS = ("<tool_call>", "</tool_call>")
WRITERS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "deepseek": (tiny.DEEPSEEK, None),
    "deepseek-v3.1": (tiny.DEEPSEEK, _V31),
    "hermes": (tiny.CHATML, None),
    "qwen": ((*tiny.CHATML, *_TAGS), None),
    "smollm2": (tiny.CHATML, _CHAT),
    "listed": (tiny.CHATML, "{{ tools }}Write <tool_call>[...]</tool_call>" + _CHAT),
    "llama3": ((*tiny.LLAMA3, "<|python_tag|>"), None),
}
"""Control tokens, and the chat template that the files carry."""


def writer(name: str, folder: Path, *, template: str | None = None) -> Tokenizer:
    """The tokenizer of a model that writes calls in one of these ways."""
    controls, own = (tiny.LLAMA2, None) if name == "llama2" else WRITERS[name]
    return Tokenizer.from_folder(tiny.write_byte_level(folder, controls=controls, template=template or own))
