"""Search: understand, retrieve, fuse, look again, arrange.

    searcher = Searcher(store, text_encoder=lambda: open_encoder("all-minilm-l6-v2"))
    results = searcher.search(Query(text="boundary layer separation"))

``searcher`` is the order of the steps and the place to start reading. ``fuse`` and ``feedback`` hold what decides the
ranking; ``confidence`` says whether the results mean anything.
"""

from deepwell.library.search.confidence import Confidence
from deepwell.library.search.searcher import Searcher

__all__ = ["Confidence", "Searcher"]
