"""torch's caching allocator for CUDA, replayed: the bytes allocated and reserved after each request and free.

The rules are those of torch 2.13's `c10/cuda/CUDACachingAllocator.cpp` (class `DeviceCachingAllocator`; each method
below names the function that it follows), the sizes those of `c10/core/AllocatorConfig.h`. One device, one stream and
no CUDA graphs, which is how a model runs unless it asks for more. Where the driver puts a segment is not known
beforehand: here each lies behind the one before, and of equally large free blocks the lowest address is taken.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass

from torchledger.errors import UserError

MIB = 1 << 20
SMALLEST_BLOCK = 512  # kMinBlockSize: sizes are multiples of it
LARGEST_SMALL = MIB  # kSmallSize: what is larger comes from the large pool
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT = 20 * MIB  # large_segment_size_, also how much a block too large to split may exceed a request
OWN_SEGMENT = 10 * MIB  # kMinLargeAlloc: from here on a request has a segment of its own,
SEGMENT_STEP = 2 * MIB  # kRoundLarge: in steps of this
ADDRESSES = 1 << 48  # of a device whose memory is not known
INTERVALS = 16  # of sizes, from 1 MiB to 64 GiB: kRoundUpPowerOfTwoIntervals


@dataclass(eq=False)
class OutOfMemory(Exception):
    """Say which request found no memory, and what there was: bytes, after all that was cached has been given back."""

    request: int  # as allocate() counts them, from 0
    nbytes: int  # what was asked for
    needed: int  # the segment that takes it: what torch's own message says that it tried to allocate
    allocated: int
    reserved: int
    limit: int | None

    def __str__(self) -> str:
        limit = "no limit" if self.limit is None else f"a limit of {self.limit:,}"
        return (
            f"out of memory at request {self.request}, for {self.nbytes:,} bytes: torch tries to allocate "
            f"{self.needed:,}, while {self.reserved:,} are reserved ({self.allocated:,} allocated), with {limit}"
        )


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a segment: `size` as it counts, `nbytes` as it was asked for (0 in a free block)."""

    address: int
    size: int
    nbytes: int
    allocated: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """What the driver gave in one piece: `blocks` tile it, by address."""

    address: int
    size: int
    small: bool
    blocks: tuple[Block, ...]


class _Block:
    """A block with its neighbours; `mapped` is false where an expandable segment has addresses but no memory."""

    __slots__ = ("address", "allocated", "born", "mapped", "nbytes", "next", "pool", "previous", "size")

    def __init__(self, pool: _Pool, address: int, size: int, mapped: bool = True) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.mapped = mapped
        self.allocated = False
        self.nbytes = 0
        self.born = 0  # the pool's search at which it was cached
        self.previous: _Block | None = None
        self.next: _Block | None = None

    @property
    def alone(self) -> bool:
        return self.previous is None and self.next is None

    def put_between(self, previous: _Block | None, following: _Block | None) -> None:
        self.previous, self.next = previous, following
        if previous is not None:
            previous.next = self
        if following is not None:
            following.previous = self


class _Pool:
    """The free blocks of one kind, by size and then address: finding one takes O(log n)."""

    def __init__(self, small: bool, expandable: bool) -> None:
        self.small = small
        self.page = SMALL_SEGMENT if small else LARGE_SEGMENT  # by which an expandable segment grows
        # should_split: the least remainder that becomes a block
        self.remainder = SMALLEST_BLOCK if small or expandable else LARGEST_SMALL + SMALLEST_BLOCK
        self.order: list[tuple[int, int]] = []  # (size, address) of the free blocks
        self.free: dict[int, _Block] = {}  # by address
        self.unmapped: dict[int, _Block] = {}  # by address
        self.searches = 0

    def add(self, block: _Block) -> None:
        insort(self.order, (block.size, block.address))
        self.free[block.address] = block
        block.born = self.searches

    def remove(self, block: _Block) -> None:
        del self.order[bisect_left(self.order, (block.size, block.address))]
        del self.free[block.address]

    def blocks(self) -> list[_Block]:
        return [self.free[address] for _, address in self.order]


class CachingAllocator:
    """Replay requests and frees as torch's allocator would serve them; all sizes are bytes.

    `limit`: what the driver can give, or what `torch.cuda.set_per_process_memory_fraction` allows. The rest are the
    settings of `PYTORCH_ALLOC_CONF`, with torch's defaults: `expandable_segments` (memory is mapped behind what is
    there in pages of 2 and 20 MiB), `max_split_size_mb` (blocks from this size on are not split, nor used for less),
    `roundup_power2_divisions` (so many sizes between two powers of two; or {MiB: divisions, ">": divisions}) and
    `garbage_collection_threshold` (the share of `limit` above which old cached blocks are given back).

    >>> allocator = CachingAllocator()
    >>> handle = allocator.allocate(1000)
    >>> allocator.allocated, allocator.reserved
    (1024, 2097152)
    >>> allocator.free(handle)
    >>> allocator.allocated, allocator.reserved
    (0, 2097152)

    Source: `c10/cuda/CUDACachingAllocator.cpp`, `c10/core/AllocatorConfig.h` and `.cpp` of torch 2.13; the settings
    in its notes on CUDA semantics, "Memory management".
    """

    def __init__(
        self,
        limit: int | None = None,
        *,
        expandable_segments: bool = False,
        max_split_size_mb: int | None = None,
        roundup_power2_divisions: int | Mapping[int | str, int] = 0,
        garbage_collection_threshold: float | None = None,
    ) -> None:
        _check(limit, max_split_size_mb, garbage_collection_threshold)
        self._limit = limit
        self._expandable = expandable_segments
        self._max_split: float = math.inf if max_split_size_mb is None else max_split_size_mb * MIB
        self._divisions = divisions_of(roundup_power2_divisions)
        self._threshold: int | None = None
        if limit is not None and garbage_collection_threshold is not None:
            self._threshold = int(garbage_collection_threshold * limit)
        self._small = _Pool(True, expandable_segments)
        self._large = _Pool(False, expandable_segments)
        self._live: dict[int, _Block | None] = {}
        self._requests = 0
        self._next_address = 0
        self._allocated = self._peak_allocated = 0
        self._reserved = self._peak_reserved = 0

    @property
    def allocated(self) -> int:
        """Return what `torch.cuda.memory_allocated` gives: whole blocks, with what was not worth splitting off."""
        return self._allocated

    @property
    def reserved(self) -> int:
        """Return what `torch.cuda.memory_reserved` gives: all segments, free blocks and all."""
        return self._reserved

    @property
    def peak_allocated(self) -> int:
        """Return what `torch.cuda.max_memory_allocated` gives."""
        return self._peak_allocated

    @property
    def peak_reserved(self) -> int:
        """Return what `torch.cuda.max_memory_reserved` gives."""
        return self._peak_reserved

    def reset_peaks(self) -> None:
        """Let the peaks begin at what there is now, as `torch.cuda.reset_peak_memory_stats` does."""
        self._peak_allocated, self._peak_reserved = self._allocated, self._reserved

    def allocate(self, nbytes: int) -> int:
        """Serve a request and return its handle, the requests' number from 0 (`malloc`); no bytes take nothing.

        Raises `OutOfMemory` where torch does; the allocator can be used on, as torch's can.
        """
        if nbytes < 0:
            raise UserError(f"{nbytes} bytes cannot be allocated: give 0 or more")
        handle = self._requests
        self._requests += 1
        if nbytes == 0:
            self._live[handle] = None
            return handle
        size = self._round(nbytes)
        pool = self._small if size <= LARGEST_SMALL else self._large
        block = self._cached(pool, size) or self._new(pool, size)
        if block is None:
            needed = _segment_size(size)
            raise OutOfMemory(handle, nbytes, needed, self._allocated, self._reserved, self._limit)
        if block.size - size >= pool.remainder and (size < self._max_split or pool.small or self._expandable):
            block = self._split(block, size)
        block.allocated = True
        block.nbytes = nbytes
        self._live[handle] = block
        self._allocated += block.size
        if self._allocated > self._peak_allocated:
            self._peak_allocated = self._allocated
        return handle

    def free(self, handle: int) -> None:
        """Cache the block of a request, as one with its free neighbours (`free_block`)."""
        try:
            block = self._live.pop(handle)
        except KeyError:
            raise UserError(f"request {handle} is not allocated: it was never made, or was freed before") from None
        if block is None:
            return
        self._allocated -= block.size
        block.allocated = False
        block.nbytes = 0
        _merge(block)
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Give free segments and free pages back, as `torch.cuda.empty_cache` does (`release_cached_blocks`)."""
        for pool in (self._large, self._small):
            for block in pool.blocks():
                if self._expandable:
                    self._unmap(block)
                elif block.alone:
                    self._release(block)

    def segments(self) -> tuple[Segment, ...]:
        """Return what is reserved, by address: of an expandable segment each stretch that has memory (`snapshot`)."""
        blocks = [block for block in self._live.values() if block is not None]
        blocks += [*self._small.free.values(), *self._large.free.values()]
        heads = (block for block in blocks if block.previous is None or not block.previous.mapped)
        return tuple(_segment(head) for head in sorted(heads, key=lambda block: block.address))

    def _round(self, nbytes: int) -> int:
        """Return the size of the block that is looked for (`round_size`, `roundup_power2_next_division`)."""
        divisions = self._divisions[min(max(nbytes.bit_length() - 1 - 20, 0), INTERVALS - 1)]
        step = SMALLEST_BLOCK
        if divisions > 1 and nbytes > SMALLEST_BLOCK * divisions:
            step = (1 << nbytes.bit_length() - 1) // divisions
        return -(-nbytes // step) * step

    def _cached(self, pool: _Pool, size: int) -> _Block | None:
        """Take the smallest free block that is large enough, unless it is too large to split (`get_free_block`)."""
        pool.searches += 1
        order = pool.order
        place = bisect_left(order, (size, 0))
        if place == len(order):
            return None
        if self._expandable:
            place = self._past_the_end(pool, place)
        block = pool.free[order[place][1]]
        too_large = self._max_split if size < self._max_split else size + LARGE_SEGMENT
        if block.size >= too_large:
            return None
        del order[place], pool.free[block.address]
        return block

    def _past_the_end(self, pool: _Pool, place: int) -> int:
        """Return the place of the best fit where a block that can grow counts with all that it can grow to."""
        best = _expanded(pool.free[pool.order[place][1]])
        while place + 1 < len(pool.order) and (other := _expanded(pool.free[pool.order[place + 1][1]])) < best:
            place, best = place + 1, other
        return place

    def _new(self, pool: _Pool, size: int) -> _Block | None:
        """Take a block of fresh memory, in the end at the expense of all that is cached (`malloc`)."""
        self._collect_garbage()
        if block := self._obtain(pool, size):
            return block
        if self._release_oversize(pool, size) and (block := self._obtain(pool, size)):
            return block
        self.empty_cache()
        return self._obtain(pool, size)

    def _obtain(self, pool: _Pool, size: int) -> _Block | None:
        """Take a segment from the driver, or None where it has no more (`alloc_block`)."""
        if self._expandable:
            return self._expand(pool, size)
        needed = _segment_size(size)
        return _Block(pool, self._addresses(needed), needed) if self._reserve(needed) else None

    def _addresses(self, size: int, alignment: int = SEGMENT_STEP) -> int:
        address = -(-self._next_address // alignment) * alignment
        self._next_address = address + size
        return address

    def _reserve(self, size: int) -> bool:
        if self._limit is not None and self._reserved + size > self._limit:
            return False
        self._reserved += size
        self._peak_reserved = max(self._peak_reserved, self._reserved)
        return True

    def _split(self, block: _Block, size: int) -> _Block:
        """Return the first `size` bytes of a block and cache the rest (`alloc_found_block`)."""
        first = _Block(block.pool, block.address, size)
        first.put_between(block.previous, block)
        block.address += size
        block.size -= size
        block.pool.add(block)
        return first

    def _release(self, block: _Block) -> None:
        """Give a segment back (`release_block`)."""
        block.pool.remove(block)
        self._reserved -= block.size

    def _release_oversize(self, pool: _Pool, size: int) -> bool:
        """Give back blocks too large to split, enough for a request (`release_available_cached_blocks`)."""
        if self._max_split == math.inf or self._expandable:
            return False
        target = int(max(size, self._max_split))
        place = bisect_left(pool.order, (target, 0))
        if place < len(pool.order):
            self._release(pool.free[pool.order[place][1]])
            return True
        released = 0
        while released < target and pool.order and pool.order[-1][0] >= self._max_split:
            released += pool.order[-1][0]
            self._release(pool.free[pool.order[-1][1]])
        return released >= target

    def _collect_garbage(self) -> None:
        """Give back whole segments of at least average age, in searches (`garbage_collect_cached_blocks`)."""
        if self._threshold is None or self._reserved <= self._threshold or self._expandable:
            return
        old = [block for block in self._large.blocks() if block.alone]
        searches = self._large.searches
        while old and self._reserved > self._threshold:
            ages = sum(searches - block.born for block in old)
            oldest = [block for block in old if (searches - block.born) * len(old) >= ages]
            for block in oldest:
                self._release(block)
            old = [block for block in old if (searches - block.born) * len(old) < ages]

    def _expand(self, pool: _Pool, size: int) -> _Block | None:
        """Map memory at the lowest address with room for a request (`try_allocate_expandable_block`)."""
        block = self._room(pool, size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            following = block.next
            if following is None or not self._map(following, min(size - block.size, following.size)):
                return None
            block = following  # which now has the free block before it as well
        pool.remove(block)
        return block

    def _room(self, pool: _Pool, size: int) -> _Block:
        """Return the first of the free and unmapped blocks that a request can have (`find_expandable_block`)."""
        for address in sorted(pool.unmapped):
            block = pool.unmapped[address]
            if block.previous is not None and not block.previous.allocated:
                block = block.previous
            following: _Block | None = block
            room = 0
            while room < size and following is not None and not following.allocated:
                room += following.size
                following = following.next
            if room >= size:
                return block
        # ExpandableSegment: addresses for 9/8 of the device's memory, in pages.
        space = ADDRESSES if self._limit is None else self._limit + self._limit // 8
        space = max(-(-space // pool.page), 1) * pool.page
        block = _Block(pool, self._addresses(space, pool.page), space, mapped=False)
        pool.unmapped[block.address] = block
        return block

    def _map(self, block: _Block, size: int) -> bool:
        """Put memory behind the first pages of an unmapped block, all or none (`map_block`)."""
        pool = block.pool
        mapped = -(-size // pool.page) * pool.page
        if not self._reserve(mapped):
            return False
        del pool.unmapped[block.address]
        block.mapped = True
        if mapped < block.size:
            rest = _Block(pool, block.address + mapped, block.size - mapped, mapped=False)
            rest.put_between(block, block.next)
            pool.unmapped[rest.address] = rest
            block.size = mapped
        _merge(block)
        pool.add(block)
        return True

    def _unmap(self, block: _Block) -> None:
        """Give back the whole pages inside a free block (`unmap_block`, `release_blocks`)."""
        pool = block.pool
        start = -(-block.address // pool.page) * pool.page
        end = (block.address + block.size) // pool.page * pool.page
        if start >= end:
            return
        pool.remove(block)
        if start > block.address:
            before = _Block(pool, block.address, start - block.address)
            before.put_between(block.previous, block)
            pool.add(before)
        if end < block.address + block.size:
            after = _Block(pool, end, block.address + block.size - end)
            after.put_between(block, block.next)
            pool.add(after)
        block.address, block.size, block.mapped = start, end - start, False
        _merge(block)
        if not block.alone:  # else all of its segment goes, addresses and all
            pool.unmapped[block.address] = block
        self._reserved -= end - start


def _check(limit: int | None, max_split_size_mb: int | None, garbage_collection_threshold: float | None) -> None:
    if limit is not None and limit < 0:
        raise UserError(f"limit={limit}: give the bytes that may be reserved, 0 or more, or None")
    if max_split_size_mb is not None and max_split_size_mb * MIB < LARGE_SEGMENT:
        raise UserError(f"max_split_size_mb={max_split_size_mb}: torch takes 20 or more")
    if garbage_collection_threshold is not None:
        given = f"garbage_collection_threshold={garbage_collection_threshold}"
        if not 0 < garbage_collection_threshold < 1:
            raise UserError(f"{given}: torch takes a share between 0 and 1")
        if limit is None:
            raise UserError(f"{given} is a share of the limit: give limit as well")


def divisions_of(setting: int | Mapping[int | str, int]) -> list[int]:
    """Return how many sizes there are in each interval [1 MiB << i, 2 MiB << i) (`parseRoundUpPower2Divisions`).

    In a mapping the first value holds for all that is smaller too, and `">"` for all that is larger than the last.
    """
    if not isinstance(setting, Mapping):
        setting = {1: setting, ">": setting}
    divisions = [0] * INTERVALS
    last: int | None = None
    for boundary, value in setting.items():
        if value < 0 or value & (value - 1):
            raise UserError(f"roundup_power2_divisions: {value} is not a power of two, nor 0")
        if boundary == ">":
            start = 0 if last is None else last + 1
            divisions[start:] = [value] * (INTERVALS - start)
            continue
        if not isinstance(boundary, int) or boundary < 1 or boundary & (boundary - 1):
            raise UserError(f"roundup_power2_divisions: {boundary!r} is not a power of two in MiB, nor '>'")
        place = min(boundary.bit_length() - 1, INTERVALS - 1)
        if last is None:
            divisions[:place] = [value] * place
        divisions[place] = value
        last = place
    return divisions


def _segment_size(size: int) -> int:
    """Return the segment that torch asks the driver for (`get_allocation_size`)."""
    if size <= LARGEST_SMALL:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < OWN_SEGMENT else -(-size // SEGMENT_STEP) * SEGMENT_STEP


def _merge(block: _Block) -> None:
    """Make a block one with its free neighbours of the same kind (`try_merge_blocks`)."""
    pool = block.pool
    for other in (block.previous, block.next):
        if other is None or other.allocated or other.mapped is not block.mapped:
            continue
        if other.mapped:
            pool.remove(other)
        else:
            del pool.unmapped[other.address]
        block.size += other.size
        if other is block.previous:
            block.address = other.address
            block.put_between(other.previous, block.next)
        else:
            block.put_between(block.previous, other.next)


def _expanded(block: _Block) -> int:
    following = block.next
    return block.size + (following.size if following is not None and not following.mapped else 0)


def _segment(head: _Block) -> Segment:
    blocks: list[Block] = []
    block: _Block | None = head
    while block is not None and block.mapped:
        blocks.append(Block(block.address, block.size, block.nbytes, block.allocated))
        block = block.next
    return Segment(head.address, sum(block.size for block in blocks), head.pool.small, tuple(blocks))
