"""A picture file to pixels: upright, RGB, eight bits, and never larger than memory can bear.

Everything that reads pictures comes through here, so that a photograph held sideways, a palette, sixteen bits, CMYK or
a transparent background are dealt with once, and so that a damaged or hostile file gives one clear error.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from deepwell.errors import MissingExtraError, UnreadableFileError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 150_000_000
"""Larger pictures are refused before they are decoded: 150 million pixels take 450 MB, more than any camera makes."""


class _Quiet:
    """Silences Pillow's warnings of odd EXIF, and of sizes that are checked here, while any thread is inside.

    The filters are one list for the whole process: the first thread in saves it, the last one out restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings(action="ignore")
                self._saved.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_pillow_is_quiet = _Quiet()


@contextmanager
def opened(path: Path) -> Iterator[Image]:
    """The picture, not yet decoded, on its first frame.

    Raises:
        UnreadableFileError: It is not a picture, damaged, truncated, or would need an absurd amount of memory. What
            the block raises while it decodes is covered too.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("pictures need Pillow", hint="Run: pip install 'deepwell[images]'") from error
    if path.stat().st_size == 0:
        raise UnreadableFileError(f"{path.name} is empty (0 bytes)", hint="Replace it with a whole copy.")
    with _pillow_is_quiet:
        unknown = _is_heic(path) and not knows_heic()
        try:
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UnreadableFileError(
                        f"{path.name} would unpack to {width} x {height} pixels; the limit is {MAX_PIXELS:,}",
                        hint="If it is a real picture, save a smaller copy.",
                    )
                yield image
        except Image.DecompressionBombError as error:
            raise UnreadableFileError(
                f"{path.name} would unpack to far more than {MAX_PIXELS:,} pixels, the limit",
                hint="If it is a real picture, save a smaller copy.",
            ) from error
        except UnidentifiedImageError as error:
            if unknown:
                raise MissingExtraError(
                    f"{path.name} is a HEIC picture, which needs the package pillow-heif",
                    hint="Run: pip install pillow-heif; or save the picture as JPEG.",
                ) from error
            raise UnreadableFileError(
                f"{path.name} is not a picture this machine can read", hint=_advice(path)
            ) from error
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, MemoryError) as error:
            if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
                raise
            reason = str(error).strip().rstrip(".") or type(error).__name__
            raise UnreadableFileError(
                f"{path.name} is damaged or incomplete ({reason})", hint="Replace it with a whole copy."
            ) from error


def _advice(path: Path) -> str:
    """What to do about a picture that Pillow does not know."""
    if path.suffix.lower() in {".cr2", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"}:
        return "Camera raw files are not read; export it as JPEG or PNG."
    return "Check that the file is what its name says, or save it as JPEG or PNG."


def _is_heic(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in {b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"}


@cache
def knows_heic() -> bool:
    """Teach Pillow the pictures of phones when the package pillow-heif is installed; whether it was.

    It is no dependency of ours: its wheels carry an encoder under the GPL.
    """
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return False
    register_heif_opener()
    return True


def load_rgb(path: Path, *, near: int | None = None) -> Image:
    """A picture file's first frame as an upright RGB image.

    With ``near``, JPEGs are decoded at the smallest scale whose short side is at least twice that, which is several
    times quicker for photographs.

    Raises:
        UnreadableFileError: See ``opened``.
    """
    with opened(path) as image:
        if near is not None:
            image.draft("RGB", (near * 2, near * 2))
        return to_rgb(image)


def to_rgb(image: Image) -> Image:
    """Upright (as its EXIF says) and RGB; sixteen bits are scaled to eight; what is transparent becomes white."""
    from PIL import Image as Images
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        import numpy as np

        values = np.asarray(image, dtype=np.float32)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        scale = 255.0 / (high - low) if high > low else 0.0
        eight_bits = (np.nan_to_num(values, nan=low) - low) * scale
        return Images.fromarray(eight_bits.astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Images.new("RGBA", image.size, "white")
        return Images.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")
