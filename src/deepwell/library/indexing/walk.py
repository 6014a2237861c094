"""Look at folders: which files are there, and of which can it be said that they are gone.

To be absent is not enough: a disk may be unplugged, a folder unreadable. A file is gone only when the nearest folder
above it that *was* listed did not hold the next name on the way to it. Three things are never taken as evidence: a root
folder that is missing, a root folder that is empty (an unmounted disk leaves one behind), and the place of a file
that lay on another disk than its root, when that disk is not there now.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deepwell.library.indexing.ignore import IGNORE_FILE, Pattern, is_ignored, parse
from deepwell.library.records import FileFailure
from deepwell.library.store.rows import printable


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as one stat shows it."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    nested: bool


@dataclass
class Walk:
    """What a walk over the roots found.

    Attributes:
        files: By path.
        bad: Files that are there but can never be read: links to nothing, sockets named as roots.
        unseen: What could not be looked at.
        listed: Folders whose every entry is known.
        blocked: Paths that are there but could not be looked into.
        missing_roots: Roots that are not there; what lay below them may be on an unplugged disk.
        devices: Of each root that is there.
    """

    files: dict[str, Seen] = field(default_factory=dict)
    bad: list[FileFailure] = field(default_factory=list)
    unseen: list[FileFailure] = field(default_factory=list)
    listed: set[str] = field(default_factory=set)
    blocked: set[str] = field(default_factory=set)
    missing_roots: set[str] = field(default_factory=set)
    devices: dict[str, int] = field(default_factory=dict)

    def is_gone(self, path: str, *, nested: bool = False) -> bool:
        """Positive evidence that a file is no longer there."""
        if path in self.files:
            return False
        child = path
        while (parent := os.path.dirname(child)) != child:  # noqa: PTH120  (names that are not UTF-8, and speed)
            if child in self.blocked or (child in self.missing_roots and child != path):
                return False
            if parent in self.listed:
                return not nested or self._disk_is_there(path)
            child = parent
        return False

    def _disk_is_there(self, path: str) -> bool:
        roots = [root for root in self.devices if path.startswith(root.rstrip("/") + "/")]
        if not roots:
            return False
        for folder in Path(path).parents:
            try:
                return folder.stat().st_dev != self.devices[max(roots, key=len)]
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return False


def walk(roots: Iterable[str], *, skip: Iterable[str] = ()) -> Walk:
    """Look at all files under ``roots`` (absolute paths of folders or files), except under ``skip``."""
    found = Walk()
    skipped = frozenset(skip)
    for root in sorted(set(roots)):
        _look_at_root(root, skipped, found)
    return found


def _look_at_root(root: str, skipped: frozenset[str], found: Walk) -> None:
    try:
        info = os.stat(root)  # noqa: PTH116
    except FileNotFoundError:
        if os.path.islink(root):  # noqa: PTH114
            found.blocked.add(root)
            found.bad.append(FileFailure(printable(root), *_DANGLING))
            return
        _root_is_missing(root, found)
        return
    except OSError as error:
        found.blocked.add(root)
        found.unseen.append(FileFailure(printable(root), *_reason(error)))
        return
    if stat.S_ISREG(info.st_mode):
        found.files[root] = Seen(root, info.st_size, info.st_mtime_ns, info.st_ino, nested=False)
    elif stat.S_ISDIR(info.st_mode):
        found.devices[root] = info.st_dev
        _look_into(root, skipped, found, info.st_dev)
    else:
        found.bad.append(FileFailure(printable(root), "neither a file nor a folder"))


def _root_is_missing(root: str, found: Walk) -> None:
    """A file that was named itself is gone when its folder can be listed and holds other things."""
    parent = os.path.dirname(root)  # noqa: PTH120
    try:
        there = bool(os.listdir(parent))  # noqa: PTH208
    except OSError:
        there = False
    if there:
        found.listed.add(parent)
    found.missing_roots.add(root)
    found.unseen.append(FileFailure(printable(root), "not there (an unplugged disk?)"))


def _patterns_in(folder: str, names: Iterable[str]) -> tuple[Pattern, ...]:
    if IGNORE_FILE not in names:
        return ()
    try:
        text = Path(folder, IGNORE_FILE).read_text("utf-8", errors="surrogateescape")
    except OSError:
        return ()
    return parse(text, folder)


def _look_into(root: str, skipped: frozenset[str], found: Walk, device: int) -> None:
    """Walk one root folder without recursion, entering each real folder once."""
    entered: set[tuple[int, int]] = set()
    stack: list[tuple[str, tuple[Pattern, ...]]] = [(root, ())]
    while stack:
        folder, patterns = stack.pop()
        try:
            info = os.stat(folder)  # noqa: PTH116
            if (info.st_dev, info.st_ino) in entered:
                continue
            entered.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            found.blocked.add(folder)
            found.unseen.append(FileFailure(printable(folder), *_reason(error)))
            continue
        if not entries and folder == root:
            found.unseen.append(FileFailure(printable(folder), "the folder is empty (an unmounted disk?)"))
            continue
        found.listed.add(folder)
        patterns = (*patterns, *_patterns_in(folder, [entry.name for entry in entries]))
        stack.extend(_sort_out(entries, patterns, skipped, found, device))


def _sort_out(
    entries: Iterable[os.DirEntry[str]],
    patterns: tuple[Pattern, ...],
    skipped: frozenset[str],
    found: Walk,
    device: int,
) -> Iterator[tuple[str, tuple[Pattern, ...]]]:
    """Note the files of one folder and give the folders to enter."""
    for entry in entries:
        try:
            # A linked folder is not entered: what it holds is found where it really is, and no circle can arise.
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.path in skipped or is_ignored(entry.path, patterns, folder=is_folder):
                continue
            if is_folder:
                yield entry.path, patterns
                continue
            info = entry.stat()
        except FileNotFoundError:
            if entry.is_symlink():
                found.blocked.add(entry.path)
                found.bad.append(FileFailure(printable(entry.path), *_DANGLING))
            continue
        except OSError as error:
            found.blocked.add(entry.path)
            found.bad.append(FileFailure(printable(entry.path), *_reason(error)))
            continue
        if stat.S_ISREG(info.st_mode):
            nested = info.st_dev != device
            found.files[entry.path] = Seen(entry.path, info.st_size, info.st_mtime_ns, info.st_ino, nested)


_DANGLING = ("a symbolic link to nothing", "Remove the link, or put back what it points to.")


def _reason(error: OSError) -> tuple[str, str]:
    """What is wrong and what to do."""
    if isinstance(error, PermissionError):
        return "no permission to look at it", "Change its permissions, then: deepwell sync"
    if error.errno == errno.ELOOP:
        return "a symbolic link in a circle", "Remove the link."
    return error.strerror or str(error), ""
