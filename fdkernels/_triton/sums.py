"""Device functions for sums over programs in a fixed order: each program stores its sum, and the last one adds all."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_last(ticket):
    """Whether this program draws the last ticket; then each of its threads sees what the other programs stored.

    The barrier orders a program's stores before its draw. acq_rel orders all draws before the last one. Triton's own
    barrier after a scalar atomic orders the last draw before the next loads of each thread. Those loads also ask to
    bypass caches (`.cv`); nothing depends on that, and Triton 3.6 drops it.
    """
    tl.debug_barrier()
    last = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1
    if last:
        tl.store(ticket, 0)
    return last


@triton.jit
def load_stored(at, inside):
    """Loads, in the last program, what the other programs stored."""
    return tl.load(at, mask=inside, other=0.0, cache_modifier=".cv")


@triton.jit
def sum_of_pieces(partials, b, batch, programs, SAMPLES: tl.constexpr, PIECES: tl.constexpr):
    """[SAMPLES] sums of `partials` [batch, programs] over the programs of each sample in b."""
    # Add blocks, then reduce: `total += tl.sum(block, 1)` in a loop fails an assertion in Triton 3.8's
    # OptimizeThreadLocality if the total is used twice.
    total = tl.zeros((SAMPLES, PIECES), tl.float64)
    row = partials + b.to(tl.int64) * programs
    for start in range(0, programs, PIECES):
        piece = start + tl.arange(0, PIECES)
        inside = (b < batch)[:, None] & (piece < programs)[None, :]
        total += load_stored(row[:, None] + piece[None, :], inside)
    return tl.sum(total, 1)


@triton.jit
def write_losses(
    loss, partials, batch, programs, divisor,
    EACH: tl.constexpr, SAMPLES: tl.constexpr, PIECES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """In the last program: the sums of `partials` [batch, programs] over the divisor, of each sample or of all."""
    if EACH:
        for first in range(0, batch, SAMPLES):
            b = first + tl.arange(0, SAMPLES)
            sums = sum_of_pieces(partials, b, batch, programs, SAMPLES, PIECES)
            tl.store(loss + b, (sums / divisor).to(loss.dtype.element_ty), mask=b < batch)
    else:
        total = tl.zeros((TILE,), tl.float64)
        for piece in range(0, batch * programs, TILE):
            at = piece + tl.arange(0, TILE)
            total += load_stored(partials + at, at < batch * programs)
        tl.store(loss, (tl.sum(total) / divisor).to(loss.dtype.element_ty))
