"""Sums over programs in a fixed order: each program stores its own, and the last one adds all. Device functions."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_last(ticket):
    """Whether all other programs have drawn their ticket: what they stored before is visible then, to every thread.

    The barrier puts all of a program's stores before its draw, acq_rel puts all draws before the last one, and Triton's
    own barrier behind a scalar atomic puts the last one before what each thread loads next. The `.cv` of those loads
    asks to bypass caches as well; nothing depends on it, and Triton 3.6 drops it.
    """
    tl.debug_barrier()
    last = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1
    if last:
        tl.store(ticket, 0)
    return last


@triton.jit
def load_stored(at, inside):
    """What other programs stored: for the last one."""
    return tl.load(at, mask=inside, other=0.0, cache_modifier=".cv")


@triton.jit
def sum_of_pieces(partials, b, batch, programs, SAMPLES: tl.constexpr, PIECES: tl.constexpr):
    """[SAMPLES] sums of samples b over what the programs of each stored in `partials` [batch, programs]."""
    # Blocks are added before they are reduced: `total += tl.sum(block, 1)` in a loop trips an assertion in Triton 3.8's
    # OptimizeThreadLocality where the total is used twice.
    total = tl.zeros((SAMPLES, PIECES), tl.float64)
    row = partials + b.to(tl.int64) * programs
    for start in range(0, programs, PIECES):
        piece = start + tl.arange(0, PIECES)
        inside = (b < batch)[:, None] & (piece < programs)[None, :]
        total += load_stored(row[:, None] + piece[None, :], inside)
    return tl.sum(total, 1)
