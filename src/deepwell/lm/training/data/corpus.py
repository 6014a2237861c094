"""From the sources of a recipe to tokens on disk, once: the next run with the same recipe and files finds them there.

Sources are read three times, since nothing is held whole: to find duplicates and choose what is held back, to train a
tokenizer where none is given, and to make tokens.

What is held back is chosen by the hash of a document's text, so it stays held back when documents come or go. A
document that repeats an earlier one is left out, or without ``deduplicate`` put on the side of the earlier one; one
that is similar to documents on both sides is left out in any case. So nothing that the network is tested on has been
learned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from deepwell.errors import DataError, ModelFileError
from deepwell.lm.training.data.bpe import train_tokenizer
from deepwell.lm.training.data.conversations import encode_conversation
from deepwell.lm.training.data.duplicates import Duplicates
from deepwell.lm.training.data.sources import Document, documents, files_of, repeats
from deepwell.lm.training.data.store import (
    MANIFEST,
    Documents,
    SideWriter,
    checksum,
    open_side,
    read_manifest,
    write_manifest,
)
from deepwell.lm.training.recipe import DataSection, Recipe
from deepwell.lm.weights.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]
"""Called with a phase (``reading``, ``tokenizer``, ``tokens``), and how much of how much is done; of 0: not known."""

_VERSION = 1
_TRAIN, _HELD_BACK, _LEFT_OUT = 0, 1, 2
_SIDES = ("train", "validation")
_BATCH = 256
_BATCH_CHARACTERS = 4_000_000
_TOKENIZER = "tokenizer"


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """What a run learns from.

    Attributes:
        tokenizer: The one given, or the one trained.
        train: What is learned.
        validation: What is held back; empty for ``validation = 0`` and where there is one document only.
        facts: Counts: of ``documents`` read, how many were ``duplicates``, ``empty`` or ``thinned`` out; of what is
            learned ``train_documents``, ``bytes`` and ``tokens``; the same of what is held back, as ``validation_...``.
        fingerprint: Of the tokenizer and of all tokens: another one where a run would see other rows.
    """

    tokenizer: Tokenizer
    train: Documents
    validation: Documents
    facts: dict[str, int]
    fingerprint: str


def prepare(
    recipe: Recipe,
    base: Path,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    on_progress: Progress | None = None,
) -> Corpus:
    """Read, deduplicate, split and tokenise a recipe's data below ``folder``, or find it there.

    Several processes may call this at once: the first does the work, the others wait.

    Args:
        recipe: Its sections ``data`` and ``tokenizer``, and its kind.
        base: The folder that the recipe's paths are relative to.
        folder: Where the files go; it is made if need be, and belongs to one corpus at a time.
        tokenizer: None: train one, on the documents that are learned from.
        on_progress: See ``Progress``.

    Raises:
        DataError: A source is missing, damaged or empty, and the message names file and line; or the disk is full.
        MissingExtraError: A source needs a package that is not installed.
    """
    report = on_progress or _silent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            key = _key(recipe, base, tokenizer)
            found = _open(folder, key, recipe.kind, tokenizer)
            if found is None:
                _make(recipe, base, folder, key, tokenizer, report)
                found = _open(folder, key, recipe.kind, tokenizer)
    except OSError as error:  # sources that cannot be read have an error of their own
        raise DataError(
            f"the data cannot be prepared in {folder}: {error}",
            hint="See whether there is room, there and where temporary files go, and begin again",
        ) from error
    if found is None:
        raise DataError(f"what was written to {folder} cannot be read again", hint="Check the disk")
    return found


def _silent(_phase: str, _done: int, _total: int) -> None:
    pass


# ---- what is there already ----


def _key(recipe: Recipe, base: Path, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """All that the files depend on: settings, sources with their sizes and times, the tokenizer."""
    data = recipe.data
    settings = {name: getattr(data, name) for name in ("validation", "deduplicate", "max_documents")}
    sources = []
    for section in data.sources:
        files = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files_of(section, base)]
        sources.append({**dataclasses.asdict(section), "files": [list(one) for one in files]})
    made_by: Any = dataclasses.asdict(recipe.tokenizer)
    if tokenizer is not None:
        parts = tokenizer.parts
        told = repr((parts.description, parts.bos, parts.eos, parts.add_bos, sorted(parts.templates.items())))
        made_by = hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()
    return {"version": _VERSION, "kind": recipe.kind, "data": settings, "sources": sources, "tokenizer": made_by}


def _open(folder: Path, key: dict[str, Any], kind: str, tokenizer: Tokenizer | None) -> Corpus | None:
    manifest = read_manifest(folder, key)
    if manifest is None:
        return None
    try:
        used = tokenizer or Tokenizer.from_folder(folder / _TOKENIZER)
    except ModelFileError:
        return None
    train, validation = (open_side(folder, side, vocab_size=used.vocab_size, chats=kind == "sft") for side in _SIDES)
    made_of = json.dumps([manifest["key"]["tokenizer"], sorted(manifest["files"].items())], sort_keys=True)
    fingerprint = hashlib.sha256(made_of.encode()).hexdigest()
    return Corpus(used, train, validation, manifest["facts"], fingerprint)


# ---- making it ----


def _make(
    recipe: Recipe, base: Path, folder: Path, key: dict[str, Any], tokenizer: Tokenizer | None, report: Progress
) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    plan = _sorted_out(recipe.data, _numbered(recipe, base), report)
    files: dict[str, list[int]] = {}
    if tokenizer is None:
        report("tokenizer", 0, 1)
        tokenizer = train_tokenizer(_sample(recipe, base, plan), recipe.tokenizer.vocab_size)
        tokenizer.save(folder / _TOKENIZER)
        for path in sorted((folder / _TOKENIZER).iterdir()):
            files[f"{_TOKENIZER}/{path.name}"] = list(checksum(path))
        report("tokenizer", 1, 1)
    chats = recipe.kind == "sft"
    train, validation = (SideWriter(folder, side, vocab_size=tokenizer.vocab_size, chats=chats) for side in _SIDES)
    with train, validation:
        _tokenise(recipe, base, plan, tokenizer, {_TRAIN: train, _HELD_BACK: validation}, report)
        if not train.documents:
            raise DataError("there is nothing to learn: no document gives a token", hint="Check data.sources")
        files |= train.finish() | validation.finish()
    facts = {
        "documents": len(plan.sides),
        "duplicates": plan.duplicates,
        "empty": plan.empty,
        "thinned": plan.thinned,
        "train_documents": train.documents,
        "bytes": train.bytes,
        "tokens": train.tokens,
        "validation_documents": validation.documents,
        "validation_bytes": validation.bytes,
        "validation_tokens": validation.tokens,
    }
    write_manifest(folder, {"key": key, "facts": facts, "files": files})


def _numbered(recipe: Recipe, base: Path) -> Iterator[tuple[Document, int]]:
    """Every document with how often it comes in one pass, 0 for one that is thinned out."""
    everything = (
        (document, repeats(section.epochs, number))
        for section in recipe.data.sources
        for number, document in enumerate(documents(section, base, kind=recipe.kind))
    )
    return islice(everything, recipe.data.max_documents or None)


@dataclass(slots=True)
class _Plan:
    """What becomes of each document that was read, by its number."""

    sides: array[int] = dataclasses.field(default_factory=lambda: array("b"))
    firsts: array[int] = dataclasses.field(default_factory=lambda: array("q"))
    """The document whose hash decided: its own number, or that of the one it repeats; -1 for one left out."""
    keys: array[int] = dataclasses.field(default_factory=lambda: array("Q"))
    duplicates: int = 0
    empty: int = 0
    thinned: int = 0
    text_bytes: int = 0

    def put(self, side: int, first: int = -1, key: int = 0) -> None:
        self.sides.append(side)
        self.firsts.append(first)
        self.keys.append(key)

    def fill_both_sides(self) -> None:
        """Move one document to a side that has none, with all that repeat it, if there are two to be parted."""
        own = [number for number, first in enumerate(self.firsts) if number == first]
        if len(own) < 2 or len({self.sides[number] for number in own}) == 2:
            return
        alone = self.sides[own[0]]
        choose = min if alone == _TRAIN else max
        moved = choose(own, key=lambda number: self.keys[number])
        for number, first in enumerate(self.firsts):
            if first == moved:
                self.sides[number] = _TRAIN if alone == _HELD_BACK else _HELD_BACK


def _sorted_out(data: DataSection, read: Iterable[tuple[Document, int]], report: Progress) -> _Plan:
    """Where each document goes."""
    plan = _Plan()
    held = array("q")
    # With nothing held back and nothing left out there is nothing to be compared.
    compare = data.deduplicate or data.validation > 0
    with Duplicates(near=compare) as duplicates:
        for number, (document, times) in enumerate(read):
            if number % _BATCH == 0:
                report("reading", number, 0)
            text = document.own_text
            if times == 0 or not text.strip():
                plan.thinned += times == 0
                plan.empty += times != 0
                plan.put(_LEFT_OUT)
                continue
            key, earlier = duplicates.compare(text) if compare else (0, [])
            firsts = {plan.firsts[held[one]] for one in earlier}
            if firsts and (data.deduplicate or len({plan.sides[first] for first in firsts}) > 1):
                plan.duplicates += 1
                plan.put(_LEFT_OUT)
                continue
            if compare:
                duplicates.hold()
                held.append(number)
            plan.text_bytes += len(text.encode())
            if firsts:
                plan.put(plan.sides[min(firsts)], min(firsts), key)
            else:
                plan.put(_HELD_BACK if key < data.validation * 2**64 else _TRAIN, number, key)
    report("reading", len(plan.sides), len(plan.sides))
    if data.validation > 0:
        plan.fill_both_sides()
    if _TRAIN not in plan.sides and data.validation > 0:
        # One document: without it there would be nothing to learn.
        plan.sides = array("b", [_TRAIN if side == _HELD_BACK else side for side in plan.sides])
    if _TRAIN not in plan.sides:
        raise DataError(
            f"there is nothing to learn: {len(plan.sides)} documents were read and none has text",
            hint="Check data.sources, and the field that they name",
        )
    return plan


def _sample(recipe: Recipe, base: Path, plan: _Plan) -> Iterator[str]:
    """Text for a tokenizer: documents evenly from all that is learned from."""
    share = min(recipe.tokenizer.sample_mb * 1e6 / plan.text_bytes, 1.0)
    number = 0
    for side, (document, _) in zip(plan.sides, _numbered(recipe, base), strict=False):
        if side == _TRAIN:
            if repeats(share, number):
                yield document.own_text
            number += 1


def _batches(
    everything: Iterable[tuple[int, tuple[Document, int]]],
) -> Iterator[list[tuple[int, tuple[Document, int]]]]:
    """Documents to be tokenised at once: not many, and not much, since the library needs 100 bytes for a token."""
    batch: list[tuple[int, tuple[Document, int]]] = []
    size = 0
    for one in everything:
        batch.append(one)
        size += len(one[1][0].own_text)
        if len(batch) == _BATCH or size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _tokenise(
    recipe: Recipe,
    base: Path,
    plan: _Plan,
    tokenizer: Tokenizer,
    writers: dict[int, SideWriter],
    report: Progress,
) -> None:
    """Write the tokens of every document to its side."""
    number = -1
    for batch in _batches(enumerate(_numbered(recipe, base))):
        number = batch[-1][0]
        if number >= len(plan.sides):
            break
        report("tokens", batch[0][0], len(plan.sides))
        wanted = [(side, document, times) for at, (document, times) in batch if (side := plan.sides[at]) in writers]
        if recipe.kind == "sft":
            chats = [encode_conversation(tokenizer, document) for _, document, _ in wanted]
            tokens: list[Any] = [chat.tokens for chat in chats]
            learned: list[Any] = [chat.learned for chat in chats]
        else:
            tokens = tokenizer.encode_batch([document.text for _, document, _ in wanted])
            learned = [None] * len(tokens)
        for (side, document, times), ids, said in zip(wanted, tokens, learned, strict=True):
            if len(ids) == 0:
                plan.empty += 1
                continue
            size = len(document.own_text.encode())
            writers[side].add(ids, size=size, times=times if side == _TRAIN else 1, learned=said)
    if number + 1 != len(plan.sides):
        raise DataError("the sources have changed while they were read", hint="Start again")
    report("tokens", len(plan.sides), len(plan.sides))
