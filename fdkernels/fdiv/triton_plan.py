"""How the Triton backend spreads a call over programs: a pure function of the call's shape, without Triton or a device.

    whole   a program holds one sample in registers between reduction and store: one launch, every input read once
    split   a sample is too large for that: a launch reduces it in pieces, a second one reads τ and f again and stores

Measure before you change a limit (docs/kernels.md). The limits were chosen from compiled register counts, and so that
132 multiprocessors stay busy.
"""

from __future__ import annotations

from typing import NamedTuple

from fdkernels._triton.plan import Plan, needs_int64, next_power_of_2, spread, tile_for
from fdkernels.call_shape import CallShape


class Limits(NamedTuple):
    """The limits that choose the schedule and how finely a sample is cut."""

    whole_elements: int = 16_384
    """Most elements of a sample that one program holds: 32 per thread at 16 warps, with 128 registers per thread."""
    whole_elements_general: int = 8_192
    """The same limit for a general call: one that reads more than x, τ and f, or computes in float64."""
    counted_entries: int = 4_096
    """Most mask entries that every program counts for itself. The split schedule counts a larger mask."""
    weighed: int = 2_048
    """Largest samples × bins, and samples × heads, for which every program computes the weights itself."""
    tiles: tuple[int, ...] = (4_096, 2_048, 1_024)
    """Elements that a program of the split schedule holds at a time, best first. A general call skips the first."""
    busy_programs: int = 264
    """Two for each of 132 multiprocessors. With fewer programs, a smaller tile is taken."""
    most_programs: int = 1_024
    most_tiles: int = 16
    """Most tiles whose float32 sums one program adds before they become float64."""


LIMITS = Limits()


def plan(call: CallShape, limits: Limits | None = None) -> Plan:
    """The plan of a forward call; limits=None: `LIMITS`."""
    limits = limits or LIMITS
    batch, elements, heads, bins = call.batch, call.elements, call.heads, call.bins
    images = call.images()
    block = next_power_of_2(elements)
    general = len(images) > 3 or "fp64" in images
    most = limits.whole_elements_general if general else limits.whole_elements
    whole = block <= most and counted_entries(call) <= limits.counted_entries
    samples = next_power_of_2(batch)
    block_of_heads = heads_at_a_time(heads)
    wider = max(next_power_of_2(max(bins, 1)), block_of_heads)
    weigh_first = whole and heads > 0 and max(samples * wider, batch * heads) > limits.weighed
    if whole:
        # The samples' sums are added in blocks. Weights that this launch computes need the whole batch at once.
        samples = samples if heads and not weigh_first else min(samples, 1024)
        warps = min(16, max(4, block // (256 if general else 512)))
        return Plan("whole", block, 1, 1, warps, False, samples, 1, weigh_first, block_of_heads)
    sizes = limits.tiles[1:] if general else limits.tiles
    tile = tile_for(batch, elements, sizes, limits.busy_programs)
    tiles, programs = spread(elements, tile, -(-limits.most_programs // batch), limits.most_tiles)
    pieces = min(next_power_of_2(programs), 1024)
    samples = max(1, min(samples, 4096 // max(pieces, wider)))
    warps = max(4, min(8, tile // (256 if general else 512)))
    wide_offsets = needs_int64(programs * tiles * tile)
    return Plan("split", tile, tiles, programs, warps, wide_offsets, samples, pieces, heads=block_of_heads)


def counted_entries(call: CallShape) -> int:
    """Mask entries to count before the first gradient can be stored."""
    if call.mask is None or call.reduction == "sum" or call.counted:
        return 0
    rows, entries = call.mask
    return entries if call.reduction == "none" else rows * entries


def heads_at_a_time(heads: int) -> int:
    """How many heads of a sample's logits a program loads at a time: all of them up to 64."""
    return next_power_of_2(max(1, min(heads, 64)))
