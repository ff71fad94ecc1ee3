"""How programs share elements: the common part of all ops' plans. Needs neither Triton nor a device."""

from __future__ import annotations

INT32_MAX = 2**31 - 1
# For the kernel that scales a gradient. Few programs, because with an upstream of 1 each program only reads the factor.
SCALE_TILE = 1_024
SCALE_PROGRAMS = 1_024


def next_power_of_2(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()


def needs_int64(offset: int) -> bool:
    """Whether offsets up to this one overflow 32 bits. Every launch decides it here."""
    return offset > INT32_MAX


def tile_for(batch: int, elements: int, sizes: tuple[int, ...], busy_programs: int) -> int:
    """The first of `sizes` with which a batch has as many tiles as keep a device busy, else the last."""
    return next((size for size in sizes if batch * -(-elements // size) >= busy_programs), sizes[-1])


def spread(elements: int, tile: int, programs: int, most_tiles: int = INT32_MAX) -> tuple[int, int]:
    """(tiles per program, programs) of a run of elements. There are more programs than given only if `most_tiles`
    forces it."""
    pieces = -(-elements // tile)
    tiles = min(-(-pieces // max(1, min(pieces, programs))), most_tiles)
    return tiles, -(-pieces // tiles)
