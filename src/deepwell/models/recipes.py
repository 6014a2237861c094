"""Files that no package carries ready-made, put together from files that one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepwell.errors import ModelSourceError


def imagenet_labels(texts: Sequence[str]) -> dict[str, str]:
    """The names of the ImageNet classes in the order of a network's outputs.

    Args:
        texts: One WordNet id a line, in the order of the classes; and a table of ids, a tab, and that id's words,
            separated by commas, the usual one first.

    Returns:
        ``labels.txt``, one name a line, and ``synonyms.txt``, all words of the class on the same line.
    """
    order, table = texts
    words = dict(line.split("\t", 1) for line in table.splitlines() if "\t" in line)
    try:
        synonyms = [words[wordnet_id].strip() for wordnet_id in order.split()]
    except KeyError as error:
        raise ModelSourceError(f"the table of class names has no {error.args[0]}", hint="") from error
    labels = [line.split(",")[0].strip() for line in synonyms]
    return {"labels.txt": "\n".join(labels) + "\n", "synonyms.txt": "\n".join(synonyms) + "\n"}


RECIPES: dict[str, Callable[[Sequence[str]], dict[str, str]]] = {"imagenet-labels": imagenet_labels}
