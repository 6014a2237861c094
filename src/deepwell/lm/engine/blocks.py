"""Which block of the cache belongs to whom.

The cache is cut into blocks of equally many tokens. A sequence holds a table of blocks, as a process holds pages (vLLM,
arXiv 2309.06180). A block that is full can be shared by every sequence that begins with the same tokens: its name is a
hash of its tokens and of the name of the block before it, so equal names mean equal beginnings. Whoever stops using a
block lets go of it; a named block that nobody uses stays findable until its memory is needed, the longest unused first.

Blocks of one sequence are laid side by side where there is room, because attention can then read them in place.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from deepwell.errors import DeepwellError


def chain(tokens: Sequence[int], block_size: int, digests: list[bytes], *, upto: int | None = None) -> list[bytes]:
    """The names of all full blocks of ``tokens[:upto]``.

    Args:
        tokens: A sequence.
        block_size: Tokens of a block.
        digests: Names of its first blocks, found before; it grows and is returned.
        upto: How many tokens count; None: all.
    """
    full = (len(tokens) if upto is None else upto) // block_size
    for block in range(len(digests), full):
        before = digests[-1] if digests else b""
        part = array("q", tokens[block * block_size : (block + 1) * block_size])
        digests.append(hashlib.blake2b(before + part.tobytes(), digest_size=16).digest())
    return digests


class BlockAllocator:
    """Hands out blocks, counts their users, and finds those that hold a beginning that is asked for.

    A block is *free* (nobody uses it and nothing is in it), *in use* (by one or more), or *kept* (nobody uses it, and
    it can be found by its name). Kept blocks count as room: they are given away when no free one is left.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._free = bytearray(b"\x01" * blocks)
        self._users = [0] * blocks
        self._name: list[bytes | None] = [None] * blocks
        self._by_name: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._free_count = blocks
        self._next = 0

    @property
    def room(self) -> int:
        """Blocks that can be allocated."""
        return self._free_count + len(self._kept)

    @property
    def in_use(self) -> int:
        """Blocks that somebody uses."""
        return self.blocks - self.room

    @property
    def kept(self) -> int:
        """Blocks that nobody uses and that can be found by name."""
        return len(self._kept)

    def users(self, block: int) -> int:
        """How many use the block."""
        return self._users[block]

    def allocate(self, count: int, *, behind: int | None = None, likely: int = 0) -> list[int]:
        """``count`` blocks for one user, side by side where that is possible.

        Args:
            count: How many; no more than ``room``.
            behind: The user's last block so far.
            likely: How many more the user may want later; they are not reserved, but others begin behind them.

        Raises:
            DeepwellError: There is not so much room.
        """
        if count > self.room:
            raise DeepwellError(f"{count} blocks of the cache are wanted, and {self.room} are there")
        start = None if behind is None else behind + 1
        if start is None or self._free[start : start + count] != b"\x01" * count:
            start = self._run(count, likely)
        if start is not None and count:
            taken = list(range(start, start + count))
        else:
            taken = []
            for _ in range(min(count, self._free_count)):
                taken.append(self._free.find(1, taken[-1] + 1 if taken else 0))
            taken += [self._evict() for _ in range(count - len(taken))]
        for block in taken:
            self._free_count -= self._free[block]
            self._free[block] = 0
            self._users[block] = 1
        return taken

    def release(self, blocks: Iterable[int]) -> None:
        """Let go of blocks. The last ones of a sequence are given away first, because its beginning is shared most."""
        for block in reversed(list(blocks)):
            if self._users[block] < 1:
                raise AssertionError(f"block {block} is released and nobody uses it")
            self._users[block] -= 1
            if self._users[block]:
                continue
            if self._name[block] is None:
                self._free[block] = 1
                self._free_count += 1
            else:
                self._kept[block] = None

    def name(self, block: int, digest: bytes) -> None:
        """Make a full block findable. Nothing happens if another one has the name: both hold the same."""
        if self._name[block] is None and digest not in self._by_name:
            self._name[block] = digest
            self._by_name[digest] = block

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The blocks that hold the longest beginning of a chain of names; nothing changes."""
        found = []
        for digest in digests:
            block = self._by_name.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def room_beside(self, blocks: Sequence[int]) -> int:
        """Blocks that can be allocated once ``blocks`` are in use."""
        return self.room - sum(not self._users[block] for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more user of blocks that were just found."""
        for block in blocks:
            if not self._users[block]:
                del self._kept[block]
            self._users[block] += 1

    def forget(self) -> None:
        """Drop every name, as when the weights have changed."""
        for block in self._kept:
            self._free[block] = 1
        self._free_count += len(self._kept)
        self._kept.clear()
        self._by_name.clear()
        self._name = [None] * self.blocks

    def _evict(self) -> int:
        block, _ = self._kept.popitem(last=False)
        name = self._name[block]
        assert name is not None
        del self._by_name[name]
        self._name[block] = None
        return block

    def _run(self, count: int, likely: int) -> int | None:
        """Where ``count`` free blocks lie side by side, with free ones for the ``likely`` behind them if possible."""
        for wanted in (count + likely, count):
            run = b"\x01" * wanted
            for since in (self._next, 0):
                start = self._free.find(run, since)
                if start >= 0:
                    self._next = start + wanted
                    return start
        return None
