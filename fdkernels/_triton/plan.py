"""How programs share elements: what the plans of all ops have in common, free of Triton and of any device."""

from __future__ import annotations

INT32_MAX = 2**31 - 1
# Of the kernel that scales a gradient. Few programs: with an upstream of 1 each of them only reads that.
SCALE_TILE = 1_024
SCALE_PROGRAMS = 1_024


def next_power_of_2(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()


def needs_int64(offset: int) -> bool:
    """Whether an offset up to this one overflows 32 bits: the one place that decides it."""
    return offset > INT32_MAX


def spread(elements: int, tile: int, programs: int, most_tiles: int = INT32_MAX) -> tuple[int, int]:
    """(tiles a program, programs) of a run of elements. Only `most_tiles` makes more programs than given."""
    pieces = -(-elements // tile)
    tiles = min(-(-pieces // max(1, min(pieces, programs))), most_tiles)
    return tiles, -(-pieces // tiles)
