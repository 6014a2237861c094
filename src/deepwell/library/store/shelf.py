"""Passages by id, fast.

The same passage id is always the same words (see ``rows``), so a row once read may be kept for ever. A small library's
passages are kept whole, as Arrow columns; of a large one, those asked for lately.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepwell.library.records import Label, Place
from deepwell.library.store.rows import Scope, StoredPassage, content_of
from deepwell.library.store.snapshot import Snapshot
from deepwell.library.store.tables import Tables, quoted

if TYPE_CHECKING:
    import pyarrow as pa

WHOLE = 20_000
"""Passages up to which a library's passages are kept in memory (some 1.2 kB each)."""

WHOLE_WHEN_WARM = 200_000
"""The same for a process that goes on asking: looking a few passages up by id, Lance reads the whole column."""
_WARM = 3
_KEPT = 10_000
_COLUMNS = ["passage_id", "ordinal", "text", "place", "modality", "labels"]

Row = Mapping[str, Any]


class Shelf:
    """Rows of the passages table by id."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._lock = threading.Lock()
        self._whole: pa.Table | None = None
        self._places: dict[str, int] = {}
        self._recent: OrderedDict[str, Row] = OrderedDict()
        self._asked = 0

    def rows(self, passage_ids: Sequence[str]) -> dict[str, Row]:
        """The rows that exist, by id."""
        with self._lock:
            found = self._known(passage_ids)
            missing = [passage_id for passage_id in passage_ids if passage_id not in found]
            if missing and self._whole is None and self._worth_loading():
                self._load_whole()
                found.update(self._known(missing))
                missing = [passage_id for passage_id in missing if passage_id not in found]
            if missing:
                found.update(self._fetch(missing))
            return found

    def _worth_loading(self) -> bool:
        self._asked += 1
        most = WHOLE if self._asked <= _WARM else WHOLE_WHEN_WARM
        return int(self._tables.read("passages", lambda table: table.count_rows())) <= most

    def _known(self, passage_ids: Iterable[str]) -> dict[str, Row]:
        found: dict[str, Row] = {}
        places = []
        for passage_id in passage_ids:
            if passage_id in self._places:
                places.append(self._places[passage_id])
            elif passage_id in self._recent:
                self._recent.move_to_end(passage_id)
                found[passage_id] = self._recent[passage_id]
        if places and self._whole is not None:
            for row in self._whole.take(places).to_pylist():
                found[row["passage_id"]] = row
        return found

    def _load_whole(self) -> None:
        whole = self._tables.read("passages", lambda table: table.search().select(_COLUMNS).to_arrow())
        self._whole = whole.combine_chunks()
        self._places = {passage: place for place, passage in enumerate(whole.column("passage_id").to_pylist())}

    def _fetch(self, passage_ids: Sequence[str]) -> dict[str, Row]:
        where = f"passage_id IN ({quoted(passage_ids)})"
        table = self._tables.read(
            "passages", lambda table: table.search().where(where).select(_COLUMNS).limit(len(passage_ids)).to_arrow()
        )
        rows: dict[str, Row] = {row["passage_id"]: row for row in table.to_pylist()}
        self._recent.update(rows)
        while len(self._recent) > _KEPT:
            self._recent.popitem(last=False)
        return rows


def labels_from_json(text: str) -> tuple[Label, ...]:
    if text in ("", "[]"):
        return ()
    return tuple(Label(str(name), float(score)) for name, score in json.loads(text or "[]"))


def stored_passage(row: Row, snapshot: Snapshot, within: Scope | None) -> StoredPassage | None:
    """A passage with its document: of several with the same content, the first that is within the scope."""
    for document in snapshot.by_content.get(content_of(row["passage_id"]), ()):
        document_id = snapshot.columns.value("document_id", document)
        if within is None or document_id in within.documents:
            return StoredPassage(
                passage_id=row["passage_id"],
                text=row["text"],
                place=Place.from_json(json.loads(row["place"] or "{}")),
                modality=row["modality"],
                labels=labels_from_json(row["labels"]),
                document_id=document_id,
                path=snapshot.columns.value("path", document),
                kind=snapshot.columns.value("kind", document),
                title=snapshot.columns.value("title", document),
                metadata=snapshot.metadata(document),
                modified=snapshot.modified(document),
                created=snapshot.columns.value("created", document),
                ordinal=row["ordinal"],
            )
    return None
