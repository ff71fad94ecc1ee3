"""python -m benchmarks.report.traffic: bytes and launches of our kernels, as planned, beside what the peers move.

The peers' bytes are counted from what they really run: every dispatched op of forward and backward that is not a view,
with the storage that it reads and writes. Prints the tables of docs/kernels.md and docs/cuda.md; `--write` writes them
into these pages.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases.formulas import BINS, FORMULAS, make_inputs
from benchmarks.cases.shapes import DTYPES, PRACTICE, dimensions
from benchmarks.measure.counting import tensor_traffic
from fdkernels import printing
from fdkernels._triton.plan import SCALE_PROGRAMS, SCALE_TILE, Plan, spread
from fdkernels.call_shape import CallShape
from fdkernels.devices import PRESETS
from fdkernels.fdiv.triton_plan import Limits, plan

PAGES = tuple(Path(__file__).parents[2] / "docs" / name for name in ("kernels.md", "cuda.md"))
SHAPES = {shape.title: shape.sizes for shape in PRACTICE.values()}
CACHE = 50 << 20  # bytes of L2: an H100's, and no more than an H200's or B200's
PEERS = ("fastgen", "dmd2_pixel", "dmd2_latent", "self_forcing")
Cells = Iterator[tuple[Any, ...]]


def our_rows() -> Cells:
    yield ("shape", "dtype", "schedule (programs × tiles × tile a sample)", "launches, forward + backward",
           "bytes an element, cold", "minimum")  # fmt: skip
    for name, shape in SHAPES.items():
        batch, elements = shape[0], math.prod(shape[1:])
        for dtype, size in (("bf16", 2), ("fp32", 4)):
            p = plan(CallShape(batch, elements, heads=3, bins=10), Limits())
            moved = bytes_moved(p, batch, elements, 3 * size, 2 * size, size, CACHE) / (batch * elements)
            warps = f"{p.num_warps} warps"
            _, backward = spread(batch * elements, SCALE_TILE, SCALE_PROGRAMS)
            split = f"split, {p.programs} × {p.tiles} × {p.tile}, {warps}"
            schedule = f"whole, {p.tile} in {warps}" if p.schedule == "whole" else split
            launches = f"{p.launches} + 1 ({backward} programs)"
            yield f"{name} {dimensions(shape)}", dtype, schedule, launches, f"{moved:.1f}", 4 * size


def bytes_moved(
    plan: Plan, batch: int, elements: int, read: float, reread: float, written: float, cache: int = 0
) -> float:
    """Predicted bytes between the device's memory and its chip.

    Args:
        read: bytes of inputs per element; each is read once.
        reread: those of them that the split schedule reads again, unless its first launch left them in the cache.
        written: bytes of gradient per element.
        cache: bytes of cache; half of it is assumed to hold inputs.
    """
    total = float(batch * elements)
    again = 0.0 if plan.schedule == "whole" else max(0.0, total * reread - cache / 2 * reread / read)
    return total * (read + written) + again


def native_rows() -> Cells:
    """The CUDA kernels' plans on an H200, with its presumed clusters."""
    from fdkernels import _core

    yield ("shape", "dtype", "schedule", "blocks × threads", "shared memory", "prefetch", "launches",
           "bytes an element, cold", "predicted")  # fmt: skip
    for name, shape in (*SHAPES.items(), ("pixels, 2048", (4, 3, 2048, 2048))):
        batch, elements = shape[0], math.prod(shape[1:])
        for dtype in ("bf16", "fp32"):
            p: Any = _core.plan(CallShape(batch, elements, student=dtype, heads=3, bins=10), PRESETS["h200"])
            grid = (f"grid of {p['teams']} teams" if p["teams"] > 1 else "grid") + ", two buffers" * (p["buffers"] == 2)
            team = f"cluster of {p['team']}" if p["schedule"] == "cluster" else grid
            held = "" if p["again"] == 0 else f", {1 - p['again'] / elements:.0%} held"
            yield (
                f"{name} {dimensions(shape)}", dtype, team + held, f"{p['blocks']} × {p['threads']}",
                f"{p['shared_bytes'] / 1024:.0f} KB", f"{p['prefetched'] / p['share']:.0%}", f"{p['launches']} + 1",
                f"{p['bytes'] / batch / elements:.1f}", f"{p['seconds'] * 1e6:.1f} µs",
            )  # fmt: skip


def peer_rows() -> Cells:
    """Forward and backward on 8 samples of 12,288 elements, without a mask."""
    yield ("chain", "dtype", "its ops", "its bytes an element", "ours, held whole", "ours, split", "ours against it")
    for name in PEERS:
        for dtype in ("bf16", "fp32"):
            formula, size = FORMULAS[name], DTYPES[dtype].itemsize
            case, bins = formula.case("", (8, 3, 1, 64, 64), dtype), torch.ones(BINS)
            v = make_inputs(case, "cpu", 0)._replace(mask=None)
            ops, count, _ = tensor_traffic(lambda: formula.call(formula.chain, v, bins).backward())  # noqa: B023
            whole, split = (formula.images + 1) * size, (formula.images + 1 + formula.reread) * size
            moved = count / case.elements
            fewer = f"{moved / split:.1f} to {moved / whole:.1f} × fewer"
            yield name, dtype, ops, f"{moved:.0f}", whole, split, fewer


def tables() -> dict[str, str]:
    """The tables, by the name of the marker before each of them in the pages."""
    found = {}
    for name, cells in (("plan", our_rows()), ("native plan", native_rows()), ("peers", peer_rows())):
        head, *rows = (f"| {' | '.join(map(str, row))} |" for row in cells)
        found[name] = "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])
    return found


def filled(page: str) -> str:
    for name, table in tables().items():
        page = re.sub(rf"(<!-- {name} -->\n)(?:.*?\n)??(<!-- end -->)", rf"\g<1>{table}\n\g<2>", page, flags=re.DOTALL)
    return page


def main() -> None:
    printing.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report.traffic", description=__doc__)
    parser.add_argument("--write", action="store_true", help="into the pages")
    given = parser.parse_args()
    try:
        import fdkernels._core  # noqa: F401
    except ImportError as error:
        parser.exit(1, f"{parser.prog}: fdkernels._core, which makes the plans, is missing: {error}\n")
    for page in PAGES if given.write else ():
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    if not given.write:
        print("\n\n".join(tables().values()))


if __name__ == "__main__":
    main()
