"""One run: carries out a plan, commits as it goes, and counts what it did."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from deepwell.library.indexing.documents import file_document
from deepwell.library.indexing.plan import Plan
from deepwell.library.indexing.pool import Limits, ReaderPool
from deepwell.library.indexing.progress import Reporter
from deepwell.library.indexing.vectors import Encoders, Filler
from deepwell.library.indexing.walk import Seen, Walk
from deepwell.library.indexing.worker import Outcome, Setup, Task
from deepwell.library.records import AddReport, FileChange, FileFailure, Kind
from deepwell.library.store import NewPassage, Store, StoredDocument, Writer
from deepwell.library.store.rows import printable

ENVIRONMENT = "*"
"""Stands in ``missing`` of a file that failed for what is not installed: it is tried again at each sync."""

_EXTRAS = {"rapidocr": "images", "torch": "images", "faster-whisper": "audio", "ai-edge-litert": "sounds"}
_FLUSH_PASSAGES = 2_000
_FLUSH_BYTES = 32 << 20
_FIRST_FLUSH_S = 0.5
_KNOWN_OF_A_SIZE = 16


class RunOptions(Protocol):
    """What a run needs of ``indexer.Options``."""

    @property
    def setup(self) -> Setup: ...
    @property
    def workers(self) -> int | None: ...
    @property
    def limits(self) -> Limits: ...


class Run:
    """The work of one ``add``, ``sync`` or ``remove`` under the writer's lock."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        encoders: Encoders,
        options: RunOptions,
        report: Reporter,
        held: dict[str, StoredDocument],
    ) -> None:
        self._store = store
        self._writer = writer
        self._options = options
        self._report = report
        self._held = held
        self._filler = Filler(store, writer, encoders)
        self._origins: dict[str, StoredDocument] = {}
        self._documents: list[StoredDocument] = []
        self._passages: list[NewPassage] = []
        self._waiting_bytes = 0
        self._started = time.monotonic()
        self._flushed = self._started
        self._unlooked = True
        self._counts: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._passages_written = 0
        self._bytes = 0
        self.failures: list[FileFailure] = []
        self.unseen: list[FileFailure] = []
        self._changes: list[FileChange] = []

    # -- a plan ----------------------------------------------------------------------------------------------------

    def do(self, plan: Plan, seen: Walk) -> None:
        """Carry out a plan: moves and removals in one commit each, then reading, then vectors."""
        gone = {document.shown for document in plan.gone}
        self.unseen = [failure for failure in seen.unseen if failure.path not in gone]
        self.failures = list(seen.bad)
        self._counts["unchanged"] += plan.unchanged
        for document, now in plan.moved:
            self._move(document, now)
        self.flush()
        tasks, before, stats = self._tasks(plan)
        try:
            self._read(tasks, before, stats, seen)
            # Only now, so that a file that was copied to another disk and deleted here is found to have moved.
            self.forget([document for document in plan.gone if document.path in self._held])
            self.fill_vectors()
        except BaseException:
            self._save_what_is_done()
            raise

    def _save_what_is_done(self) -> None:
        try:
            self._filler.flush()
            self.flush()
        except Exception as error:  # the disk may be what failed; the error that ended the run is the one to tell
            self.failures.append(FileFailure(str(self._store.folder), str(error)))

    def _move(self, document: StoredDocument, now: Seen) -> None:
        name, old_name = Path(now.path).stem, Path(document.path).stem
        moved = replace(
            document,
            path=now.path,
            title=printable(name) if document.title == printable(old_name) else document.title,
            size=now.size,
            mtime_ns=now.mtime_ns,
            inode=now.inode,
            nested=now.nested,
        )
        self._held.pop(document.path, None)
        self._held[moved.path] = moved
        self._documents.append(moved)
        self._counts["moved"] += 1
        self._changes.append(FileChange("move", moved.shown, document.shown))

    def _tasks(self, plan: Plan) -> tuple[list[Task], dict[str, StoredDocument], dict[str, Seen]]:
        by_size: dict[int, list[StoredDocument]] = {}
        for document in self._held.values():
            if document.state == "ok" and document.file_hash:
                by_size.setdefault(document.size, []).append(document)
                self._origins.setdefault(document.file_hash, document)
        tasks = []
        for seen, _ in plan.read:
            known: tuple[tuple[str, str, int], ...] = ()
            if seen.path not in plan.force:
                same_size = by_size.get(seen.size, ())[:_KNOWN_OF_A_SIZE]
                known = tuple({(d.file_hash, d.reader, d.reader_version) for d in same_size})
            tasks.append(Task(seen.path, seen.size, known))
        before = {seen.path: document for seen, document in plan.read if document is not None}
        return tasks, before, {seen.path: seen for seen, _ in plan.read}

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(
        self, tasks: Sequence[Task], before: dict[str, StoredDocument], stats: dict[str, Seen], seen: Walk
    ) -> None:
        if not tasks:
            return
        done, total = 0, len(tasks)
        options = self._options
        is_gone = _evidence(seen)
        with ReaderPool(options.setup, workers=options.workers, limits=options.limits) as pool:
            pool.submit(tasks)
            while pool.busy:
                # While only slow files are left, this process has time for vectors.
                waiting = pool.fast_left == 0 and self._has_vectors_to_do()
                result = pool.next(0.0 if waiting else 0.1)
                if result is not None:
                    done += 1
                    task, outcome = result
                    self._settle(stats[task.path], outcome, before.get(task.path), is_gone, done, total)
                elif waiting:
                    self._filler.step()
                if self._flush_is_due():
                    self.flush()
        self.flush()

    def _settle(
        self,
        seen: Seen,
        outcome: Outcome,
        before: StoredDocument | None,
        is_gone: Callable[[StoredDocument], bool],
        done: int,
        total: int,
    ) -> None:
        """Turn what became of a file into rows."""
        shown = printable(seen.path)
        self._report.tell("read", done, total, shown)
        self._bytes += seen.size
        if outcome.result == "gone":
            return
        if outcome.result == "same":
            self._settle_same(seen, outcome, before, is_gone)
        elif outcome.result == "read" and outcome.document is not None:
            stat = (seen.size, seen.mtime_ns, seen.inode, seen.nested)
            document, passages = file_document(
                seen.path,
                outcome.document,
                file_hash=outcome.file_hash,
                reader=outcome.reader,
                version=outcome.reader_version,
                stat=stat,
                before=before,
            )
            self._missing.update(document.missing)
            self._waiting_bytes += sum(len(passage.passage.text) for passage in passages)
            self._put(document, passages, before)
        else:
            self._settle_failure(seen, outcome, before)
            if outcome.result == "failed":
                failure = FileFailure(shown, outcome.reason, outcome.hint)
                self.failures.append(failure)
                self._report.fail(done, total, failure)

    def _settle_same(
        self,
        seen: Seen,
        outcome: Outcome,
        before: StoredDocument | None,
        is_gone: Callable[[StoredDocument], bool],
    ) -> None:
        """The bytes are known: the file was touched, moved to another disk, or is a copy."""
        twin = before if before is not None and before.file_hash == outcome.file_hash else None
        if twin is not None:
            touched = replace(twin, size=seen.size, mtime_ns=seen.mtime_ns, inode=seen.inode, nested=seen.nested)
            self._held[seen.path] = touched
            self._documents.append(touched)
            self._counts["unchanged"] += 1
            return
        # Its passages are stored even if the document that brought them has others now: they are collected at the end.
        twin = self._origins[outcome.file_hash]
        if before is None and self._held.get(twin.path) == twin and is_gone(twin):
            self._move(twin, seen)
            return
        title = Path(seen.path).stem if twin.title == printable(Path(twin.path).stem) else twin.title
        copy = replace(
            twin,
            document_id=before.document_id if before else uuid.uuid4().hex,
            path=seen.path,
            title=printable(title),
            size=seen.size,
            mtime_ns=seen.mtime_ns,
            inode=seen.inode,
            nested=seen.nested,
            created=twin.created if "created" in twin.metadata else seen.mtime_ns / 1e9,
            added=before.added if before else time.time(),
        )
        self._put(copy, (), before)

    def _settle_failure(self, seen: Seen, outcome: Outcome, before: StoredDocument | None) -> None:
        kind: Kind = before.kind if before else "text"
        skipped = outcome.result == "skipped"
        row = StoredDocument(
            document_id=before.document_id if before else uuid.uuid4().hex,
            path=seen.path,
            kind=kind,
            title=printable(Path(seen.path).stem),
            content_id="",
            size=seen.size,
            mtime_ns=seen.mtime_ns,
            inode=seen.inode,
            nested=seen.nested,
            file_hash=outcome.file_hash,
            missing=(ENVIRONMENT,) if outcome.environment else (),
            state="skipped" if skipped else "failed",
            failure="not of a kind that Deepwell reads" if skipped else outcome.reason,
            hint=outcome.hint,
            added=before.added if before else time.time(),
        )
        if skipped:
            self._skipped[Path(seen.path).suffix.lower() or "no suffix"] += 1
        self._held[seen.path] = row
        self._documents.append(row)

    # -- commits ---------------------------------------------------------------------------------------------------

    def take(self, row: tuple[StoredDocument, list[NewPassage]] | None, before: StoredDocument | None) -> None:
        """Queue a document for the next commit; None is one that did not change."""
        if row is None:
            self._counts["unchanged"] += 1
        else:
            self._put(row[0], row[1], before)

    def _put(self, document: StoredDocument, passages: Sequence[NewPassage], before: StoredDocument | None) -> None:
        self._held[document.path] = document
        self._documents.append(document)
        self._passages.extend(passages)
        was_ok = before is not None and before.state == "ok"
        self._counts["updated" if was_ok else "added"] += 1
        again: Literal["update", "retry"] = "update" if was_ok else "retry"
        self._changes.append(FileChange("add" if before is None else again, document.shown))

    def _flush_is_due(self) -> bool:
        if not self._documents:
            return False
        if len(self._passages) >= _FLUSH_PASSAGES or self._waiting_bytes >= _FLUSH_BYTES:
            return True
        # Early words appear at once; later on, fewer and larger commits.
        now = time.monotonic()
        return now - self._flushed > min(10.0, max(_FIRST_FLUSH_S, (now - self._started) / 10))

    def flush(self) -> None:
        """Commit what is queued."""
        if self._documents:
            documents = {document.document_id: document for document in self._documents}
            self._passages_written += self._writer.put(list(documents.values()), self._passages)
            self._documents, self._passages, self._waiting_bytes = [], [], 0
            self._unlooked = True
        self._flushed = time.monotonic()

    def forget(self, documents: Sequence[StoredDocument]) -> None:
        """Remove documents."""
        self._writer.remove([document.document_id for document in documents])
        for document in documents:
            self._held.pop(document.path, None)
            if document.state == "ok":
                self._counts["removed"] += 1
                self._changes.append(FileChange("remove", document.shown))

    # -- vectors ---------------------------------------------------------------------------------------------------

    def _has_vectors_to_do(self) -> bool:
        if self._filler.left == 0 and self._unlooked:
            self._unlooked = False
            return self._filler.look() > 0
        return self._filler.left > 0

    def fill_vectors(self) -> None:
        """Encode until nothing is missing, then let the encoder's table answer."""
        self._filler.flush()
        total = self._filler.encoded + self._filler.look()
        if total:
            self._report.tell("vectors", self._filler.encoded, total)
        while self._filler.step():
            self._report.tell("vectors", self._filler.encoded, total)
        self._filler.switch()

    # -- the end ---------------------------------------------------------------------------------------------------

    def report(self, started: float) -> AddReport:
        """What was done, since ``started`` (monotonic seconds)."""
        return AddReport(
            added=self._counts["added"],
            updated=self._counts["updated"],
            moved=self._counts["moved"],
            removed=self._counts["removed"],
            unchanged=self._counts["unchanged"],
            failed=tuple(self.failures),
            unseen=tuple(self.unseen),
            passages=self._passages_written,
            vectors=self._filler.written,
            bytes_read=self._bytes,
            took_s=time.monotonic() - started,
            changes=tuple(self._changes),
            notices=tuple(self._notices()),
        )

    def _notices(self) -> list[str]:
        lines = []
        if self._skipped:
            suffixes = ", ".join(f"{suffix} {count}" for suffix, count in self._skipped.most_common(5))
            lines.append(f"{self._skipped.total()} files are not of a kind that Deepwell reads ({suffixes})")
        for name, count in self._missing.most_common():
            files = "1 file" if count == 1 else f"{count} files"
            lines.append(f"{files} could tell more with {name}; run: {_how_to_get(name)}")
        return lines + self._filler.problems[:20]


def _how_to_get(name: str) -> str:
    """The command that brings a model, or else a package, that ``Document.missing`` names."""
    extra = _EXTRAS.get(name)
    return f'pip install "deepwell[{extra}]"' if extra else f"deepwell models pull {name}"


def vanished(path: str) -> bool:
    """A path is not there though its folder is, and holds something else."""
    if os.path.lexists(path):
        return False
    try:
        return bool(os.listdir(os.path.dirname(path)))  # noqa: PTH120, PTH208  (names that are not UTF-8)
    except OSError:
        return False


def _evidence(seen: Walk) -> Callable[[StoredDocument], bool]:
    def is_gone(document: StoredDocument) -> bool:
        return document.path not in seen.files and (
            seen.is_gone(document.path, nested=document.nested) or vanished(document.path)
        )

    return is_gone
