"""Files into the store: look, read, switch over, and fill vectors in behind.

    walk the roots ──> plan ──> worker processes read ──> batches of documents and passages are committed
                                     (fast files first)            │  words are searchable from here on
                                                                   └─> vectors, while slow files are still being read

Every commit leaves a good library, and nothing about the run itself is remembered: the next ``sync`` compares files
with the tables and goes on from there. That is the whole recovery from ``kill -9``, a full disk or Ctrl-C.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deepwell.errors import UsageError
from deepwell.library.indexing.documents import Cutter, Metadata, check_texts, text_document
from deepwell.library.indexing.plan import Plan, make_plan
from deepwell.library.indexing.pool import Limits
from deepwell.library.indexing.progress import ProgressCallback, Reporter
from deepwell.library.indexing.run import ENVIRONMENT, Run, vanished
from deepwell.library.indexing.vectors import Encoders
from deepwell.library.indexing.walk import Walk, walk
from deepwell.library.indexing.worker import Setup
from deepwell.library.records import AddReport, FileFailure
from deepwell.library.store import Store, StoredDocument, Writer
from deepwell.library.store.rows import printable

_TEXTS_AT_ONCE = 1000


def _reader_versions() -> dict[str, int]:
    from deepwell.library.readers import available

    return {reader.name: reader.version for reader in available()}


def _nothing_arrived(name: str) -> bool:  # noqa: ARG001
    return False


@dataclass(frozen=True)
class Options:
    """How to index.

    Attributes:
        setup: Where workers find readers and senses.
        workers: Processes that read; None is one for each core.
        limits: What one file may take.
        reader_versions: The version of each reader by name, so that files read by an older one are read again.
        present: Whether a model or extra named in ``Document.missing`` is here now.
        cut: Cuts the texts of ``add_texts`` into passages; None is the readers' own cutter.
        wait_s: How long to wait for another writer; negative waits for ever.
    """

    setup: Setup = field(default_factory=Setup)
    workers: int | None = None
    limits: Limits = field(default_factory=Limits)
    reader_versions: Callable[[], dict[str, int]] = _reader_versions
    present: Callable[[str], bool] = _nothing_arrived
    cut: Cutter | None = None
    wait_s: float = 0.0


class Indexer:
    """Brings a library in step with files. One method call is one run, under the writer's lock."""

    def __init__(
        self,
        store: Store,
        *,
        encoders: Encoders | None = None,
        options: Options | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.store = store
        self.encoders = encoders or Encoders()
        self.options = options or Options()
        self._progress = progress

    # -- runs ------------------------------------------------------------------------------------------------------

    def add(self, paths: Iterable[Path | str], *, retry: bool = False) -> AddReport:
        """Index files and folders, and remember them for ``sync``. Never removes; finds moves.

        Args:
            paths: Files or folders; relative ones are taken from the current folder.
            retry: Read failed files again.
        """
        started = time.monotonic()
        roots = [os.path.abspath(os.path.expanduser(os.fspath(path))) for path in paths]  # noqa: PTH100, PTH111
        if not roots:
            raise UsageError("nothing to add", hint="Name files or folders.")
        absent = [root for root in roots if not os.path.lexists(root)]
        roots = [root for root in roots if root not in absent]
        with self._writing() as (writer, report):
            held = self._held()
            excluded = [path for path in writer.manifest.excluded if not _is_under(path, roots)]
            writer.set_roots([*writer.manifest.roots, *roots], excluded=excluded)
            seen = self._look(roots, excluded, report)
            plan = make_plan(
                seen, held, is_gone=lambda d: vanished(d.path), again=self._again(held, retry), removable=()
            )
            run = Run(self.store, writer, self.encoders, self.options, report, held)
            run.do(plan, seen)
            for root in absent:
                run.failures.append(FileFailure(printable(root), "there is no such file or folder"))
            return run.report(started)

    def sync(self, *, dry_run: bool = False, retry: bool = False) -> AddReport:
        """Bring the library in step with all its roots: add, update, move, remove.

        A file is removed only on positive evidence (see ``walk``). ``dry_run`` tells what would be done; it opens no
        file, so a touched file counts as updated and a move between disks as one removal and one addition.
        """
        started = time.monotonic()
        if dry_run:
            return self._dry_run(started, retry)
        with self._writing() as (writer, report):
            held = self._held()
            roots, excluded = writer.manifest.roots, writer.manifest.excluded
            seen = self._look(roots, excluded, report)
            plan = self._sync_plan(seen, held, roots, retry)
            run = Run(self.store, writer, self.encoders, self.options, report, held)
            run.do(plan, seen)
            removed = {document.path for document in plan.gone} | {document.path for document, _ in plan.moved}
            writer.set_roots([root for root in roots if root not in removed])
            return run.report(started)

    def add_texts(
        self,
        texts: Sequence[str],
        ids: Sequence[str] | None = None,
        metadata: Sequence[Metadata] | None = None,
    ) -> AddReport:
        """Index texts without files, as documents ``text:ID``. An id that is known is replaced.

        Raises:
            UsageError: Not one id or metadata for each text, or an id twice.
        """
        started = time.monotonic()
        names, facts = check_texts(texts, ids, metadata)
        with self._writing() as (writer, report):
            held = {document.path: document for document in self.store.documents() if document.is_text}
            run = Run(self.store, writer, self.encoders, self.options, report, held)
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                chunk = range(start, min(start + _TEXTS_AT_ONCE, len(texts)))
                report.tell("read", start, len(texts))
                for n in chunk:
                    before = held.get(f"text:{names[n]}")
                    row = text_document(texts[n], names[n], facts[n], before, self.options.cut)
                    run.take(row, before)
                    if row is not None:
                        held[row[0].path] = row[0]
                run.flush()
            run.fill_vectors()
            return run.report(started)

    def remove(self, names: Iterable[str | Path]) -> AddReport:
        """Forget files, folders, ``text:ID``s or document ids, now and at later syncs; the files stay where they are.

        Raises:
            UsageError: The library holds nothing of that name.
        """
        started = time.monotonic()
        with self._writing() as (writer, report):
            held = {document.path: document for document in self.store.documents()}
            by_id = {document.document_id: document for document in held.values()}
            gone: dict[str, StoredDocument] = {}
            removed: list[str] = []
            for name in [str(os.fspath(name)) for name in names]:
                if name in by_id or name in held:
                    document = by_id.get(name) or held[name]
                    gone[document.document_id] = document
                    if not document.is_text:
                        removed.append(document.path)
                    continue
                path = os.path.abspath(os.path.expanduser(name))  # noqa: PTH100, PTH111
                inside = [d for d in held.values() if not d.is_text and _is_under(d.path, [path])]
                if not inside and path not in writer.manifest.roots:
                    raise UsageError(
                        f"the library holds nothing named {printable(name)!r}", hint="See: deepwell status"
                    )
                gone.update((document.document_id, document) for document in inside)
                removed.append(path)
            roots = [root for root in writer.manifest.roots if not _is_under(root, removed)]
            excluded = [path for path in removed if _is_under(path, roots)]
            writer.set_roots(roots, excluded=[*writer.manifest.excluded, *excluded])
            run = Run(self.store, writer, self.encoders, self.options, report, held)
            run.forget(list(gone.values()))
            return run.report(started)

    def fill_vectors(self) -> AddReport:
        """Only give passages the vectors they lack, and switch to the encoder at hand."""
        started = time.monotonic()
        with self._writing() as (writer, report):
            run = Run(self.store, writer, self.encoders, self.options, report, {})
            run.fill_vectors()
            return run.report(started)

    # -- steps -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[tuple[Writer, Reporter]]:
        report = Reporter(self._progress)
        with self.store.writing(
            wait=self.options.wait_s, on_wait=lambda line: report.tell("wait", current=line)
        ) as writer:
            yield writer, report
            report.tell("tidy")

    def _held(self) -> dict[str, StoredDocument]:
        return {document.path: document for document in self.store.documents() if not document.is_text}

    def _look(self, roots: Iterable[str], excluded: Iterable[str], report: Reporter) -> Walk:
        report.tell("look")
        return walk(roots, skip=(str(self.store.folder), *excluded))

    def _again(self, held: dict[str, StoredDocument], retry: bool) -> Callable[[StoredDocument], bool]:
        versions = self.options.reader_versions()
        names = {name for document in held.values() for name in document.missing}
        arrived = {name for name in names if self.options.present(name)}

        def again(document: StoredDocument) -> bool:
            if document.state == "failed" and (retry or ENVIRONMENT in document.missing):
                return True
            newer = versions.get(document.reader, document.reader_version) > document.reader_version
            return newer or not arrived.isdisjoint(document.missing)

        return again

    def _sync_plan(self, seen: Walk, held: dict[str, StoredDocument], roots: Sequence[str], retry: bool) -> Plan:
        return make_plan(
            seen,
            held,
            is_gone=lambda document: seen.is_gone(document.path, nested=document.nested),
            again=self._again(held, retry),
            removable=[path for path in held if _is_under(path, roots)],
        )

    def _dry_run(self, started: float, retry: bool) -> AddReport:
        held = self._held()
        manifest = self.store.manifest
        seen = self._look(manifest.roots, manifest.excluded, Reporter(self._progress))
        plan = self._sync_plan(seen, held, manifest.roots, retry)
        changes = tuple(plan.changes())
        counts = Counter(change.action for change in changes)
        return AddReport(
            added=counts["add"],
            updated=counts["update"] + counts["retry"],
            moved=counts["move"],
            removed=counts["remove"],
            unchanged=plan.unchanged,
            failed=tuple(seen.bad),
            unseen=tuple(f for f in seen.unseen if f.path not in {document.shown for document in plan.gone}),
            took_s=time.monotonic() - started,
            dry_run=True,
            changes=changes,
        )


def _is_under(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
