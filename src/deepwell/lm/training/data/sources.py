"""Documents from files: text, JSONL, Parquet and Hugging Face data sets, one at a time and in one fixed order.

Nothing is held whole: a text file is read in pieces, JSONL by lines, Parquet by batches of rows. What cannot be read
is an error that names the file and the line or row, and never a document less: a run that silently learned from half
of its data is worse than one that does not begin.

    for document in documents(section, base):
        document.text, document.source, document.place
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepwell.errors import DataError, MissingExtraError
from deepwell.lm.training.data.files import opened
from deepwell.lm.training.data.texts import read_texts
from deepwell.lm.training.recipe import SourceSection

Message = dict[str, Any]
"""``role`` and ``content``, and what else the chat API of OpenAI and DeepSeek knows."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SUFFIXES: dict[str, Literal["jsonl", "parquet"]] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet",
}  # fmt: skip
_TEXT_SUFFIXES = [".txt", ".md", ".rst", ".text", ".markdown"]
_BATCH_ROWS = 256
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Document:
    """One document: ``text``, or ``messages`` of a conversation, and where it stands."""

    source: str
    place: str
    text: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def where(self) -> str:
        """For errors: the file and the line or row."""
        return f"{self.source}, {self.place}" if self.place else self.source

    @property
    def own_text(self) -> str:
        """What makes it different from others: its text, or all that is said but by the system."""
        if not self.messages:
            return self.text
        return "\n".join(str(one["content"]) for one in self.messages if one["role"] not in {"system", "developer"})


def files_of(section: SourceSection, base: Path) -> list[Path]:
    """The files of a source, sorted; none for a data set that is asked for by its name.

    Args:
        section: Its path is a file, a folder (the files in it, at any depth, whose names say that they are of its
            format; for ``text`` all), or a pattern. Hidden files are left out.
        base: The folder that relative paths start from.

    Raises:
        DataError: There is no such file, or nothing fits the pattern.
    """
    path = base / Path(section.path).expanduser()
    if section.format == "huggingface" and not path.exists():
        return []
    if path.is_file():
        return [path]
    if path.is_dir():
        found: Iterable[Path] = path.rglob("*")
    elif glob.has_magic(section.path):
        found = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    else:
        raise DataError(
            f"there is no {path}, which data.sources names",
            hint='Paths are relative to the recipe; a Hugging Face data set needs format = "huggingface"',
        )
    wanted = sorted(one for one in found if one.is_file() and not _hidden(one, base))
    if path.is_dir() and section.format in {"auto", "jsonl", "parquet"}:
        # A folder has other things in it: pictures, or a README beside the rows.
        known = [one for one, form in _SUFFIXES.items() if section.format in {"auto", form}]
        known += _TEXT_SUFFIXES if section.format == "auto" else []
        wanted = [one for one in wanted if _plain_suffix(one) in known]
    if not wanted:
        raise DataError(f"{path} has no files", hint="Check data.sources.path; ** stands for any folders")
    return wanted


def documents(section: SourceSection, base: Path, *, kind: str = "pretrain") -> Iterator[Document]:
    """Every document of a source, in the order of its files; ``section.epochs`` is not looked at.

    Raises:
        DataError: What stands in a file is not what the section says; the message names file and line or row.
        MissingExtraError: The ``datasets`` package is not installed.
    """
    if section.format == "huggingface":
        for number, row in enumerate(_hub_rows(section, base), 1):
            yield _document(section, row, section.path, f"row {number}")
        return
    for path in files_of(section, base):
        form = section.format if section.format != "auto" else _SUFFIXES.get(_plain_suffix(path), "text")
        if form == "text":
            if kind == "sft":
                raise DataError(f"{path} is plain text, and fine-tuning on chats needs JSONL or Parquet")
            for place, text in read_texts(path):
                yield Document(str(path), place, text)
        elif form == "parquet":
            yield from _parquet_documents(section, path)
        else:
            for place, row in _json_rows(path):
                yield _document(section, row, str(path), place)


def repeats(epochs: float, number: int) -> int:
    """How often the ``number``-th document of a source (from 0) comes in one pass.

    The counts of the first n documents sum to ``floor(n * epochs)``: 0.5 takes every second one, 2.5 takes every one
    twice and every second one a third time.
    """
    # A ten-billionth more, so that 0.1 counted ten times is one.
    return int((number + 1) * epochs + 1e-10) - int(number * epochs + 1e-10)


# ---- JSON ----


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a file of JSON lines, or of one JSON array, whichever the first character says."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if line.lstrip().startswith(b"[") and _plain_suffix(path) == ".json":
                content = _json(line + file.read(), path, "")
                yield from ((f"item {index}", row) for index, row in enumerate(content, 1))
                return
            yield f"line {number}", _json(line, path, f"line {number}")


def _json(line: bytes, path: Path, place: str) -> Any:
    where = f"{path}, {place}" if place else str(path)
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if place else f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"{where} is not JSON: {error.msg} ({at})", hint="JSONL has one whole JSON object on each line"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where}: this JSON cannot be read: {error}") from error


# ---- rows of tables ----


def _parquet_documents(section: SourceSection, path: Path) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [name for name in (section.messages or section.prompt or section.text, section.answer) if name]
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in wanted:
                if name not in names:
                    raise _missing(name, names, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield _document(section, row, str(path), f"row {number}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _hub_rows(section: SourceSection, base: Path) -> Iterator[Any]:
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingExtraError(
            f"the data set {section.path} needs the datasets package", hint="Run: pip install 'deepwell[train]'"
        ) from error
    local = base / Path(section.path).expanduser()
    try:
        if local.is_dir() and (local / "dataset_dict.json").is_file():
            yield from datasets.load_from_disk(str(local))[section.split]
        elif local.is_dir() and (local / "state.json").is_file():
            yield from datasets.load_from_disk(str(local))
        else:
            name = str(local) if local.exists() else section.path
            yield from datasets.load_dataset(name, split=section.split, streaming=True)
    except Exception as error:  # the library raises errors of a dozen kinds, its own and those of its transports
        raise DataError(
            f"the data set {section.path} (split {section.split}) cannot be read: {error}",
            hint="Check data.sources.path and split, and that this machine has the data set or a network",
        ) from error


def _document(section: SourceSection, row: Any, source: str, place: str) -> Document:
    where = f"{source}, {place}"
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is a {type(row).__name__}, and a row is an object with fields")
    if section.messages:
        return Document(source, place, messages=_messages(section, _field(row, section.messages, where), where))
    if section.prompt:
        said = [
            {"role": "user", "content": _text(row, section.prompt, where)},
            {"role": "assistant", "content": _text(row, section.answer, where)},
        ]
        system = [{"role": "system", "content": section.system}] if section.system else []
        return Document(source, place, messages=(*system, *said))
    return Document(source, place, _text(row, section.text, where))


def _messages(section: SourceSection, given: Any, where: str) -> tuple[Message, ...]:
    name = section.messages
    if not isinstance(given, list | tuple) or not given:
        raise DataError(f"{where}: {name} is not a list of messages, each with role and content")
    messages: list[Message] = []
    for number, one in enumerate(given):
        at = f"{where}: {name}[{number}]"
        if not isinstance(one, Mapping):
            raise DataError(f"{at} is a {type(one).__name__}, and a message is an object with role and content")
        role = one.get("role")
        if role not in _ROLES:
            raise DataError(f"{at}.role is {role!r}; known are {', '.join(_ROLES)}")
        # Tables give every row every field, with nothing in those that it lacks.
        plain = {str(key): value for key, value in one.items() if value is not None}
        plain.setdefault("content", "" if plain.get("tool_calls") or plain.get("reasoning_content") else None)
        _checked(plain["content"], f"{at}.content")
        if "reasoning_content" in plain:
            _checked(plain["reasoning_content"], f"{at}.reasoning_content")
        messages.append(plain)
    if not any(one["role"] == "assistant" for one in messages):
        raise DataError(f"{where}: {name} has no message of the assistant, so there is nothing to learn")
    if section.system and messages[0]["role"] not in {"system", "developer"}:
        messages.insert(0, {"role": "system", "content": section.system})
    return tuple(messages)


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise _missing(name, list(row), where)
    return row[name]


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    return _checked(_field(row, name, where), f"{where}: {name}")


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise DataError(f"{where} is {kind} where text belongs")
    if "\0" in text:
        raise DataError(f"{where} has a NUL character at {text.index(chr(0))}, so it is hardly text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has half of a surrogate pair at {error.start}, which has no UTF-8 form") from error
    return text


def _missing(name: str, names: list[Any], where: str) -> DataError:
    shown = ", ".join(str(one) for one in names[:_NAMES_SHOWN]) or "none"
    return DataError(f"{where} has no field {name!r}; it has {shown}", hint="Name the field in [[data.sources]]")


def _plain_suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _hidden(path: Path, base: Path) -> bool:
    inside = path.relative_to(base) if path.is_relative_to(base) else Path(path.name)
    return any(part.startswith(".") and part != ".." for part in inside.parts)
