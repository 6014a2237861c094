"""Files by their names: ``coin hoard``, ``IMG_0107``, ``budget 2023.xlsx``.

People look for a file by what it is called as often as by what it says, and its passages need not say it. Names are
compared as the search goes on, from the documents in memory, and are no part of a passage's words: a file that is
renamed keeps its passages and is found by its new name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING

from deepwell.library.search.tokens import terms

if TYPE_CHECKING:
    from deepwell.library.search.understand import Intent
    from deepwell.library.store import Store

LONGEST = 8
"""Words up to which a query may be a name; a longer one is a sentence."""

AT_LEAST = 0.6
"""Share of the query's terms that a name must hold."""

MOST = 50
"""Files that a query may name. A query that fits more names is no name."""


def named(store: Store, intent: Intent) -> dict[str, float]:
    """Contents of the files whose name or title a query gives, and how well it fits (0 to 1).

    That is the harmonic mean of the share of the query that a name holds and, at half weight, the share of the name
    that the query holds: ``budget`` fits ``budget.xlsx`` better than ``notes on last year's budget.docx``.
    """
    if not intent.terms or len(intent.words) > LONGEST:
        return {}
    found: dict[str, float] = {}
    for content, where, title in store.named(intent.words):
        path = PurePath(where)
        fit = max(_fit(intent.terms, path.stem, path.suffix[1:]), _fit(intent.terms, title))
        if fit > 0:
            found[content] = max(fit, found.get(content, 0.0))
    return found if len(found) <= MOST else {}


def _fit(wanted: Mapping[str, float], name: str, suffix: str = "") -> float:
    own = frozenset(terms(name))
    # A suffix that the query gives counts for it; one that it leaves out does not count against it.
    held = own & wanted.keys()
    covered = len(wanted.keys() & (own | frozenset(terms(suffix)))) / len(wanted)
    if covered < AT_LEAST or not held:
        return 0.0
    said = len(held) / len(own)
    return 1.5 * covered * said / (0.5 * covered + said)
