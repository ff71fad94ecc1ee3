"""How programs share elements: the common part of all ops' plans. Needs neither Triton nor a device."""

from __future__ import annotations

from typing import NamedTuple

INT32_MAX = 2**31 - 1
# For the kernel that scales a gradient. Few programs, because with an upstream of 1 each program only reads the factor.
SCALE_TILE = 1_024
SCALE_PROGRAMS = 1_024


class Plan(NamedTuple):
    """The launches of a call whose samples are summed before their gradients can be stored.

    All sizes but `programs` and `tiles` are powers of two.
    """

    schedule: str
    """whole: a program holds a sample between its sums and its gradients. split: one launch sums samples in pieces,
    another reads them again and stores."""
    tile: int
    """Elements of a sample that a program holds at a time."""
    tiles: int
    """Tiles per program."""
    programs: int
    """Programs per sample."""
    num_warps: int
    wide_offsets: bool
    """Whether offsets within a sample, up to the end of its last program's share, need 64 bits."""
    samples: int
    """Samples that the program that reports handles at a time."""
    pieces: int
    """Partial sums per sample that this program adds at a time."""
    weigh_first: bool = False
    """Whether an extra launch computes fdiv's weights h first."""
    heads: int = 1
    """Heads per sample that the reporting program loads at a time."""

    @property
    def launches(self) -> int:
        return (1 if self.schedule == "whole" else 2) + self.weigh_first


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
