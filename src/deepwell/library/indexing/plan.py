"""What has to be done: the files seen beside the documents held.

A plan is made without opening a file. Size and modification time tell what may have changed; the same inode, size and
time under another name tell a move. Whether bytes really changed, and moves between disks, turn out when files are
hashed before they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from deepwell.library.indexing.walk import Seen, Walk
from deepwell.library.records import FileChange
from deepwell.library.store import StoredDocument
from deepwell.library.store.rows import printable

RetryTest = Callable[[StoredDocument], bool]
"""Whether a file should be read again although it did not change: a better reader, a model that has arrived."""


@dataclass
class Plan:
    """What is to be done with each file.

    Attributes:
        read: Files to read, with the document they replace, if any.
        force: Paths of those to read even when their bytes are what they were.
        moved: Documents whose file has another name now.
        gone: Documents whose file is gone.
    """

    read: list[tuple[Seen, StoredDocument | None]] = field(default_factory=list)
    force: set[str] = field(default_factory=set)
    moved: list[tuple[StoredDocument, Seen]] = field(default_factory=list)
    gone: list[StoredDocument] = field(default_factory=list)
    unchanged: int = 0

    def changes(self) -> Iterable[FileChange]:
        """For people, before anything is done."""
        for document, seen in self.moved:
            yield FileChange("move", printable(seen.path), document.shown)
        for seen, before in self.read:
            retry = before is not None and (seen.path in self.force or before.state != "ok")
            yield FileChange("add" if before is None else "retry" if retry else "update", printable(seen.path))
        for document in self.gone:
            yield FileChange("remove", document.shown)


def make_plan(
    walk: Walk,
    held: Mapping[str, StoredDocument],
    *,
    is_gone: Callable[[StoredDocument], bool],
    again: RetryTest,
    removable: Collection[str],
) -> Plan:
    """Compare.

    Args:
        walk: What was seen.
        held: Documents of files, by path.
        is_gone: Positive evidence that a document's file is no longer where it was.
        again: See ``RetryTest``.
        removable: Paths of documents that go when their file is gone; others can only be found to have moved.
    """
    plan = Plan()
    by_stat = {(d.inode, d.size, d.mtime_ns): d for d in held.values() if d.state == "ok"}
    fresh: list[Seen] = []
    for path, seen in walk.files.items():
        document = held.get(path)
        if document is None:
            fresh.append(seen)
        elif (document.size, document.mtime_ns) != (seen.size, seen.mtime_ns):
            plan.read.append((seen, document))
        elif again(document):
            plan.read.append((seen, document))
            plan.force.add(path)
        elif _is_swapped(seen, document, by_stat):
            plan.read.append((seen, document))
        else:
            plan.unchanged += 1
    claimed = _find_moves(plan, fresh, by_stat, is_gone)
    for path in removable:
        if path not in walk.files and path not in claimed and is_gone(held[path]):
            plan.gone.append(held[path])
    return plan


ByStat = Mapping[tuple[int, int, int], StoredDocument]
"""Documents by inode, size and modification time."""


def _is_swapped(seen: Seen, document: StoredDocument, by_stat: ByStat) -> bool:
    """The file has the size and time it had, but another document's inode: two files may have changed places."""
    other = by_stat.get((seen.inode, seen.size, seen.mtime_ns))
    return seen.inode != document.inode and other is not None and other.path != seen.path


def _find_moves(
    plan: Plan, fresh: Iterable[Seen], by_stat: ByStat, is_gone: Callable[[StoredDocument], bool]
) -> set[str]:
    claimed: set[str] = set()
    for seen in fresh:
        document = by_stat.get((seen.inode, seen.size, seen.mtime_ns))
        if document is not None and document.path not in claimed and is_gone(document):
            claimed.add(document.path)
            plan.moved.append((document, seen))
        else:
            plan.read.append((seen, None))
    return claimed
