"""HTML: the main text under its headings, tables as rows; no scripts, menus or footers.

A walk over the parsed tree makes one block of each paragraph, item, cell row or heading. What a page repeats around its
text (``nav``, ``aside``, ``footer``, hidden parts) is left out; if nothing would be left, the whole body is taken.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from deepwell.library.protocols import Senses
from deepwell.library.readers.dates import iso
from deepwell.library.readers.decoding import decode, looks_like_text
from deepwell.library.readers.guard import TEXT_LIMIT, document, needs, one_line, plain, read_bytes, shown
from deepwell.library.readers.passages import Block, cut
from deepwell.library.records import Document

_SIGNATURE = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w-]{3,40})", re.IGNORECASE)

_NEVER = frozenset(
    "script style noscript template svg math canvas iframe object embed audio video button select input textarea "
    "head title dialog datalist".split()
)
_AROUND = frozenset({"nav", "aside", "footer", "menu"})
_ROLES = frozenset({"navigation", "banner", "contentinfo", "search", "menu", "menubar", "complementary"})
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BREAKING = frozenset(
    "address article aside blockquote body center dd details div dl dt fieldset figcaption figure footer form header "
    "hr html li main menu nav ol p pre section summary table tbody td tfoot th thead tr ul caption".split()
)
_DATES = ("article:published_time", "date", "dc.date", "dcterms.created", "dc.date.issued")
_DEPTH = 2000
# The parser needs time quadratic in the depth of a tree. Elements that may stay open do not count.
_DEEPEST = 3000
_TAG = re.compile(r"<(/?)([a-zA-Z][\w:-]{0,30})[^<>]{0,4000}>")
_MAY_STAY_OPEN = frozenset(
    "p li dt dd tr td th thead tbody tfoot option br img hr meta link input col area base wbr source track html body "
    "head".split()
)


class HtmlReader:
    name = "html"
    version = 1
    suffixes = frozenset({".html", ".htm", ".xhtml", ".shtml"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """By its doctype or first tag, else by suffix."""
        if not looks_like_text(head):
            return 0.0
        if _SIGNATURE.match(head.lstrip(b"\xef\xbb\xbf")):
            return 0.9
        return 0.7 if suffix in self.suffixes else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is empty, binary or above 64 MiB."""
        del senses
        source = html_text(read_bytes(path, TEXT_LIMIT, "a web page"), path)
        page = HtmlPage(source)
        return document("web", path, cut(page.blocks()), title=page.title, metadata=page.metadata)


def html_text(data: bytes, path: Path) -> str:
    """The source as text, in the encoding that it declares when the bytes agree."""
    declared = _CHARSET.search(data[:4096])
    if declared and declared[1].lower() not in (b"utf-8", b"utf8", b"utf-16"):
        try:
            return plain(data.decode(declared[1].decode("ascii")))
        except (LookupError, UnicodeDecodeError):
            pass
    return plain(decode(data, path)[0])


class HtmlPage:
    """A parsed page: its title, what it says about itself, and its text as blocks."""

    def __init__(self, source: str) -> None:
        with needs():
            from selectolax.lexbor import LexborHTMLParser
        self._tree: Any = LexborHTMLParser(_flattened(source) if _is_too_deep(source) else source)
        self.metadata = self._facts()
        head = self._tree.css_first("title")
        self.title = one_line(head.text()) if head is not None else ""
        if not self.title:
            first = self._tree.css_first("h1")
            self.title = one_line(first.text()) if first is not None else ""

    def _facts(self) -> dict[str, str | int | float | None]:
        found: dict[str, str] = {}
        for node in self._tree.css("meta[content]"):
            key = str(node.attributes.get("name") or node.attributes.get("property") or "").lower()
            found.setdefault(key, one_line(str(node.attributes.get("content") or "")))
        root = self._tree.css_first("html")
        time = self._tree.css_first("time[datetime]")
        dates = [found.get(key) for key in _DATES]
        dates.append(str(time.attributes.get("datetime") or "") if time is not None else "")
        return {
            "author": found.get("author") or found.get("article:author") or found.get("dc.creator"),
            "description": found.get("description") or found.get("og:description"),
            "keywords": found.get("keywords"),
            "site": found.get("og:site_name"),
            "language": str(root.attributes.get("lang") or "") if root is not None else "",
            "created": next((date for date in map(iso, dates) if date), ""),
        }

    def blocks(self, page: int | None = None, section: tuple[str, ...] = ()) -> list[Block]:
        """The main text; ``section`` stands above the page's own headings."""
        mains = self._tree.css("main, [role=main]") or self._tree.css("article")
        body = self._tree.body
        roots = mains[:1] if len(mains) == 1 else [body] if body is not None else []
        for clean in (True, False):
            for root in ([*roots, body] if roots and roots[0] is not body else roots) if clean else [body]:
                if root is None:
                    continue
                blocks = _Walk(page, section, clean=clean).run(root)
                if sum(len(block.text) for block in blocks if block.role != "heading") > 0:
                    return blocks
        return _Walk(page, section, clean=False).run(body) if body is not None else []


class _Walk:
    """Over a tree without recursion, for trees may be as deep as a file is long."""

    def __init__(self, page: int | None, section: tuple[str, ...], *, clean: bool) -> None:
        self._page, self._base, self._clean = page, section, clean
        self._section: list[tuple[int, str]] = []
        self._blocks: list[Block] = []
        self._text: list[str] = []
        self._item = False

    def run(self, root: Any) -> list[Block]:
        node, depth = root, 0
        while node is not None:
            descend = depth < _DEPTH and self._enter(node)
            if descend and node.child is not None:
                node, depth = node.child, depth + 1
                continue
            while True:
                if descend or depth:
                    self._leave(node)
                if depth == 0:
                    node = None
                    break
                if node.next is not None:
                    node = node.next
                    break
                node, depth = node.parent, depth - 1
        self._flush()
        return self._blocks

    def _enter(self, node: Any) -> bool:
        """Take in what can be said of a node at once; True when its children are to be walked."""
        tag = node.tag
        if tag == "-text":
            self._text.append(node.text_content or "")
            return False
        if not tag or tag.startswith(("-", "_", "!")) or tag in _NEVER or (self._clean and _is_around(node)):
            return False
        if tag in _HEADINGS:
            self._flush()
            self._heading(_HEADINGS[tag], one_line(node.text(separator=" ")))
            return False
        if tag == "pre":
            self._flush()
            self._add(node.text().strip("\n"), "lines")
            return False
        if tag == "table" and not node.css_first("table table"):
            self._flush()
            self._table(node)
            return False
        if tag == "br":
            self._text.append("\n")
        elif tag == "img":
            self._text.append(f" {node.attributes.get('alt') or ''} ")
        elif tag in _BREAKING:
            self._flush()
            self._item = tag in ("li", "dt", "dd")
        return True

    def _leave(self, node: Any) -> None:
        if node.tag in _BREAKING:
            self._flush()

    def _flush(self) -> None:
        lines = [" ".join(line.split()) for line in "".join(self._text).split("\n")] if self._text else []
        # Line breaks of the source are white space; those of <br> were put in, and both look alike by now.
        text = " ".join(filter(None, lines))
        self._text.clear()
        if text:
            self._add(f"- {text}" if self._item else text, "prose", tight=self._item)
        self._item = False

    def _add(self, text: str, role: Literal["prose", "lines", "heading"], *, tight: bool = False) -> None:
        if text.strip():
            self._blocks.append(Block(text, self._path(), role, self._page, tight=tight))

    def _path(self) -> tuple[str, ...]:
        return (*self._base, *(title for _, title in self._section))

    def _heading(self, level: int, title: str) -> None:
        title = title.rstrip("¶#").strip()
        if not title:
            return
        while self._section and self._section[-1][0] >= level:
            self._section.pop()
        self._section.append((level, title))
        self._add(title, "heading")

    def _table(self, table: Any) -> None:
        caption = table.css_first("caption")
        if caption is not None:
            self._add(one_line(caption.text(separator=" ")), "prose")
        rows = [[one_line(cell.text(separator=" ")) for cell in row.css("td, th")] for row in table.css("tr")]
        if all(len([cell for cell in row if cell]) <= 1 for row in rows):
            # A table for looks only: its cells are paragraphs.
            for row in rows:
                for cell in row:
                    self._add(cell, "prose")
            return
        self._add("\n".join(" | ".join(row) for row in rows if any(row)), "lines")


def _is_too_deep(source: str) -> bool:
    if source.count("<") < _DEEPEST:
        return False
    depth = 0
    for tag in _TAG.finditer(source):
        if tag[2].lower() not in _MAY_STAY_OPEN and not tag[0].endswith("/>"):
            depth = max(0, depth - 1) if tag[1] else depth + 1
            if depth > _DEEPEST:
                return True
    return False


def _flattened(source: str) -> str:
    """The text of a page that is nested beyond reason, as one paragraph."""
    return "<p>" + re.sub(r"<[^<>]*>", " ", source).replace("<", " ")


def _is_around(node: Any) -> bool:
    if node.tag in _AROUND:
        return True
    told = node.attributes
    style = (told.get("style") or "").replace(" ", "")
    hidden = "hidden" in told or told.get("aria-hidden") == "true" or "display:none" in style
    return hidden or told.get("role") in _ROLES


def html_blocks(source: str, page: int | None = None, section: tuple[str, ...] = ()) -> list[Block]:
    """Blocks of a piece of HTML (a chapter, the body of a message)."""
    return HtmlPage(source).blocks(page, section)


def title_of(source: str, path: Path) -> str:
    """The title of a page, else its file's name."""
    return HtmlPage(source).title or shown(path.stem)
