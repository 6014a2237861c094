"""The candidates of one search: everything that an arm found, with its true score in every arm.

Each arm finds its own best passages. Before they are fused, a passage that only one arm found gets the score that the
other arm would have given it (*score completion*). Without that, "not among the first hundred" would count as zero, and
a passage found by both arms would beat a better one for no reason but luck.

Words are completed from an index. A process that stays holds one over the whole library. A process that answers once
(the command line) has only the candidates' texts: it indexes those, and takes what it cannot count, how rare a term is
in the library, from the scores that the store's own index returned. Each such score is a sum over terms of
``idf(t) * f(t, d)`` where ``f`` can be counted from the text; with a hundred of them and a dozen terms the idfs are the
solution of a small least-squares problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deepwell.library.search.wordindex import Vocabulary, WordIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray


def index_pool(
    ids: Sequence[str],
    texts: Sequence[str],
    terms: Mapping[str, float],
    matched: Mapping[str, float],
    library_size: int,
) -> WordIndex:
    """A word index over candidates, with the idfs that the library would give.

    Args:
        ids: The candidates.
        texts: Theirs.
        terms: The query's terms and counts.
        matched: BM25 scores from the store's index, by passage id.
        library_size: Passages in the library.

    Terms that are not in the query get the idf of their frequency among the candidates, which are all about the same
    thing; that is what feedback needs: the words that set the best candidates apart from the others.
    """
    vocabulary = Vocabulary()
    index = WordIndex(ids, vocabulary.count(texts), vocabulary)
    numbers = [(vocabulary.numbers[t], weight) for t, weight in terms.items() if t in vocabulary.numbers]
    rows = [index.rows[i] for i in matched if i in index.rows]
    if not numbers or not rows:
        return index
    scores = np.asarray([matched[i] for i in matched if i in index.rows], dtype=np.float64)
    features = np.zeros((len(rows), len(numbers)))
    for column, (number, weight) in enumerate(numbers):
        unit = np.zeros(len(index), dtype=np.float64)
        part = slice(index._posting_start[number], index._posting_start[number + 1])
        unit[index._posting_row[part]] = index._posting_weight[part] * weight
        features[:, column] = unit[rows]
    ceiling = float(np.log(1 + (library_size + 0.5) / 0.5))
    prior = np.full(len(numbers), min(4.0, ceiling))
    index.idf = index.idf.copy()
    index.idf[[number for number, _ in numbers]] = _nonnegative(features, scores, prior).clip(0.05, ceiling)
    return index


def _nonnegative(
    features: NDArray[np.float64], scores: NDArray[np.float64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares, pulled a little towards the prior, by coordinate descent over values that stay above zero."""
    pull = 0.01 * max(float((features**2).sum()) / max(features.shape[1], 1), 1e-9)
    gram = features.T @ features + pull * np.eye(features.shape[1])
    target = features.T @ scores + pull * prior
    solution = prior.copy()
    for _ in range(50):
        for k in range(len(solution)):
            rest = target[k] - gram[k] @ solution + gram[k, k] * solution[k]
            solution[k] = max(0.0, rest / gram[k, k])
    return solution
