"""What a container file is, by its directory: ZIP (modern Office, EPUB) and OLE2 (old or encrypted Office)."""

import struct
import zipfile
from pathlib import Path

from deepwell.errors import UnreadableFileError
from deepwell.library.readers.guard import shown

ZIP = b"PK\x03\x04"
OLE2 = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

_PARTS = (("word/", ".docx"), ("ppt/", ".pptx"), ("xl/", ".xlsx"))


def zip_suffix(path: Path) -> str | None:
    """``.docx``, ``.pptx``, ``.xlsx`` or ``.epub`` by what a ZIP file holds, ``.zip`` for another one.

    None when its directory cannot be read; then its name decides, and the reader says what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeError):
        return None
    if "[Content_Types].xml" in names:
        for folder, suffix in _PARTS:
            if any(name.startswith(folder) for name in names):
                return suffix
    return ".epub" if "META-INF/container.xml" in names else ".zip"


def ole2_kind(path: Path) -> UnreadableFileError:
    """The error that says why an OLE2 file is not read: encrypted, or from before 2007."""
    if "EncryptedPackage" in _ole2_names(path):
        return UnreadableFileError(f"{shown(path)} is encrypted with a password", hint="Save it without one.")
    return UnreadableFileError(
        f"{shown(path)} is in a format of Office from before 2007", hint="Save it as DOCX, XLSX, PPTX or EML."
    )


def _ole2_names(path: Path) -> list[str]:
    """Names in the first sector of an OLE2 directory ([MS-CFB] 2.2 and 2.6)."""
    with path.open("rb") as file:
        header = file.read(512)
        if len(header) < 512:
            return []
        shift, first = struct.unpack_from("<H", header, 30)[0], struct.unpack_from("<I", header, 48)[0]
        if shift not in (9, 12):
            return []
        file.seek((first + 1) << shift)
        sector = file.read(8 << shift)
    entries = [sector[at : at + 128] for at in range(0, len(sector) - 127, 128)]
    sizes = [max(0, struct.unpack_from("<H", entry, 64)[0] - 2) for entry in entries]
    return [entry[:size].decode("utf-16-le", "replace") for entry, size in zip(entries, sizes, strict=True)]
