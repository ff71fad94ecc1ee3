"""Device functions on elements for the kernels of every op: loads, guidance, masks, float16's power of two."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_finite(v):
    return tl.abs(v) < float("inf")


@triton.jit
def float64(number):
    """A float64 parameter as a float64 value. In Triton's interpreter it is a Python number, which some functions turn
    into float32."""
    return tl.full((), number, tl.float64)


@triton.jit
def load_samples(samples, b, i, inside, WIDE: tl.constexpr):
    row = samples.data + b.to(tl.int64) * samples.batch_stride
    return tl.load(row + i, mask=inside, other=0.0).to(WIDE)


@triton.jit
def table_entry(table, b, i):
    """Pointers to the table entries of elements i. Elements past the end wrap around, so a load needs no mask."""
    return table.data + b.to(tl.int64) * table.row_stride + (i // table.inner) % table.entries


@triton.jit
def guided(cond, uncond, guidance_scale, b, i, inside, WIDE: tl.constexpr):
    """u + g·(v - u) of a prediction v; v itself without an unconditional prediction u."""
    v = load_samples(cond, b, i, inside, WIDE)
    if uncond is not None:
        u = load_samples(uncond, b, i, inside, WIDE)
        v = u + guidance_scale.to(WIDE) * (v - u)
    return v


@triton.jit
def kept_elements(mask, b, i, inside):
    keep = inside
    if mask is not None:
        keep = inside & (tl.load(table_entry(mask, b, i), mask=inside, other=0) != 0)
    return keep


@triton.jit
def count_kept(mask, b, rows, elements, TILE: tl.constexpr):
    """The number of kept elements in `rows` samples from b on, counted over the mask's own entries."""
    kept = tl.sum(tl.zeros((TILE,), tl.int32)).to(tl.float64)
    for start in range(0, rows * mask.entries, TILE):
        j = start + tl.arange(0, TILE)
        at = (b + j // mask.entries).to(tl.int64) * mask.row_stride + j % mask.entries
        kept += tl.sum((tl.load(mask.data + at, mask=j < rows * mask.entries, other=0) != 0).to(tl.int32))
    return kept * (elements // mask.entries)


@triton.jit
def given_count(count):
    """The N that a caller gives: at least 1; NaN stays NaN."""
    given = tl.load(count).to(tl.float64)
    return tl.where(given < 1.0, 1.0, given)


@triton.jit
def float16_power(divisor):
    """2^k with k = floor(log2 N): the divisor without its mantissa."""
    return (divisor.to(tl.int64, bitcast=True) & 0x7FF0000000000000).to(tl.float64, bitcast=True)


@triton.jit
def stored_power(unscale, divisor, headroom, programs, EACH: tl.constexpr):
    """The power of two times which a gradient is stored: 1, or if that is float16, `headroom` times float16_power. The
    first program, of each sample or of all, writes its inverse."""
    power = tl.full((), 1.0, tl.float64)
    if unscale is not None:
        power = float16_power(divisor) * headroom
        at = tl.program_id(0)
        writes = at == 0
        if EACH:
            writes = at % programs == 0
        tl.store(unscale + at // programs, (1.0 / power).to(tl.float32), mask=writes)
    return power


@triton.jit
def affine(a, x, c, y, WIDE: tl.constexpr):
    """a·x + c·y of blocks x and y and float64 numbers a and c, to the last place also where the products cancel: in
    float32 the rounding error of one product is kept, the other is not rounded (Kahan's ab + cd), and the parts of a
    and c that float32 cuts off are added."""
    if tl.float32 == WIDE:
        # `+ zeros` makes blocks: tl.fma takes operands of one shape.
        a_high, c_high = a.to(WIDE) + tl.zeros_like(x), c.to(WIDE) + tl.zeros_like(x)
        a_low, c_low = (a - a.to(WIDE).to(tl.float64)).to(WIDE), (c - c.to(WIDE).to(tl.float64)).to(WIDE)
        product = c_high * y
        lost = tl.fma(c_high, y, -product)
        total = tl.fma(a_high, x, product)
        total = tl.where(is_finite(total), total + (lost + (a_low * x + c_low * y)), total)
    else:
        total = a * x + c * y
    return total


@triton.jit
def store_rounded(to, at, values, inside):
    """Store values in float32 or float64, rounded into the dtype of `to`."""
    if tl.float64 != to.dtype.element_ty:
        values = values.to(tl.float32)
    tl.store(to + at, values.to(to.dtype.element_ty), mask=inside)
