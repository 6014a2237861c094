"""What the three Office formats share: core properties, relationships, and where the main part is."""

from __future__ import annotations

import posixpath
from typing import Any

from deepwell.errors import UnreadableFileError
from deepwell.library.readers.dates import iso
from deepwell.library.readers.guard import Archive, one_line

Facts = dict[str, str | int | float | None]


def core_properties(archive: Archive) -> tuple[str, Facts]:
    """(title, facts) from ``docProps/core.xml`` (ECMA-376 part 2, 8.3); empty where there is none or it is damaged."""
    try:
        root = archive.xml_or_none("docProps/core.xml")
    except UnreadableFileError:
        root = None
    found = {child.tag.rpartition("}")[2]: one_line(child.text or "") for child in root} if root is not None else {}
    facts: Facts = {
        "author": found.get("creator"),
        "subject": found.get("subject"),
        "keywords": found.get("keywords"),
        "category": found.get("category"),
        "created": iso(found.get("created", "")),
        "modified": iso(found.get("modified", "")),
        "modified_by": found.get("lastModifiedBy"),
    }
    return found.get("title", ""), facts


def relations(archive: Archive, part: str) -> dict[str, tuple[str, str]]:
    """Targets of a part's relationships by their id: (last word of the type, path in the archive)."""
    folder, name = posixpath.split(part)
    root: Any = archive.xml_or_none(posixpath.join(folder, "_rels", f"{name}.rels"))
    found = {}
    for link in root if root is not None else ():
        if link.get("TargetMode") == "External" or not link.get("Target"):
            continue
        target = link.get("Target")
        full = target.lstrip("/") if target.startswith("/") else posixpath.normpath(posixpath.join(folder, target))
        found[link.get("Id") or ""] = (str(link.get("Type") or "").rpartition("/")[2], full)
    return found


def main_part(archive: Archive, usual: str) -> str:
    """The part that the package names as its document, else the usual one."""
    named = [target for kind, target in relations(archive, "").values() if kind == "officeDocument"]
    return next((target for target in named if target in archive.names), usual)
