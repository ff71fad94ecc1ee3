"""Normal random numbers as device functions: the numbers of `csrc/core/random.h`, by the same expressions.

`fdkernels/noising/reference.py` is the specification. In float32 no function but sqrt is used: Triton's float32
logarithm is approximate near 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fdkernels._triton.elements import float64


@triton.jit
def minus_log(bits, WIDE: tl.constexpr):
    """-log u of u = (bits + 1/2) / 2^32."""
    if tl.float64 == WIDE:  # noqa: SIM108 - a constant, of which only one branch is compiled
        result = -tl.log((bits.to(tl.float64) + 0.5) * 2.3283064365386962890625e-10)
    else:
        result = _minus_log(bits)
    return result


@triton.jit
def _minus_log(bits):
    upper = (bits >> 31) != 0
    near = tl.where(upper, bits ^ 0xFFFFFFFF, bits).to(tl.int32, bitcast=True).to(tl.float32)
    x = near * 2.3283064365386962890625e-10 + 1.16415321826934814453125e-10  # u or 1 - u
    stored = x.to(tl.int32, bitcast=True)
    exponent = (stored - 0x3F3504F3) >> 23
    lower_f = (stored - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    halved = x > 0.29289321881
    f = tl.where(upper, tl.where(halved, 1.0 - 2.0 * x, -x), lower_f)
    power = tl.where(upper, tl.where(halved, -1.0, 0.0), exponent.to(tl.float32))
    p = 7.0376836292e-2
    p = p * f - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    square = f * f
    return -(f + (p * f * square - 0.5 * square + power * -2.12194440e-4) + power * 0.693359375)


@triton.jit
def on_circle(bits, WIDE: tl.constexpr):
    """(cosine, sine) of the angle 2π·(bits + 1/2) / 2^32, reduced to the nearest multiple of a quarter turn."""
    shifted = bits + 0x20000000
    quarter = shifted >> 30
    within = (shifted & 0x3FFFFFFF).to(tl.int32, bitcast=True) - 0x20000000
    angle = (within.to(WIDE) + 0.5) * tl.full((), 1.4629180792671596e-9, WIDE)
    square = angle * angle
    if tl.float64 == WIDE:
        s = square * float64(1.58962301576546568060e-10) - float64(2.50507477628578072866e-8)
        s = s * square + float64(2.75573136213857245213e-6)
        s = s * square - float64(1.98412698295895385996e-4)
        s = s * square + float64(8.33333333332211858878e-3)
        s = s * square - float64(1.66666666666666307295e-1)
        c = square * float64(-1.13585365213876817300e-11) + float64(2.08757008419747316778e-9)
        c = c * square - float64(2.75573141792967388112e-7)
        c = c * square + float64(2.48015872888517045348e-5)
        c = c * square - float64(1.38888888888730564116e-3)
        c = c * square + float64(4.16666666666665929218e-2)
    else:
        s = (-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1
        c = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    sine = angle + angle * square * s
    cosine = 1.0 - 0.5 * square + square * square * c
    odd = (quarter & 1) != 0
    lower_half = (quarter >> 1) != 0
    x = tl.where(odd, sine, cosine)
    y = tl.where(odd, cosine, sine)
    return tl.where(odd != lower_half, -x, x), tl.where(lower_half, -y, y)


@triton.jit
def normals(seed, counter, WIDE: tl.constexpr):
    """Numbers 4·counter, ..., 4·counter + 3 of a stream, four blocks. counter: int64."""
    low = counter.to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    zero = low * 0
    a, b, c, d = tl.philox(seed, low, high, zero, zero)
    r0 = tl.sqrt(2.0 * minus_log(a, WIDE))
    r1 = tl.sqrt(2.0 * minus_log(c, WIDE))
    x0, y0 = on_circle(b, WIDE)
    x1, y1 = on_circle(d, WIDE)
    return r0 * x0, r0 * y0, r1 * x1, r1 * y1
