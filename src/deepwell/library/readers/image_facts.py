"""What a picture file says about itself: when, where and with what it was taken, and what people wrote into it.

Three places hold such words, and programs fill whichever they like: EXIF (cameras), XMP (Adobe and most photo
organisers), and text chunks of a PNG. The first that says something wins, in the order XMP, EXIF, PNG, since XMP is
what a person edited last.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from PIL.Image import Image

_GPS, _CAPTURE = 0x8825, 0x8769
_DESCRIPTION, _MAKE, _MODEL, _CHANGED, _ARTIST = 0x010E, 0x010F, 0x0110, 0x0132, 0x013B
_TAKEN, _OFFSET, _COMMENT = 0x9003, 0x9011, 0x9286
_XP_TITLE, _XP_COMMENT, _XP_AUTHOR, _XP_KEYWORDS = 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E
_MAX_XMP = 1_000_000
_BOILERPLATE = frozenset({"ole", "olympus digital camera", "sony dsc", "kodak digital still camera", "digital camera"})


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """``metadata`` is flat, for ``--where``; ``caption`` and ``keywords`` are words that a person gave the picture."""

    title: str = ""
    caption: str = ""
    keywords: tuple[str, ...] = ()
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)


def image_facts(image: Image) -> ImageFacts:
    """Facts of an opened picture; what is damaged or absent is left out."""
    exif = _exif(image)
    xmp = _xmp(image)
    chunks = {str(key).lower(): value for key, value in image.info.items() if isinstance(value, str)}
    width, height = image.size
    if exif.get("orientation") in {5, 6, 7, 8}:
        width, height = height, width
    metadata: dict[str, str | int | float] = {
        "width": width,
        "height": height,
        "format": str(image.format or "").lower(),
    }
    created = exif.get("created") or xmp.get("created") or chunks.get("creation time", "")
    if re.match(r"\d{4}-\d\d", str(created)):
        metadata["created"] = str(created)
    for name in ("camera", "latitude", "longitude"):
        if name in exif:
            metadata[name] = exif[name]
    author = xmp.get("author") or exif.get("author") or chunks.get("author", "")
    if author:
        metadata["author"] = str(author)
    keywords = xmp.get("keywords") or exif.get("keywords") or ()
    if keywords:
        metadata["keywords"] = ", ".join(keywords)
    title = xmp.get("title") or exif.get("title") or chunks.get("title", "")
    caption = xmp.get("caption") or exif.get("caption") or chunks.get("description") or chunks.get("comment", "")
    return ImageFacts(str(title).strip(), str(caption).strip(), tuple(keywords), metadata)


def _exif(image: Image) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    try:
        exif = image.getexif()
        capture, gps = exif.get_ifd(_CAPTURE), exif.get_ifd(_GPS)
    except Exception:  # EXIF is written by a thousand programs, and Pillow raises whatever a broken one leads it to
        return facts
    facts["orientation"] = exif.get(0x0112)
    date = _iso(capture.get(_TAKEN) or exif.get(_CHANGED), capture.get(_OFFSET))
    maker, model = _text(exif.get(_MAKE)), _text(exif.get(_MODEL))
    camera = model if model.lower().startswith(maker.lower().split(" ")[0] or "\0") else f"{maker} {model}".strip()
    caption = _text(exif.get(_DESCRIPTION)) or _wide(exif.get(_XP_COMMENT)) or _comment(capture.get(_COMMENT))
    told = {
        "created": date,
        "camera": camera,
        "author": _text(exif.get(_ARTIST)) or _wide(exif.get(_XP_AUTHOR)),
        "title": _wide(exif.get(_XP_TITLE)),
        "caption": "" if caption.lower() in _BOILERPLATE else caption,
        "keywords": tuple(word.strip() for word in _wide(exif.get(_XP_KEYWORDS)).split(";") if word.strip()),
    }
    facts.update({name: value for name, value in told.items() if value})
    with contextlib.suppress(ArithmeticError, ValueError, TypeError, KeyError, IndexError):
        latitude, longitude = _degrees(gps[2], gps.get(1, "N")), _degrees(gps[4], gps.get(3, "E"))
        if abs(latitude) <= 90 and abs(longitude) <= 180 and (latitude or longitude):
            facts["latitude"], facts["longitude"] = latitude, longitude
    return facts


def _iso(date: object, offset: object) -> str:
    """EXIF's ``2024:05:17 10:30:00`` as ISO 8601; empty for the zeros of a camera whose clock was never set."""
    found = re.match(r"(\d{4})[:-](\d\d)[:-](\d\d)(?:[ T](\d\d:\d\d:\d\d))?", _text(date))
    if not found or found[1] == "0000" or not 1 <= int(found[2]) <= 12 or not 1 <= int(found[3]) <= 31:
        return ""
    zone = _text(offset)
    time = f"T{found[4]}" if found[4] else ""
    if not time or not re.fullmatch(r"[+-]\d\d:\d\d", zone):
        zone = ""
    return f"{found[1]}-{found[2]}-{found[3]}{time}{zone}"


def _degrees(parts: Any, direction: Any) -> float:
    degrees, minutes, seconds = (float(part) for part in parts)
    sign = -1 if _text(direction).upper() in {"S", "W"} else 1
    return round(sign * (degrees + minutes / 60 + seconds / 3600), 6)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value).replace("\0", " ").strip() if value is not None else ""


def _wide(value: object) -> str:
    """Windows' own fields: UTF-16, given as bytes or as a tuple of them."""
    if isinstance(value, tuple) and all(isinstance(item, int) and 0 <= item < 256 for item in value):
        value = bytes(value)
    return value.decode("utf-16-le", "replace").replace("\0", "").strip() if isinstance(value, bytes) else ""


def _comment(value: object) -> str:
    """A user comment: eight bytes that name the encoding, then the text."""
    if not isinstance(value, bytes) or len(value) <= 8:
        return ""
    code, body = value[:8], value[8:]
    text = body.decode("utf-16" if code.startswith(b"UNICODE") else "utf-8", "replace")
    return text.replace("\0", " ").strip()


_DC, _RDF = "{http://purl.org/dc/elements/1.1/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_XMP_DATES = ("{http://ns.adobe.com/exif/1.0/}DateTimeOriginal", "{http://ns.adobe.com/xap/1.0/}CreateDate")


def _xmp(image: Image) -> dict[str, Any]:
    raw = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    data = raw.encode() if isinstance(raw, str) else bytes(raw)
    if not data or len(data) > _MAX_XMP or b"<!ENTITY" in data:
        return {}
    try:
        root = ElementTree.fromstring(data.strip(b"\0 \n\r\t"))
    except (ElementTree.ParseError, ValueError):
        return {}

    def words(name: str) -> tuple[str, ...]:
        found = root.find(f".//{_DC}{name}")
        items = [] if found is None else [item.text or "" for item in found.iter(f"{_RDF}li")]
        return tuple(item.strip() for item in items if item.strip())

    dates = [value for tag in root.iter(f"{_RDF}Description") for name in _XMP_DATES if (value := tag.get(name))]
    told = {
        "title": " ".join(words("title")[:1]),
        "caption": " ".join(words("description")[:1]),
        "keywords": words("subject"),
        "author": ", ".join(words("creator")),
        "created": dates[0] if dates else "",
    }
    return {name: value for name, value in told.items() if value}
