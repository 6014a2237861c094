"""Vectors, filled in behind the words.

What has no vector yet is asked of the tables, never remembered, so a run that was interrupted anywhere is taken up
where it stopped. Texts are encoded in the order of their length, a few thousand at a time, because a batch costs as
much as its longest text; each commit holds what some seconds of encoding gave.

A new encoder fills a table of its own while searches go on with the old one's; when nothing is missing, one rename of
``library.json`` switches over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepwell.library.protocols import ImageEncoder, TextEncoder
from deepwell.library.records import Label
from deepwell.library.store import Store, Writer
from deepwell.library.store.format import VectorTable
from deepwell.library.store.rows import content_of
from deepwell.library.store.shelf import labels_from_json
from deepwell.library.store.tables import quoted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LabelVectors = Callable[[Sequence[Sequence[Label]], TextEncoder], "NDArray[np.float32]"]
"""Labels of N passages and the text encoder, to unit vectors [N, dim] in its space (ConSE)."""

_CHUNK = 4096
_BATCH = 256
_COMMIT_S = 5.0


@dataclass(frozen=True)
class Encoders:
    """What turns passages into vectors. Without one of them, its space is left as it is."""

    text: TextEncoder | None = None
    image: ImageEncoder | None = None
    labels: LabelVectors | None = None

    def by_space(self) -> Iterator[tuple[str, TextEncoder | ImageEncoder]]:
        if self.text is not None:
            yield "text", self.text
        if self.image is not None:
            yield "image", self.image


class Filler:
    """Gives passages their vectors, a batch at each ``step``."""

    def __init__(self, store: Store, writer: Writer, encoders: Encoders) -> None:
        self._store = store
        self._writer = writer
        self._encoders = encoders
        self._steps: Iterator[int] = iter(())
        self.written = 0
        self.encoded = 0
        self.problems: list[str] = []
        self.left = 0

    def look(self) -> int:
        """Ask the tables what is missing. Returns how many vectors."""
        todo: list[tuple[VectorTable, list[str]]] = []
        for space, encoder in self._encoders.by_space():
            table = self._writer.vector_table(space, encoder.name, encoder.fingerprint, encoder.dim)
            todo.append((table, self._writer.without_vector(table, self._store.wanted(space))))
        self.left = sum(len(ids) for _, ids in todo)
        self._steps = self._run(todo)
        return self.left

    def step(self) -> bool:
        """Encode one batch; False when nothing was left of what the last ``look`` found."""
        done = next(self._steps, None)
        if done is None:
            return False
        self.left -= done
        self.encoded += done
        return True

    def flush(self) -> None:
        """Write what has been encoded and not yet committed, and give up the rest of the last ``look``."""
        self._steps.close() if hasattr(self._steps, "close") else None

    def switch(self) -> None:
        """Let complete tables answer, and drop those they replace."""
        for space, encoder in self._encoders.by_space():
            table = self._writer.manifest.find(space, encoder.fingerprint)
            if table is not None and not self._writer.without_vector(table, self._store.wanted(space)):
                self._writer.switch(table)

    def _run(self, todo: Sequence[tuple[VectorTable, list[str]]]) -> Iterator[int]:
        for table, ids in todo:
            encode = self._pictures if table.space == "image" else self._texts
            for start in range(0, len(ids), _CHUNK):
                yield from self._commit_batches(table, encode(ids[start : start + _CHUNK]))

    def _commit_batches(
        self, table: VectorTable, batches: Iterator[tuple[list[str], NDArray[np.float32]]]
    ) -> Iterator[int]:
        import numpy as np

        ids: list[str] = []
        vectors: list[NDArray[np.float32]] = []
        since = time.monotonic()
        try:
            for batch_ids, batch in batches:
                ids += batch_ids
                vectors.append(batch)
                if time.monotonic() - since > _COMMIT_S:
                    self._put(table, ids, np.concatenate(vectors))
                    ids, vectors, since = [], [], time.monotonic()
                yield len(batch_ids)
        finally:
            if ids:
                self._put(table, ids, np.concatenate(vectors))

    def _put(self, table: VectorTable, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        self._writer.put_vectors(table, ids, vectors)
        self.written += len(ids)

    def _texts(self, ids: Sequence[str]) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Encode passages by length; pictures and sounds by what was recognised in them."""
        encoder = self._encoders.text
        assert encoder is not None
        where = f"passage_id IN ({quoted(ids)})"
        columns = ["passage_id", "words", "modality", "labels"]
        rows = self._store.tables.read(
            "passages", lambda table: table.search().where(where).select(columns).to_arrow().to_pylist()
        )
        labelled = [row for row in rows if row["modality"] != "text" and row["labels"] != "[]"]
        if self._encoders.labels is None:
            labelled = []
        by_labels = {row["passage_id"] for row in labelled}
        words = sorted((row for row in rows if row["passage_id"] not in by_labels), key=lambda row: len(row["words"]))
        label_vectors = self._encoders.labels
        for start in range(0, len(words), _BATCH):
            batch = words[start : start + _BATCH]
            yield [row["passage_id"] for row in batch], self._encode_texts(encoder, [row["words"] for row in batch])
        for start in range(0, len(labelled), _BATCH):
            batch = labelled[start : start + _BATCH]
            assert label_vectors is not None
            labels = [labels_from_json(row["labels"]) for row in batch]
            yield [row["passage_id"] for row in batch], label_vectors(labels, encoder)

    def _encode_texts(self, encoder: TextEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
        """A passage without words gets a zero vector: it has been seen to, and is like nothing."""
        import numpy as np

        vectors = np.zeros((len(texts), encoder.dim), dtype=np.float32)
        filled = [place for place, text in enumerate(texts) if text.strip()]
        if filled:
            vectors[filled] = encoder.encode([texts[place] for place in filled])
        return vectors

    def _pictures(self, ids: Sequence[str]) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Encode picture files, as long as they are still those that were read."""
        encoder = self._encoders.image
        assert encoder is not None
        snapshot = self._store.snapshot()
        ready: list[tuple[str, Path]] = []
        for passage_id in ids:
            for row in snapshot.by_content.get(content_of(passage_id), ()):
                path = Path(snapshot.paths[row])
                if _unchanged(path, snapshot.columns["size"][row], snapshot.columns["mtime_ns"][row]):
                    ready.append((passage_id, path))
                    break
        size = _BATCH // 8
        for start in range(0, len(ready), size):
            batch = ready[start : start + size]
            yield [passage_id for passage_id, _ in batch], self._encode_pictures(encoder, [path for _, path in batch])

    def _encode_pictures(self, encoder: ImageEncoder, paths: Sequence[Path]) -> NDArray[np.float32]:
        """A picture that cannot be encoded gets a zero vector and a line, and the others go on."""
        import numpy as np

        try:
            return encoder.encode_images(paths)
        except Exception as error:
            if len(paths) == 1:
                self.problems.append(f"no vector for {paths[0]}: {error}")
                return np.zeros((1, encoder.dim), dtype=np.float32)
            return np.concatenate([self._encode_pictures(encoder, [path]) for path in paths])


def _unchanged(path: Path, size: Any, mtime_ns: Any) -> bool:
    try:
        info = path.stat()
    except OSError:
        return False
    return (info.st_size, info.st_mtime_ns) == (size, mtime_ns)
