"""A library's tables: documents, passages and vectors, in a folder, searchable while they are written.

    store = Store.open(folder, create=True)
    with store.writing() as writer:
        writer.put([document], new_passages(content, passages))
    ranked = store.match("boundary layer", limit=10)
    for passage in store.passages(ranked.ids): ...

``rows`` says what the ids mean, ``format`` what lies on disk, ``writer`` why a kill at any moment does no harm.
"""

from deepwell.library.store.rows import NewPassage, Ranked, Scope, StoredDocument, StoredPassage, content_id
from deepwell.library.store.store import Store
from deepwell.library.store.writer import Writer, new_passages

__all__ = [
    "NewPassage",
    "Ranked",
    "Scope",
    "Store",
    "StoredDocument",
    "StoredPassage",
    "Writer",
    "content_id",
    "new_passages",
]
