"""The K/V pages of an engine, shared by content: a full page outlives its sequence, for later prompts that begin alike.

A page's key is a hash of all tokens up to its end (`page_key`), so a prompt finds its pages by the keys alone. A kept page that
no sequence holds is idle: it counts as available, and the one that was idle longest is dropped when a new page is needed. All
of this is on the host; nobody reads a page's contents, and nobody writes to a kept page.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from ssd.native import PageAllocator

Key = bytes


def root_key(identity: str, salt: str | None) -> Key:
    """The parent of a sequence's first page. identity: names the models and formats. Requests share pages within one salt."""
    return hashlib.blake2b(repr((identity, salt)).encode(), digest_size=16).digest()


def page_key(parent: Key, tokens: Sequence[int]) -> Key:
    """The key of the page of these token ids, PAGE_SIZE of them, after the page of the key `parent`."""
    return hashlib.blake2b(parent + array("i", tokens).tobytes(), digest_size=16).digest()


@dataclass
class KeptPage:
    """A page that is kept by content. by_draft: whether the draft's K/V is stored too; the target's always is."""

    key: Key
    page: int
    by_draft: bool


class PrefixCache:
    """Gives out pages, and keeps full ones. A page has a holder for each sequence that names it, and one more if it is kept."""

    def __init__(self, pages: PageAllocator) -> None:
        self.evictions = 0
        self._pages = pages
        self._kept: dict[Key, KeptPage] = {}
        self._kept_at: dict[int, KeptPage] = {}  # the same by page
        self._idle: OrderedDict[int, KeptPage] = OrderedDict()  # by page; the first was idle longest

    @property
    def capacity(self) -> int:
        return self._pages.capacity

    @property
    def available(self) -> int:
        """Number of pages that no sequence holds."""
        return self._pages.available + len(self._idle)

    @property
    def kept(self) -> int:
        """Number of pages that are kept, held by a sequence or idle."""
        return len(self._kept)

    def find(self, keys: Sequence[Key]) -> list[KeptPage]:
        """The kept pages of the longest beginning of a sequence. keys: of its pages, in order."""
        found = []
        for key in keys:
            if (kept := self._kept.get(key)) is None:
                break
            found.append(kept)
        return found

    def new_pages_fit(self, count: int, found: Sequence[KeptPage]) -> bool:
        """Whether `count` new pages are available besides the found ones."""
        return count <= self.available - sum(kept.page in self._idle for kept in found)

    def hold(self, found: Sequence[KeptPage]) -> npt.NDArray[np.int32]:
        """Let a sequence hold pages that were found: [found] int32."""
        pages = _pages_of(found)
        self._pages.hold(pages)
        for page in pages.tolist():
            self._idle.pop(page, None)
        return pages

    def allocate(self, count: int) -> npt.NDArray[np.int32]:
        """Take `count` new pages, [count] int32. Raises RuntimeError if fewer are available."""
        missing = count - self._pages.available
        if 0 < missing <= len(self._idle):
            self._drop(list(islice(self._idle.values(), missing)))
            self.evictions += missing
        return self._pages.allocate(count)

    def keep(self, keys: Sequence[Key], pages: npt.NDArray[np.int32], by_draft: int) -> None:
        """Keep full pages of a sequence that holds them. keys: of its first pages. by_draft: how many the draft has stored.

        If another page with the same key is kept already, that one stays, unless the draft has stored only the new one.
        """
        new, replaced = [], []
        for index, (key, page) in enumerate(zip(keys, pages.tolist(), strict=False)):
            before, stored = self._kept.get(key), index < by_draft
            if before is None:
                new.append(KeptPage(key, page, stored))
            elif before.page == page:
                before.by_draft |= stored
            elif stored and not before.by_draft:
                replaced.append(before)
                new.append(KeptPage(key, page, stored))
        self._drop(replaced)
        self._pages.hold(_pages_of(new))
        for kept in new:
            self._kept[kept.key] = self._kept_at[kept.page] = kept

    def release(self, pages: npt.NDArray[np.int32]) -> None:
        """Take a sequence's pages back. The kept ones among them that nobody else holds become idle, the last page first."""
        self._pages.free(pages)
        for page in reversed(pages.tolist()):
            if (kept := self._kept_at.get(page)) is not None and self._pages.holders(page) == 1:
                self._idle[page] = kept

    def clear(self) -> None:
        """Keep nothing any more: what the pages hold is not certain."""
        self._drop(list(self._kept.values()))

    def check_integrity(self, held: Sequence[int]) -> None:
        """Raise RuntimeError unless every page is free, or has its holders and no others.

        held: the pages of all sequences, with repetitions.
        """
        expected = np.bincount(np.array([*held, *self._kept_at], dtype=np.int64), minlength=1 + self.capacity)
        found = np.array([0, *(self._pages.holders(page) for page in range(1, 1 + self.capacity))])
        wrong = np.flatnonzero(expected != found)
        idle = {page for page in self._kept_at if found[page] == 1}
        if len(wrong) or idle != set(self._idle) or int((found[1:] == 0).sum()) != self._pages.available:
            raise RuntimeError(
                f"K/V pages were lost or given twice: {len(set(held))} held, {self.kept} kept, {self._pages.available} free, "
                f"{self.capacity} in all, {wrong[:10].tolist()} with a wrong count."
            )

    def _drop(self, dropped: Sequence[KeptPage]) -> None:
        for kept in dropped:
            del self._kept[kept.key], self._kept_at[kept.page]
            self._idle.pop(kept.page, None)
        self._pages.free(_pages_of(dropped))


def _pages_of(kept: Sequence[KeptPage]) -> npt.NDArray[np.int32]:
    return np.array([each.page for each in kept], dtype=np.int32)
