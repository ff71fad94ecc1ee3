"""How the Triton backend spreads a call over programs: a pure function of the call's shape, without Triton or a device.

    whole   a program holds one sample in registers between its sums and its gradients: one launch, each input read once
    split   a sample is too large for that: one launch sums it in pieces, another one reads it again and stores

The limits are those of compiled register counts (`make check-kernels`).
"""

from __future__ import annotations

from typing import NamedTuple

from fdkernels._triton.plan import Plan, needs_int64, next_power_of_2, spread, tile_for


class Limits(NamedTuple):
    whole_elements: int = 8_192
    """Most elements of a sample that one program holds. In float64: half of them."""
    tiles: tuple[int, ...] = (2_048, 1_024)
    """Elements that a program of the split schedule holds at a time, best first. In float64: the last."""
    busy_programs: int = 264
    """Two for each of 132 multiprocessors. With fewer programs, a smaller tile is taken."""
    most_programs: int = 1_024
    samples: int = 256
    """Samples that the program that reports handles at a time; fewer if they have many pieces."""


LIMITS = Limits()


def plan(batch: int, elements: int, is_wide: bool, limits: Limits | None = None) -> Plan:
    """The plan of a forward call; is_wide: its arithmetic is in float64. limits=None: `LIMITS`."""
    limits = limits or LIMITS
    block = next_power_of_2(elements)
    samples = min(next_power_of_2(batch), limits.samples)
    if block <= limits.whole_elements // (1 + is_wide):
        warps = min(16, max(4, block // (256 if is_wide else 512)))
        return Plan("whole", block, 1, 1, warps, False, samples, 1)
    tile = tile_for(batch, elements, limits.tiles[-1:] if is_wide else limits.tiles, limits.busy_programs)
    tiles, programs = spread(elements, tile, -(-limits.most_programs // batch))
    pieces = min(next_power_of_2(programs), 1024)
    wide_offsets = needs_int64(programs * tiles * tile)
    return Plan(
        "split", tile, tiles, programs, max(4, tile // 256), wide_offsets, max(1, min(samples, 1024 // pieces)), pieces
    )
