"""A file to passages: one reader for each kind of file, found by entry point.

    choose(path).read(path, senses) -> Document

``registry`` finds the reader for a file, by what the file holds rather than by its name. ``passages`` cuts what any
reader saw into passages of one size. ``guard`` has the limits that keep a hostile file from doing harm. The rest is one
module for each kind of file; heavy libraries are imported where they are used, so that listing readers costs nothing.

A reader of your own is a class with the attributes of ``deepwell.library.protocols.Reader`` under the entry point group
``deepwell.readers``; the built-in ones come through the same door.
"""

from deepwell.library.readers.registry import ReaderInfo, available, choose, listing

__all__ = ["ReaderInfo", "available", "choose", "listing"]
