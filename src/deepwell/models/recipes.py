"""Files that no package carries ready-made, put together from files that one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepwell.errors import ModelSourceError


def imagenet_labels(texts: Sequence[str]) -> dict[str, str]:
    """The names of the ImageNet classes in the order of a network's outputs.

    Args:
        texts: One WordNet id a line, in the order of the classes; a table of ids, a tab, and that id's words, separated
            by commas, the usual one first; and a table of ids, a tab, and that id's definition.

    Returns:
        ``labels.txt``, one name a line, and on the same lines ``synonyms.txt``, all words of the class, and
        ``definitions.txt``, what the dictionary says of it.
    """
    order, words, meanings = texts
    synonyms = _column(order, words)
    labels = [line.split(",")[0].strip() for line in synonyms]
    files = {"labels.txt": labels, "synonyms.txt": synonyms, "definitions.txt": _column(order, meanings)}
    return {name: "\n".join(lines) + "\n" for name, lines in files.items()}


def _column(order: str, table: str) -> list[str]:
    rows = dict(line.split("\t", 1) for line in table.splitlines() if "\t" in line)
    try:
        return [rows[wordnet_id].strip() for wordnet_id in order.split()]
    except KeyError as error:
        raise ModelSourceError(f"the table of class names has no {error.args[0]}", hint="") from error


RECIPES: dict[str, Callable[[Sequence[str]], dict[str, str]]] = {"imagenet-labels": imagenet_labels}
