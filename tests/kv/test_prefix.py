"""The prefix cache: full pages by content, counted; the page that was idle longest is dropped first."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from ssd.kv.cache import PAGE_SIZE
from ssd.kv.prefix import Key, PrefixCache, page_key, root_key
from ssd.native import PageAllocator


def keys_of(tokens: Sequence[int], salt: str | None = None) -> list[Key]:
    keys = [root_key("a model", salt)]
    for start in range(0, len(tokens) - PAGE_SIZE + 1, PAGE_SIZE):
        keys.append(page_key(keys[-1], tokens[start : start + PAGE_SIZE]))
    return keys[1:]


def text(pages: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1000), k=pages * PAGE_SIZE)


@pytest.fixture
def cache() -> PrefixCache:
    return PrefixCache(PageAllocator(1 + 10))


def stored(cache: PrefixCache, keys: Sequence[Key], by_draft: int = 0) -> npt.NDArray[np.int32]:
    """A sequence that holds pages for these keys, which are kept."""
    found = cache.find(keys)
    pages = np.concatenate([cache.hold(found), cache.allocate(len(keys) - len(found))])
    cache.keep(keys, pages, by_draft)
    return pages


def test_a_key_depends_on_every_token_before_it_and_on_the_salt() -> None:
    tokens = text(3)
    keys = keys_of(tokens)
    changed = [tokens[0] + 1, *tokens[1:]]
    assert len(set(keys)) == 3
    assert not set(keys) & set(keys_of(changed))
    assert keys[:2] == keys_of([*tokens[:-1], 5])[:2]
    for salt in ("", "None", "b"):
        assert not set(keys) & set(keys_of(tokens, salt))
    assert keys != [page_key(root_key("another model", None), tokens[:PAGE_SIZE]), *keys[1:]]


def test_the_pages_of_a_sequence_that_has_ended_are_found(cache: PrefixCache) -> None:
    keys = keys_of(text(4))
    pages = stored(cache, keys, by_draft=2)
    cache.release(pages)
    found = cache.find([*keys[:3], b"other"])
    assert [kept.page for kept in found] == pages[:3].tolist()
    assert [kept.by_draft for kept in found] == [True, True, False]
    assert cache.find([b"other", *keys]) == []
    assert cache.available == cache.capacity
    cache.check_integrity([])


def test_the_page_that_was_idle_longest_is_dropped_first_and_a_late_one_before_its_beginning(cache: PrefixCache) -> None:
    old, new = keys_of(text(4, 1)), keys_of(text(4, 2))
    cache.release(stored(cache, old))
    cache.release(stored(cache, new))
    cache.allocate(2)  # these are free
    assert cache.evictions == 0
    cache.allocate(2)
    assert cache.evictions == 2
    assert [len(cache.find(keys)) for keys in (old, new)] == [2, 4]
    cache.release(cache.hold(cache.find(old)))  # it is used again
    cache.allocate(3)
    assert [len(cache.find(keys)) for keys in (old, new)] == [2, 1]


def test_a_page_that_is_held_is_not_dropped(cache: PrefixCache) -> None:
    keys = keys_of(text(4))
    pages = stored(cache, keys)
    cache.allocate(6)
    with pytest.raises(RuntimeError, match="No pages left: 1 asked for, 0 of 10 free"):
        cache.allocate(1)
    assert len(cache.find(keys)) == 4 and cache.available == 0
    cache.release(pages)
    assert cache.available == 4


def test_found_pages_that_are_idle_do_not_count_as_room_for_new_ones(cache: PrefixCache) -> None:
    keys = keys_of(text(4))
    cache.release(stored(cache, keys))
    found = cache.find(keys)
    assert cache.new_pages_fit(6, found) and not cache.new_pages_fit(7, found) and cache.new_pages_fit(10, [])


def test_two_sequences_that_store_the_same_page_keep_one_of_them(cache: PrefixCache) -> None:
    keys = keys_of(text(3))
    first, second, third = (cache.allocate(3) for _ in range(3))
    cache.keep(keys, first, by_draft=1)
    cache.keep(keys, second, by_draft=0)
    assert [kept.page for kept in cache.find(keys)] == first.tolist()
    cache.keep(keys, third, by_draft=2)  # the draft has stored more of it
    assert [kept.page for kept in cache.find(keys)] == [first[0], third[1], first[2]]
    cache.keep(keys, first, by_draft=3)
    assert [(kept.page, kept.by_draft) for kept in cache.find(keys)] == [(first[0], True), (third[1], True), (first[2], True)]
    cache.check_integrity([*first, *second, *third])
    for pages in (third, first, second):
        cache.release(pages)
    cache.check_integrity([])
    assert cache.kept == 3 and cache.available == cache.capacity


def test_after_clear_nothing_is_found_and_held_pages_stay_held(cache: PrefixCache) -> None:
    held, idle = keys_of(text(2, 1)), keys_of(text(3, 2))
    cache.release(stored(cache, idle))
    pages = stored(cache, held)
    cache.clear()
    assert cache.kept == 0 and cache.find(held) == cache.find(idle) == []
    assert cache.available == 8
    cache.release(pages)
    cache.check_integrity([])
    assert cache.available == 10


@pytest.mark.parametrize("seed", range(20))
def test_counts_add_up_in_random_traffic(seed: int) -> None:
    dice = random.Random(seed)
    cache, texts = PrefixCache(PageAllocator(1 + 30)), [text(8, seed=i) for i in range(3)]
    held: list[npt.NDArray[np.int32]] = []
    for _ in range(400):
        action = dice.random()
        if action < 0.5:
            tokens = dice.choice(texts)[: PAGE_SIZE * dice.randint(0, 8)] + text(dice.randint(0, 2), dice.randint(0, 5))
            keys = keys_of(tokens)
            found = cache.find(keys)
            if cache.new_pages_fit(len(keys) - len(found), found):
                held.append(stored(cache, keys, by_draft=dice.randint(0, len(keys))))
        elif action < 0.98 and held:
            cache.release(held.pop(dice.randrange(len(held))))
        elif action >= 0.98:
            cache.clear()
        in_use = [int(page) for pages in held for page in pages]
        cache.check_integrity(in_use)
        assert cache.available == cache.capacity - len(set(in_use))


def test_a_wrong_count_is_detected(cache: PrefixCache) -> None:
    pages = stored(cache, keys_of(text(2)))
    cache.check_integrity(pages.tolist())
    for wrong in ([], [1], [1, 2, 2], [1, 2, 3]):
        with pytest.raises(RuntimeError, match="lost or given twice"):
            cache.check_integrity(wrong)
