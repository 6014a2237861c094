"""A tokenizer from the metadata of a GGUF file, and the metadata from a tokenizer.

Two kinds matter to language models. ``gpt2`` is a byte-level vocabulary with its merges in order and a name for the way
text is split (``tokenizer_splits``). ``llama`` is a SentencePiece vocabulary: each piece has a score, the pair whose
piece has the best score is merged first, and characters without a piece are spelled in bytes. Both are written here as
a ``tokenizer.json``; format facts are from the GGUF specification and llama.cpp's documentation of its keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepwell.errors import ModelFileError, ModelFormatError
from deepwell.lm.weights.tokenizer_parts import TokenizerParts, is_control
from deepwell.lm.weights.tokenizer_splits import SPLITTINGS, name_of

if TYPE_CHECKING:
    from deepwell.lm.weights.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""GGUF's kinds of token."""

_MARK = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def from_fields(fields: Mapping[str, Any], *, source: str) -> TokenizerParts:
    """Read the ``tokenizer.*`` keys; see ``Tokenizer.from_gguf``."""
    kind = _get(fields, "model", str, source)
    tokens = _get(fields, "tokens", list, source)
    types = _get(fields, "token_type", list, source, default=[NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise ModelFileError(f"{source}: tokenizer.ggml.token_type has {len(types)} values for {len(tokens)} tokens")
    if kind == "gpt2":
        pre = _get(fields, "pre", str, source, default="default")
        description, adds_bos = _byte_level(fields, tokens, pre, source)
    elif kind == "llama":
        pre, adds_bos = None, True
        description = _sentencepiece(fields, tokens, types, source)
    else:
        raise ModelFileError(
            f"{source}: tokenizer.ggml.model is {kind!r}; gpt2 and llama are known",
            hint="A folder with tokenizer.json can be read in its place",
        )
    description["added_tokens"] = [
        {
            "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": kind_of_token != USER_DEFINED,
        }
        for number, (text, kind_of_token) in enumerate(zip(tokens, types, strict=True))
        if text and kind_of_token in {CONTROL, USER_DEFINED, UNKNOWN}
    ]  # fmt: skip
    adds_bos = _get(fields, "add_bos_token", bool, source, default=adds_bos)
    ids = {role: _token_id(fields, role, len(tokens), source) for role in ("bos", "eos", "padding", "unknown")}
    texts = {role: None if number is None else tokens[number] for role, number in ids.items()}
    ends = [_token_id(fields, key.removesuffix("_token_id"), len(tokens), source) for key in _ENDS]
    text = json.dumps(description, ensure_ascii=False)
    if adds_bos and ids["bos"] is not None:
        text = with_bos(text, (tokens[ids["bos"]], ids["bos"]))
    return TokenizerParts(
        description=text,
        source=source,
        bos=texts["bos"],
        eos=texts["eos"],
        pad=texts["padding"],
        unk=texts["unknown"],
        add_bos=adds_bos,
        eos_ids=tuple(one for one in ends if one is not None),
        templates=_templates(fields, source),
        pre=pre,
    )


def to_fields(tokenizer: Tokenizer, vocab_size: int | None) -> dict[str, Any]:
    """Write the ``tokenizer.*`` keys; see ``Tokenizer.to_gguf``."""
    parts = tokenizer.parts
    description = json.loads(parts.description)
    model = description["model"]
    if model.get("type") != "BPE":
        raise ModelFormatError(
            f"{parts.source}: GGUF files here hold BPE vocabularies, and this is {model.get('type')}"
        )
    size = tokenizer.vocab_size if vocab_size is None else vocab_size
    if size < tokenizer.vocab_size:
        raise ModelFormatError(
            f"{parts.source}: the tokenizer has {tokenizer.vocab_size} tokens and the network rows for {size}"
        )
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [UNUSED] * size
    for text, number in model["vocab"].items():
        tokens[number], types[number] = text, NORMAL
    fields: dict[str, Any] = {}
    if _is_byte_level(description):
        pre = parts.pre or name_of(description)
        if pre is None:
            raise ModelFormatError(
                f"{parts.source}: GGUF has no name for the way this tokenizer splits text into words",
                hint="Write format deepseek (safetensors), which carries tokenizer.json as it is",
            )
        fields |= {"model": "gpt2", "pre": pre, "merges": [_joined(merge) for merge in model["merges"]]}
    else:
        types = [
            BYTE if kind == NORMAL and _BYTE.fullmatch(text) else kind for text, kind in zip(tokens, types, strict=True)
        ]
        fields |= {"model": "llama", "pre": "default", "scores": _scores(tokens, model["merges"])}
        fields["add_space_prefix"] = (
            "prepend" in json.dumps([description.get("normalizer"), description.get("pre_tokenizer")]).lower()
        )
    for token in description.get("added_tokens") or []:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if is_control(token) else USER_DEFINED
    unknown = model.get("unk_token") or parts.unk
    if unknown in model["vocab"]:
        fields["unknown_token_id"] = model["vocab"][unknown]
        if fields["model"] == "llama":
            types[model["vocab"][unknown]] = UNKNOWN
    fields |= {"tokens": tokens, "token_type": types, "add_bos_token": tokenizer.adds_bos}
    ends = tokenizer.eos_token_ids
    for key, number in (
        ("bos", tokenizer.bos_token_id),
        ("eos", ends[0] if ends else None),
        ("padding", tokenizer.pad_token_id),
    ):
        if number is not None:
            fields[f"{key}_token_id"] = number
    written = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    for name, template in parts.templates.items():
        written["tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"] = template
    return written


def with_bos(description: str, bos: tuple[str, int] | None) -> str:
    """The text of a ``tokenizer.json`` whose post-processor begins each text with a token, or with none."""
    content = json.loads(description)
    content["post_processor"] = None
    if bos is not None:
        text, number = bos
        first, one, two = {"SpecialToken": {"id": text, "type_id": 0}}, _sequence("A", 0), _sequence("B", 1)
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [first, one],
            "pair": [first, one, {"SpecialToken": {"id": text, "type_id": 1}}, two],
            "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]}},
        }
    return json.dumps(content, ensure_ascii=False)


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def _byte_level(fields: Mapping[str, Any], tokens: Sequence[str], pre: str, source: str) -> tuple[dict[str, Any], bool]:
    splitting = SPLITTINGS.get(pre)
    if splitting is None:
        raise ModelFileError(
            f"{source}: tokenizer.ggml.pre is {pre!r}; known are {', '.join(SPLITTINGS)}",
            hint="Read the model from a folder with tokenizer.json, or tell us of this name",
        )
    merges = [merge.split(" ", 1) for merge in _get(fields, "merges", list, source)]
    vocabulary = _vocabulary(tokens)
    for number, merge in enumerate(merges):
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            raise ModelFileError(
                f"{source}: tokenizer.ggml.merges[{number}] is {' '.join(merge)!r}, of no known tokens"
            )
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": splitting.ignore_merges}
    return {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if splitting.nfc else None,
        "pre_tokenizer": splitting.pre_tokenizer(),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }, splitting.adds_bos


def _sentencepiece(
    fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], source: str
) -> dict[str, Any]:
    scores = _get(fields, "scores", list, source)
    if len(scores) != len(tokens):
        raise ModelFileError(f"{source}: tokenizer.ggml.scores has {len(scores)} values for {len(tokens)} tokens")
    prefix = _get(fields, "add_space_prefix", bool, source, default=True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}
    back = {"type": "Replace", "pattern": {"String": _MARK}, "content": " "}
    decoders: list[dict[str, Any]] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    unknown = next((text for text, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    return {
        "version": "1.0",
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": _MARK}, replace] if prefix else [replace],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [*decoders, {"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else decoders,
        },
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": BYTE in types,
            "vocab": _vocabulary(tokens),
            "merges": _merges(tokens, types, scores),
        },
    }


def _merges(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[list[str]]:
    """The pairs that can be merged, best first: SentencePiece merges the pair whose piece has the highest score."""
    pieces = {text: score for text, kind, score in zip(tokens, types, scores, strict=True) if kind == NORMAL}
    pairs = [
        (-score, number, cut, text)
        for number, (text, score) in enumerate(pieces.items())
        for cut in range(1, len(text))
        if text[:cut] in pieces and text[cut:] in pieces
    ]
    return [[text[:cut], text[cut:]] for _, _, cut, text in sorted(pairs)]


def _scores(tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """Scores that give back the order of the merges; single characters, which need none, come last."""
    ranks: dict[str, int] = {}
    for merge in merges:
        ranks.setdefault(_joined(merge).replace(" ", ""), len(ranks))
    return [-float(ranks.get(text, len(ranks))) for text in tokens]


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for number, text in enumerate(tokens):
        vocabulary.setdefault(text, number)
    return vocabulary


def _joined(merge: str | Sequence[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _is_byte_level(description: Mapping[str, Any]) -> bool:
    return "ByteLevel" in json.dumps([description.get("pre_tokenizer"), description.get("decoder")])


def _templates(fields: Mapping[str, Any], source: str) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    templates = {}
    for key, value in fields.items():
        if key == prefix or key.startswith(prefix + "."):
            if not isinstance(value, str):
                raise ModelFileError(f"{source}: {key} is not text")
            templates[key[len(prefix) + 1 :] or "default"] = value
    return templates


def _token_id(fields: Mapping[str, Any], role: str, count: int, source: str) -> int | None:
    number = fields.get(f"tokenizer.ggml.{role}_token_id")
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < count:
        raise ModelFileError(f"{source}: tokenizer.ggml.{role}_token_id is {number!r}, and there are {count} tokens")
    return number


def _get(fields: Mapping[str, Any], name: str, kind: type, source: str, default: Any = None) -> Any:
    key = f"tokenizer.ggml.{name}"
    value = fields.get(key, default)
    if value is None:
        raise ModelFileError(f"{source}: there is no {key}")
    if not isinstance(value, kind):
        raise ModelFileError(f"{source}: {key} is a {type(value).__name__} where a {kind.__name__} belongs")
    return value
