"""A tokenizer's files in a model's folder, as the Hugging Face hub has them.

``tokenizer.json`` is the tokenizer. Around it: ``tokenizer_config.json`` and ``special_tokens_map.json`` (which token
begins and ends a text), ``generation_config.json`` (which tokens end an answer), and chat templates in
``chat_template.jinja``, ``additional_chat_templates/NAME.jinja``, ``chat_template.json`` or inside the configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepwell.errors import ModelFileError
from deepwell.lm.weights.tokenizer_parts import TokenizerParts

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_KEPT = ("model_max_length", "additional_special_tokens", "extra_special_tokens")


def read_folder(folder: Path) -> TokenizerParts:
    """Read a tokenizer's files.

    Raises:
        ModelFileError: There is no ``tokenizer.json``, or a file is not the JSON it should be; the message names it.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        other = next((name for name in ("tokenizer.model", "vocab.json") if (folder / name).is_file()), None)
        hint = (
            f"{other} alone is not read; transformers' AutoTokenizer can write a tokenizer.json from it"
            if other
            else ""
        )
        raise ModelFileError(f"there is no tokenizer.json in {folder}", hint=hint)
    description = _object(path)
    config = _object(folder / "tokenizer_config.json", missing_ok=True)
    names = _object(folder / "special_tokens_map.json", missing_ok=True)
    generation = _object(folder / "generation_config.json", missing_ok=True)
    model = _object(folder / "config.json", missing_ok=True)
    added = description.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(one, dict) and {"id", "content"} <= one.keys() for one in added
    ):
        raise ModelFileError(f"{path}: added_tokens is not a list of tokens, each with id and content")
    texts = {token["id"]: token["content"] for token in added}
    roles = {role: _content(config.get(role)) or _content(names.get(role)) for role in _ROLES}
    for role in ("bos_token", "eos_token"):
        number = next(
            (file[f"{role}_id"] for file in (generation, model) if isinstance(file.get(f"{role}_id"), int)), None
        )
        roles[role] = roles[role] or texts.get(number)
    ends = generation.get("eos_token_id", model.get("eos_token_id"))
    add_bos = config.get("add_bos_token")
    return TokenizerParts(
        description=_with_config_tokens(description, added, config),
        source=str(path),
        bos=roles["bos_token"],
        eos=roles["eos_token"],
        pad=roles["pad_token"],
        unk=roles["unk_token"],
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        eos_ids=tuple(one for one in (ends if isinstance(ends, list) else [ends]) if isinstance(one, int)),
        templates=_templates(folder, config),
        extras={name: config[name] for name in _KEPT if name in config},
    )


def write_folder(parts: TokenizerParts, folder: Path, *, add_bos: bool) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, chat templates inside it.

    ``tokenizer_class`` is the one class of transformers that takes ``tokenizer.json`` as it is; the classes named after
    a model rebuild parts of it in their own way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(parts.description, encoding="utf-8")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **parts.extras, "add_bos_token": add_bos}
    tokens = zip(_ROLES, (parts.bos, parts.eos, parts.pad, parts.unk), strict=True)
    config |= {role: text for role, text in tokens if text is not None}
    config["clean_up_tokenization_spaces"] = False
    if set(parts.templates) == {"default"}:
        config["chat_template"] = parts.templates["default"]
    elif parts.templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in parts.templates.items()]
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _object(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    if missing_ok and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds a {type(content).__name__} where an object belongs")
    return content


def _content(token: Any) -> str | None:
    """A special token, which files give as text or as an object with its flags."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _with_config_tokens(description: dict[str, Any], added: list[dict[str, Any]], config: dict[str, Any]) -> str:
    """The description, with the tokens that only ``tokenizer_config.json`` names added to it."""
    extra = config.get("added_tokens_decoder")
    named = extra.items() if isinstance(extra, dict) else ()
    held = {token["content"] for token in added}
    more: list[dict[str, Any]] = [
        {"id": int(number), "content": text} | {flag: bool(token.get(flag)) for flag in _FLAGS}
        for number, token in named
        if number.isdecimal() and isinstance(token, dict) and (text := _content(token)) and text not in held
    ]
    tokens = [*added, *sorted(more, key=lambda token: token["id"])]
    return json.dumps({**description, "added_tokens": tokens}, ensure_ascii=False)


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    templates: dict[str, str] = {}
    for given in (
        _object(folder / "chat_template.json", missing_ok=True).get("chat_template"),
        config.get("chat_template"),
    ):
        if isinstance(given, str):
            templates["default"] = given
        elif isinstance(given, list):
            named = [one for one in given if isinstance(one, dict) and isinstance(one.get("template"), str)]
            templates.update({str(one.get("name", "default")): one["template"] for one in named})
    files = {"default": folder / "chat_template.jinja"}
    files.update({path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))})
    for name, path in files.items():
        if path.is_file():
            try:
                templates[name] = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ModelFileError(f"{path} cannot be read: {error}") from error
    return templates
