"""The caching allocator against hand-derived cases, torch's own tests and header, and a plain second model."""

from __future__ import annotations

import contextlib
import pickle
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchledger.errors import UserError
from torchledger.memory import caching
from torchledger.memory.caching import MIB, CachingAllocator, OutOfMemory, divisions_of


def sizes(allocator: CachingAllocator) -> list[list[int]]:
    """Return the blocks of each segment: a free one is negative."""
    return [[b.size if b.allocated else -b.size for b in segment.blocks] for segment in allocator.segments()]


def both(allocator: CachingAllocator) -> tuple[int, int]:
    return allocator.allocated, allocator.reserved


# Sizes and pools


def test_sizes_are_those_of_the_header_that_torch_comes_with() -> None:
    header = (Path(torch.__file__).parent / "include/c10/core/AllocatorConfig.h").read_text()
    constants = dict(re.findall(r"constexpr size_t (k\w+) = (\d+);", header))
    constants |= dict(re.findall(r"std::atomic<size_t> (large_segment_size_)\{(\d+)\}", header))
    names = {
        "kMinBlockSize": "SMALLEST_BLOCK",
        "kSmallSize": "LARGEST_SMALL",
        "kSmallBuffer": "SMALL_SEGMENT",
        "kMinLargeAlloc": "OWN_SEGMENT",
        "kRoundLarge": "SEGMENT_STEP",
        "large_segment_size_": "LARGE_SEGMENT",
    }
    assert {name: int(constants[name]) for name in names} == {
        name: getattr(caching, ours) for name, ours in names.items()
    }


@pytest.mark.parametrize(
    ("nbytes", "allocated", "reserved"),
    [
        (0, 0, 0),
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),  # no longer small
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB, 10 * MIB),  # rounded to 10 MiB: a segment of its own, in steps of 2 MiB
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # 2 MiB - 512 are left: more than 1 MiB, so split off
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),  # 1 MiB + 512 are left: the least that is split off
        (11 * MIB, 12 * MIB, 12 * MIB),  # 1 MiB is left: stays with the block, and counts as allocated
        (84 * MIB, 84 * MIB, 84 * MIB),
    ],
)
def test_one_request(nbytes: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    handle = allocator.allocate(nbytes)
    assert both(allocator) == (allocated, reserved)
    allocator.free(handle)
    assert both(allocator) == (0, reserved)
    assert (allocator.peak_allocated, allocator.peak_reserved) == (allocated, reserved)


def test_small_requests_share_a_segment() -> None:
    allocator = CachingAllocator()
    for _ in range(4096):  # 2 MiB / 512
        allocator.allocate(100)
    assert both(allocator) == (2 * MIB, 2 * MIB)
    allocator.allocate(100)
    assert both(allocator) == (2 * MIB + 512, 4 * MIB)


def test_pools_do_not_mix() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(5 * MIB))  # 20 MiB lie free
    allocator.allocate(1000)
    assert both(allocator) == (1024, 22 * MIB)
    allocator.allocate(2 * MIB)  # of the 20 that lie free
    assert both(allocator) == (2 * MIB + 1024, 22 * MIB)
    assert [(segment.size, segment.small) for segment in allocator.segments()] == [(20 * MIB, False), (2 * MIB, True)]


# Splitting, merging, reuse


def test_a_small_remainder_is_split_off_from_512_bytes_on() -> None:
    allocator = CachingAllocator()
    allocator.allocate(MIB)
    allocator.allocate(MIB - 512)
    assert sizes(allocator) == [[MIB, MIB - 512, -512]]
    allocator.allocate(1)
    assert sizes(allocator) == [[MIB, MIB - 512, 512]]


@pytest.mark.parametrize(("nbytes", "block"), [(5 * MIB, 6 * MIB), (5 * MIB - 512, 5 * MIB - 512)])
def test_a_large_remainder_is_split_off_above_one_mebibyte(nbytes: int, block: int) -> None:
    allocator = CachingAllocator()
    hole = allocator.allocate(6 * MIB)
    allocator.allocate(9 * MIB)
    allocator.free(hole)
    assert sizes(allocator) == [[-6 * MIB, 9 * MIB, -5 * MIB]]
    allocator.allocate(5 * MIB)  # the 5 at the end
    allocator.allocate(nbytes)  # the 6 in front: 1 MiB is left, or 512 bytes more
    assert sizes(allocator)[0][0] == block
    assert both(allocator) == (14 * MIB + block, 20 * MIB)


def test_neighbours_merge_on_either_side() -> None:
    allocator = CachingAllocator()
    first, second, third, last = (allocator.allocate(512 * 1024) for _ in range(4))
    allocator.free(first)
    allocator.free(third)
    half = 512 * 1024
    assert sizes(allocator) == [[-half, half, -half, half]]
    allocator.free(second)
    assert sizes(allocator) == [[-3 * half, half]]
    allocator.free(last)
    assert sizes(allocator) == [[-2 * MIB]]


def test_the_smallest_block_that_fits_is_taken_and_of_equals_the_first() -> None:
    allocator = CachingAllocator()
    requests = [3000, 512, 2000, 512, 1500, 512, 2000, 512]  # as blocks: 3072, 512, 2048, 512, 1536, 512, 2048, 512
    handles = [allocator.allocate(nbytes) for nbytes in requests]
    for place in (0, 2, 4, 6):
        allocator.free(handles[place])
    allocator.allocate(1600)  # 2048: the first of two
    assert sizes(allocator)[0][:7] == [-3072, 512, 2048, 512, -1536, 512, -2048]
    allocator.allocate(1600)
    assert sizes(allocator)[0][:7] == [-3072, 512, 2048, 512, -1536, 512, 2048]
    allocator.allocate(1600)  # 2048 of 3072, the rest is split off
    assert sizes(allocator)[0][:3] == [2048, -1024, 512]
    assert both(allocator) == (4 * 512 + 3 * 2048, 2 * MIB)


def test_reuse_needs_no_more_memory() -> None:
    allocator = CachingAllocator()
    for _ in range(10):
        handles = [allocator.allocate(nbytes) for nbytes in (700, 3 * MIB, 50 * MIB, 0)]
        for handle in handles:
            allocator.free(handle)
    assert both(allocator) == (0, 72 * MIB)  # 2 + 20 + 50


def test_fragments_keep_reserved_above_allocated() -> None:
    # Ten segments of 20 MiB, each of 8, 2 and 10 MiB, of which the 2 stay: none has 20 MiB for a request.
    allocator = CachingAllocator()
    triples = [[allocator.allocate(n * MIB) for n in (8, 2, 10)] for _ in range(10)]
    assert both(allocator) == (200 * MIB, 200 * MIB)
    for front, _, behind in triples:
        allocator.free(front)
        allocator.free(behind)
    assert both(allocator) == (20 * MIB, 200 * MIB)
    allocator.allocate(20 * MIB)
    assert both(allocator) == (40 * MIB, 220 * MIB)
    allocator.empty_cache()  # no segment is free as a whole
    assert both(allocator) == (40 * MIB, 220 * MIB)
    allocator.reset_peaks()
    assert (allocator.peak_allocated, allocator.peak_reserved) == (40 * MIB, 220 * MIB)


# Out of memory


def test_cached_segments_are_given_back_before_memory_runs_out() -> None:
    allocator = CachingAllocator(limit=100 * MIB)
    cached = allocator.allocate(60 * MIB)
    small = allocator.allocate(1)
    allocator.free(cached)
    assert both(allocator) == (512, 62 * MIB)
    allocator.allocate(80 * MIB)  # 62 + 80 > 100; after the 60 have gone back, 2 + 80
    assert both(allocator) == (80 * MIB + 512, 82 * MIB)
    assert allocator.peak_reserved == 82 * MIB
    allocator.free(small)
    allocator.allocate(20 * MIB)  # 82 + 20 > 100; without the small segment 80 + 20
    assert both(allocator) == (100 * MIB, 100 * MIB)


def test_peaks_stay() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(50 * MIB))
    allocator.empty_cache()
    allocator.allocate(1)
    assert both(allocator) == (512, 2 * MIB)
    assert (allocator.peak_allocated, allocator.peak_reserved) == (50 * MIB, 50 * MIB)


def test_out_of_memory_says_where_and_how_much() -> None:
    allocator = CachingAllocator(limit=100 * MIB)
    first = allocator.allocate(50 * MIB - 100)  # 50 MiB
    allocator.allocate(0)
    with pytest.raises(OutOfMemory) as caught:
        allocator.allocate(51 * MIB)  # a segment of 52 MiB
    error = caught.value
    assert (error.request, error.nbytes, error.needed) == (2, 51 * MIB, 52 * MIB)
    assert (error.allocated, error.reserved, error.limit) == (50 * MIB, 50 * MIB, 100 * MIB)
    assert str(error) == (
        "out of memory at request 2, for 53,477,376 bytes: torch tries to allocate 54,525,952, while 52,428,800 are "
        "reserved (52,428,800 allocated), with a limit of 104,857,600"
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    allocator.allocate(50 * MIB)  # it goes on
    allocator.free(first)
    assert both(allocator) == (50 * MIB, 100 * MIB)


def test_half_of_the_memory_and_half_again() -> None:
    # torch's test_out_of_memory_retry, on a device of which 1 MiB is not to be had.
    total = 1 << 30
    allocator = CachingAllocator(limit=total - MIB)
    first = allocator.allocate(total // 2)
    with pytest.raises(OutOfMemory):
        allocator.allocate(total // 2)
    allocator.free(first)
    allocator.allocate(total // 2)
    assert allocator.reserved == total // 2


# Settings


@pytest.mark.parametrize(
    ("setting", "nbytes", "block"),
    [
        # torch's test_allocator_settings: 84 and 400 MiB
        (0, 84 * MIB, 84 * MIB),
        (4, 84 * MIB, 96 * MIB),  # 64, 80, 96, 112, 128
        ({64: 8, 128: 2, 256: 2, 512: 2, 1024: 1, ">": 1}, 84 * MIB, 88 * MIB),  # 64, 72, 80, 88
        ({64: 8, 128: 2, 256: 2, 512: 2, 1024: 1, ">": 1}, 400 * MIB, 512 * MIB),  # 256, 384, 512
        (4, 1200, 1536),  # up to 4 blocks of 512 nothing changes
        (4, 4097, 5120),  # 4096, 5120
        (4, 4096, 4096),
    ],
)
def test_sizes_between_two_powers_of_two(setting: Any, nbytes: int, block: int) -> None:
    allocator = CachingAllocator(roundup_power2_divisions=setting)
    allocator.allocate(nbytes)
    assert allocator.allocated == block


def test_divisions_are_those_of_torchs_own_example() -> None:
    # c10/test/core/AllocatorConfig_test.cpp: what 32 MiB to 4096 MiB get
    divisions = divisions_of({64: 8, 128: 2, 256: 4, 512: 2, 1024: 4, ">": 1})
    assert divisions == [8, 8, 8, 8, 8, 8, 8, 2, 4, 2, 4, 1, 1, 1, 1, 1]


def test_blocks_too_large_to_split() -> None:
    allocator = CachingAllocator(limit=150 * MIB, max_split_size_mb=40)
    allocator.free(allocator.allocate(60 * MIB))
    kept = allocator.allocate(30 * MIB)  # smaller than 40: nothing of the 60
    assert sizes(allocator) == [[-60 * MIB], [30 * MIB]]
    other = allocator.allocate(41 * MIB)  # 60 < 41 + 20, so it gets all of the 60
    assert both(allocator) == (90 * MIB, 90 * MIB)
    allocator.free(other)
    allocator.allocate(40 * MIB)  # 60 = 40 + 20 is too much; another segment
    assert sizes(allocator) == [[-60 * MIB], [30 * MIB], [40 * MIB]]
    allocator.free(kept)
    allocator.allocate(44 * MIB)  # 60 < 44 + 20
    assert sizes(allocator) == [[60 * MIB], [-30 * MIB], [40 * MIB]]


def test_only_as_much_is_given_back_as_a_request_needs() -> None:
    allocator = CachingAllocator(limit=200 * MIB, max_split_size_mb=40)
    for handle in [allocator.allocate(nbytes * MIB) for nbytes in (42, 40, 60, 50)]:
        allocator.free(handle)
    allocator.allocate(39 * MIB)  # 192 + 40 > 200: of the blocks of 40 MiB or more the smallest goes
    assert sizes(allocator) == [[-42 * MIB], [-60 * MIB], [-50 * MIB], [40 * MIB]]
    allocator.allocate(70 * MIB)  # 192 + 70 > 200: none has 70, so the largest go until there are 70: 60, 50
    assert sizes(allocator) == [[-42 * MIB], [40 * MIB], [70 * MIB]]


def test_all_is_given_back_where_large_blocks_are_not_enough() -> None:
    allocator = CachingAllocator(limit=200 * MIB, max_split_size_mb=40)
    allocator.allocate(100 * MIB)
    for handle in [allocator.allocate(1), allocator.allocate(40 * MIB)]:
        allocator.free(handle)
    allocator.allocate(60 * MIB)  # 142 + 60 > 200: 40 < 60 are not enough, so the small segment goes too
    assert allocator.reserved == 160 * MIB


def test_old_segments_are_collected_above_the_threshold() -> None:
    allocator = CachingAllocator(limit=200 * MIB, garbage_collection_threshold=0.5)
    first, second, _ = (allocator.allocate(nbytes * MIB) for nbytes in (30, 32, 50))
    allocator.free(first)
    allocator.allocate(5 * MIB)  # of the 30: what is left of them is no whole segment
    allocator.free(second)
    assert allocator.reserved == 112 * MIB
    allocator.allocate(60 * MIB)  # 112 > 0.5 * 200: the 32 go, though 112 + 60 would be within the limit
    assert sizes(allocator) == [[5 * MIB, -25 * MIB], [50 * MIB], [60 * MIB]]
    assert both(allocator) == (115 * MIB, 140 * MIB)


def test_nothing_is_collected_at_the_threshold() -> None:
    allocator = CachingAllocator(limit=240 * MIB, garbage_collection_threshold=0.5)
    for handle in [allocator.allocate(60 * MIB), allocator.allocate(60 * MIB)]:
        allocator.free(handle)
    allocator.allocate(62 * MIB)  # 120 is not above 0.5 * 240
    assert sizes(allocator) == [[-60 * MIB], [-60 * MIB], [62 * MIB]]


def test_the_older_half_is_collected_first() -> None:
    allocator = CachingAllocator(limit=100 * MIB, garbage_collection_threshold=0.5)
    first, second, _ = (allocator.allocate(nbytes * MIB) for nbytes in (20, 22, 24))
    allocator.free(first)  # cached at search 3
    allocator.free(second)  # so are the 22
    allocator.free(allocator.allocate(21 * MIB))  # search 4: the 22, as 1 MiB is not split off; cached anew
    allocator.allocate(30 * MIB)  # search 5: ages 2 and 1, mean 1.5; the 20 go, and 66 - 20 <= 50
    assert sizes(allocator) == [[-22 * MIB], [24 * MIB], [30 * MIB]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": -1}, "limit=-1"),
        ({"max_split_size_mb": 2}, "max_split_size_mb=2: torch takes 20 or more"),
        ({"limit": 1, "garbage_collection_threshold": 1.2}, "garbage_collection_threshold=1.2"),
        ({"garbage_collection_threshold": 0.5}, "give limit as well"),
        ({"roundup_power2_divisions": 3}, "3 is not a power of two"),
        ({"roundup_power2_divisions": {3: 4}}, "3 is not a power of two in MiB"),
        ({"roundup_power2_divisions": {"<": 4}}, "'<' is not a power of two in MiB"),
    ],
)
def test_settings_that_torch_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        CachingAllocator(**arguments)


def test_requests_that_cannot_be() -> None:
    allocator = CachingAllocator()
    handle = allocator.allocate(5)
    allocator.free(handle)
    with pytest.raises(UserError, match="request 0 is not allocated"):
        allocator.free(handle)
    with pytest.raises(UserError, match="-5 bytes"):
        allocator.allocate(-5)


# Expandable segments


def test_an_expandable_segment_grows_by_pages() -> None:
    allocator = CachingAllocator(expandable_segments=True)
    allocator.allocate(15 * MIB)  # a page of 20 MiB
    assert sizes(allocator) == [[15 * MIB, -5 * MIB]]
    allocator.allocate(15 * MIB)  # the 5 that are free and 10 of the next page
    assert sizes(allocator) == [[15 * MIB, 15 * MIB, -10 * MIB]]
    allocator.allocate(48 * MIB)  # the 10 and 38, which is two pages
    assert sizes(allocator) == [[15 * MIB, 15 * MIB, 48 * MIB, -2 * MIB]]
    allocator.allocate(MIB)  # the small pool has a segment of its own, of 2 MiB
    assert both(allocator) == (79 * MIB, 82 * MIB)


def test_in_an_expandable_segment_every_remainder_is_split_off() -> None:
    allocator = CachingAllocator(expandable_segments=True)
    allocator.allocate(20 * MIB - 512)
    assert sizes(allocator) == [[20 * MIB - 512, -512]]
    allocator = CachingAllocator(expandable_segments=True, max_split_size_mb=20)
    allocator.allocate(25 * MIB)
    assert sizes(allocator) == [[25 * MIB, -15 * MIB]]


def test_what_can_grow_counts_with_all_that_it_can_grow_to() -> None:
    allocator = CachingAllocator(expandable_segments=True)
    inner, _ = allocator.allocate(8 * MIB), allocator.allocate(6 * MIB)
    allocator.free(inner)
    allocator.allocate(4 * MIB)  # 6 MiB at the end would fit more closely, but it can grow: the 8 are taken
    assert sizes(allocator) == [[4 * MIB, -4 * MIB, 6 * MIB, -6 * MIB]]


def test_of_equals_that_cannot_grow_the_first_is_taken() -> None:
    allocator = CachingAllocator(expandable_segments=True)
    first, _, second, _ = (allocator.allocate(n * MIB) for n in (4, 2, 4, 2))
    allocator.free(first)
    allocator.free(second)
    allocator.allocate(4 * MIB)
    assert sizes(allocator) == [[4 * MIB, 2 * MIB, -4 * MIB, 2 * MIB, -8 * MIB]]


def test_a_hole_that_is_too_small_is_passed_over() -> None:
    allocator = CachingAllocator(limit=200 * MIB, expandable_segments=True)
    hole, _, _ = (allocator.allocate(30 * MIB) for _ in range(3))
    allocator.free(hole)
    allocator.empty_cache()  # the page 0 to 20 goes
    allocator.allocate(35 * MIB)  # 30 are free in front, 10 of them with memory; at the end 10, and two pages more
    assert sizes(allocator) == [[-10 * MIB, 30 * MIB, 30 * MIB, 35 * MIB, -15 * MIB]]
    assert both(allocator) == (95 * MIB, 120 * MIB)


def test_free_pages_are_given_back_and_filled_first() -> None:
    allocator = CachingAllocator(limit=100 * MIB, expandable_segments=True)
    handles = [allocator.allocate(30 * MIB) for _ in range(3)]  # 90: pages to 100
    allocator.free(handles[0])
    allocator.empty_cache()  # 0 to 30: the page 0 to 20; 90 to 100 has no whole page
    assert both(allocator) == (60 * MIB, 80 * MIB)
    assert sizes(allocator) == [[-10 * MIB, 30 * MIB, 30 * MIB, -10 * MIB]]
    allocator.allocate(25 * MIB)  # the page again, and 5 of the 10
    assert sizes(allocator) == [[25 * MIB, -5 * MIB, 30 * MIB, 30 * MIB, -10 * MIB]]
    with pytest.raises(OutOfMemory):
        allocator.allocate(11 * MIB)
    assert both(allocator) == (85 * MIB, 100 * MIB)


def test_fragments_are_no_loss_to_expandable_segments() -> None:
    # As above: 10 times 8, 2 and 10 MiB, of which only the 2 stay. Of the 20 MiB pages none is free as a whole.
    allocator = CachingAllocator(expandable_segments=True)
    triples = [[allocator.allocate(n * MIB) for n in (8, 2, 10)] for _ in range(10)]
    for front, _, behind in triples:
        allocator.free(front)
        allocator.free(behind)
    assert both(allocator) == (20 * MIB, 200 * MIB)
    allocator.allocate(18 * MIB)  # 10 of a triple and 8 of the next
    assert both(allocator) == (38 * MIB, 200 * MIB)


def three_live(allocator: CachingAllocator, nbytes: int) -> int:
    """Do what torch's test does: b = a.clone(); five times b = b.clone() + 1. Return the handle of b."""
    b = allocator.allocate(nbytes)
    for _ in range(5):
        clone = allocator.allocate(nbytes)
        total = allocator.allocate(nbytes)
        allocator.free(clone)
        allocator.free(b)
        b = total
    return b


# Expected numbers of torch's test/test_cuda.py, test_graph_memory_stats_and_use_result_after_destroy_graph, its cases
# in their order: bytes of a tensor, segments, reserved, reserved once only b is left; and both with expandable ones.
TORCHS = [
    (512, 1, 2 * MIB, 2 * MIB, 2 * MIB, 2 * MIB),
    (MIB, 2, 4 * MIB, 2 * MIB, 4 * MIB, 2 * MIB),
    (MIB + 512, 1, 20 * MIB, 20 * MIB, 20 * MIB, 20 * MIB),
    (10 * MIB - 512, 2, 40 * MIB, 20 * MIB, 40 * MIB, 40 * MIB),
    (10 * MIB + 512, 3, 36 * MIB, 12 * MIB, 40 * MIB, 20 * MIB),
]


@pytest.mark.parametrize("case", TORCHS)
def test_numbers_of_torchs_own_test(case: tuple[int, ...]) -> None:
    nbytes, segments, reserved, left, expandable_reserved, expandable_left = case
    allocator = CachingAllocator()
    three_live(allocator, nbytes)
    assert (len(allocator.segments()), *both(allocator)) == (segments, nbytes, reserved)
    allocator.empty_cache()
    assert (len(allocator.segments()), *both(allocator)) == (1, nbytes, left)
    allocator = CachingAllocator(expandable_segments=True)
    three_live(allocator, nbytes)
    assert both(allocator) == (nbytes, expandable_reserved)
    allocator.empty_cache()
    assert both(allocator) == (nbytes, expandable_left)


# What must hold whatever is asked for

SIZES = st.one_of(
    st.integers(0, 5000), st.integers(0, 3 * MIB), st.integers(0, 40 * MIB), st.sampled_from([MIB, 10 * MIB, 20 * MIB])
)
EVENTS = st.lists(st.one_of(SIZES, st.integers(-20, -1)), min_size=10, max_size=80)  # negative: frees what is there
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "expandable_segments": st.booleans(),
        "max_split_size_mb": st.sampled_from([20, 21, 32]),
        "roundup_power2_divisions": st.sampled_from([1, 2, 8, {4: 4, ">": 2}]),
        "garbage_collection_threshold": st.sampled_from([0.1, 0.5, 0.9]),
    },
)


def replay(allocator: Any, events: list[int]) -> Iterator[dict[int, int]]:
    """Yield after each event the bytes of each live handle; what finds no memory is passed over."""
    live: dict[int, int] = {}
    for event in events:
        if event >= 0:
            with contextlib.suppress(OutOfMemory):
                live[allocator.allocate(event)] = event
        elif live:
            handle = list(live)[event % len(live)]
            del live[handle]
            allocator.free(handle)
        yield live


def check(allocator: CachingAllocator, live: dict[int, int], limit: int) -> None:
    blocks = [block for segment in allocator.segments() for block in segment.blocks]
    assert sorted(b.nbytes for b in blocks if b.allocated) == sorted(n for n in live.values() if n)
    assert allocator.allocated == sum(block.size for block in blocks if block.allocated)
    assert allocator.reserved == sum(segment.size for segment in allocator.segments())
    assert allocator.allocated <= allocator.reserved <= limit
    assert allocator.allocated <= allocator.peak_allocated <= allocator.peak_reserved
    assert all(b.size % 512 == 0 and b.size >= b.nbytes for b in blocks)
    end = 0
    for segment in allocator.segments():
        assert segment.address >= end
        end = segment.address
        for block, following in zip(segment.blocks, [*segment.blocks[1:], None], strict=True):
            assert block.address == end
            end += block.size
            assert block.allocated or following is None or following.allocated, "free neighbours are one"
        assert end == segment.address + segment.size
        assert segment.size % (2 * MIB) == 0


@given(EVENTS, SETTINGS, st.sampled_from([30 * MIB, 100 * MIB, 1 << 40]))
def test_blocks_tile_what_is_reserved(events: list[int], settings: dict[str, Any], limit: int) -> None:
    allocator = CachingAllocator(limit, **settings)
    live: dict[int, int] = {}
    for live in replay(allocator, events):
        check(allocator, live, limit)
    for handle in live:
        allocator.free(handle)
    check(allocator, {}, limit)
    assert all(len(segment.blocks) == 1 for segment in allocator.segments())
    allocator.empty_cache()
    assert both(allocator) == (0, 0) and allocator.segments() == ()


class Plain:
    """The default settings once more, as lists that are searched from end to end: a segment is [small, blocks]."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.segments: list[tuple[bool, list[list[int]]]] = []  # blocks: [size, handle or -1]
        self.requests = 0

    @property
    def reserved(self) -> int:
        return sum(size for _, blocks in self.segments for size, _ in blocks)

    @property
    def allocated(self) -> int:
        return sum(size for _, blocks in self.segments for size, handle in blocks if handle >= 0)

    def allocate(self, nbytes: int) -> int:
        handle = self.requests
        self.requests += 1
        size = (nbytes + 511) // 512 * 512
        if size == 0:
            return handle
        small = size <= MIB
        fits = [b for kind, blocks in self.segments if kind == small for b in blocks if b[1] < 0 and b[0] >= size]
        if not fits:
            segment = 2 * MIB if small else 20 * MIB if size < 10 * MIB else (size + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
            if self.reserved + segment > self.limit:
                self.segments = [s for s in self.segments if any(handle >= 0 for _, handle in s[1])]
            if self.reserved + segment > self.limit:
                raise OutOfMemory(handle, nbytes, segment, self.allocated, self.reserved, self.limit)
            fits = [[segment, -1]]
            self.segments.append((small, fits))
        best = min(fits, key=lambda block: block[0])  # the first of equals
        blocks = next(blocks for _, blocks in self.segments if any(block is best for block in blocks))
        place = next(i for i, block in enumerate(blocks) if block is best)
        rest = best[0] - size
        if rest >= 512 if small else rest > MIB:
            blocks[place : place + 1] = [[size, handle], [rest, -1]]
        else:
            best[1] = handle
        return handle

    def free(self, handle: int) -> None:
        for _, blocks in self.segments:
            for block in blocks:
                if block[1] == handle:
                    block[1] = -1
            for place in range(len(blocks) - 1, 0, -1):
                if blocks[place][1] < 0 and blocks[place - 1][1] < 0:
                    blocks[place - 1][0] += blocks.pop(place)[0]


@given(EVENTS, st.sampled_from([30 * MIB, 100 * MIB, 1 << 40]))
def test_a_plain_second_model_gives_the_same(events: list[int], limit: int) -> None:
    plain, allocator = Plain(limit), CachingAllocator(limit)
    for theirs, ours in zip(replay(plain, events), replay(allocator, events), strict=True):
        assert theirs == ours
        assert both(allocator) == (plain.allocated, plain.reserved)
        assert sizes(allocator) == [[n if handle >= 0 else -n for n, handle in blocks] for _, blocks in plain.segments]


@pytest.mark.parametrize("limit", [60 * MIB, 200 * MIB, 1 << 40])
def test_a_long_replay_gives_the_same(limit: int) -> None:
    draw = random.Random(0)
    events = [draw.choice([-draw.randrange(1, 99), int(2 ** draw.uniform(4, 25))]) for _ in range(2000)]
    plain, allocator = Plain(limit), CachingAllocator(limit)
    for theirs, ours in zip(replay(plain, events), replay(allocator, events), strict=True):
        assert theirs == ours
        assert both(allocator) == (plain.allocated, plain.reserved)
    assert sizes(allocator) == [[n if handle >= 0 else -n for n, handle in blocks] for _, blocks in plain.segments]
