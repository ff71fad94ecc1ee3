"""python -m benchmarks.traffic: bytes and launches of our kernels, as planned, beside what the peers move.

The peers' are counted from what they really run: every dispatched op of forward and backward that is not a view, with
the storage it reads and writes. Prints the tables of docs/kernels.md and docs/cuda.md; `--write` puts them there.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import baselines
from benchmarks.comparisons import dimensions
from benchmarks.shapes import PRACTICE
from fdkernels import printing
from fdkernels._triton.plan import SCALE_PROGRAMS, SCALE_TILE
from fdkernels._triton.plan import spread as share
from fdkernels.devices import PRESETS
from fdkernels.fdiv.triton_plan import Limits, Plan, bytes_moved, plan

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (DOCS / "kernels.md", DOCS / "cuda.md")
SHAPES = {shape.title: shape.sizes for shape in PRACTICE.values()}
CACHE = 50 << 20  # bytes of L2: an H100's, and no more than an H200's or B200's


class Counted(TorchDispatchMode):
    """Ops that touch memory, and the bytes of their operands' own storage."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "detach" not in func.name() and "empty" not in func.name():
            # These write their first operand, which is also their result, without reading it.
            read = args[1:] if func.name().split("::")[1].split(".")[0] in ("copy_", "fill_", "zero_") else args
            if func.name().startswith("fdkernels::scale_") and func.name().endswith("_"):
                operands = _scaled_in_place(*args)
            else:
                operands = (read, kwargs, result)
            touched = [v for v in tree_leaves(operands) if isinstance(v, Tensor)]
            self.ops += 1
            self.bytes += sum(_own_elements(v) * v.element_size() for v in touched)
        return result


def _scaled_in_place(gradient: Tensor, upstream: Tensor, unscale: Tensor) -> tuple[Tensor, ...]:
    """What our backward reads and writes: at an upstream of 1 that number alone, else the gradient as well."""
    if unscale.numel() == 0 and bool((upstream == 1).all()):
        return (upstream,)
    return upstream, gradient, gradient


def _own_elements(v: Tensor) -> int:
    """Elements of a tensor's own storage: an expanded one is read from cache after the first time."""
    return math.prod(size for size, stride in zip(v.shape, v.stride(), strict=True) if stride != 0)


def count(chain: Callable[[Tensor], Tensor], student: Tensor) -> tuple[int, float]:
    """(ops, bytes an element) of forward and backward."""
    student = student.detach().requires_grad_()
    with Counted() as counted:
        chain(student).backward()
    return counted.ops, counted.bytes / student.numel()


def peers(dtype: torch.dtype) -> dict[str, tuple[int, float]]:
    """The chains of benchmarks/baselines.py on 8×3×64×64."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, tau, f, u, noisy = (noise(8, 3, 64, 64) for _ in range(5))
    logits, t, bins, level = noise(8, 2).float(), torch.rand(8), torch.ones(10), torch.rand(8) + 0.5
    return {
        "FastGen, f-distill": count(lambda v: baselines.fastgen_chain(v, tau, f, logits, t, bins), x),
        "DMD2, pixels": count(lambda v: baselines.dmd2_pixel_chain(v, tau, f), x),
        "DMD2, latents (epsilon)": count(
            lambda v: baselines.dmd2_latent_epsilon_chain(v, tau, f, noisy, level, level), x
        ),
        "Self-Forcing (guided)": count(lambda v: baselines.self_forcing_chain(v, tau, u, f, 3.0), x),
    }


# N-sized inputs that the same call reads here, with x, and how many of them again where a sample is split.
OURS = {
    "FastGen, f-distill": (3, 2),
    "DMD2, pixels": (3, 2),
    "DMD2, latents (epsilon)": (4, 2),
    "Self-Forcing (guided)": (4, 3),
}


def describe(spread: Plan) -> str:
    if spread.schedule == "whole":
        return f"whole, {spread.tile} in {spread.num_warps} warps"
    return f"split, {spread.programs} × {spread.tiles} × {spread.tile}, {spread.num_warps} warps"


def our_rows() -> list[str]:
    rows = [
        "| shape | dtype | schedule (programs × tiles × tile a sample) | launches, forward + backward | "
        "bytes an element, cold | minimum |",
        "|---|---|---|---|---|---|",
    ]
    for name, shape in SHAPES.items():
        batch, elements = shape[0], math.prod(shape[1:])
        for dtype, size in (("bf16", 2), ("fp32", 4)):
            spread = plan(batch, elements, heads=3, bins=10, limits=Limits())
            moved = bytes_moved(spread, batch, elements, 3 * size, 2 * size, size, CACHE) / (batch * elements)
            _, programs = share(batch * elements, SCALE_TILE, SCALE_PROGRAMS)
            launches = f"{spread.launches} + 1 ({programs} programs)"
            text = dimensions(shape)
            rows.append(f"| {name} {text} | {dtype} | {describe(spread)} | {launches} | {moved:.1f} | {4 * size} |")
    return rows


def grid_of(p: Any) -> str:
    teams = f"grid of {p['teams']} teams" if p["teams"] > 1 else "grid"
    return teams + (", two buffers" if p["buffers"] == 2 else "")


def native_rows() -> list[str]:
    """The CUDA kernels' plans on an H200, with its presumed clusters."""
    from fdkernels import _core

    rows = [
        "| shape | dtype | schedule | blocks × threads | shared memory | prefetch | launches | "
        "bytes an element, cold | predicted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, shape in (*SHAPES.items(), ("pixels, 2048", (4, 3, 2048, 2048))):
        batch, elements = shape[0], math.prod(shape[1:])
        for dtype in ("bf16", "fp32"):
            p = _core.plan(batch, elements, student=dtype, heads=3, bins=10, limits=PRESETS["h200"])
            team = f"cluster of {p['team']}" if p["schedule"] == "cluster" else grid_of(p)
            held = "" if p["again"] == 0 else f", {1 - p['again'] / elements:.0%} held"
            rows.append(
                f"| {name} {'×'.join(map(str, shape))} | {dtype} | {team}{held} | {p['blocks']} × {p['threads']} | "
                f"{p['shared_bytes'] / 1024:.0f} KB | {p['prefetched'] / p['share']:.0%} | {p['launches']} + 1 | "
                f"{p['bytes'] / batch / elements:.1f} | {p['seconds'] * 1e6:.1f} µs |"
            )
    return rows


def peer_rows() -> list[str]:
    rows = [
        "| chain | dtype | its ops | its bytes an element | ours, held whole | ours, split | ours against it |",
        "|---|---|---|---|---|---|---|",
    ]
    counted = {"bf16": (2, peers(torch.bfloat16)), "fp32": (4, peers(torch.float32))}
    for name, (read, reread) in OURS.items():
        for dtype, (size, found) in counted.items():
            ops, moved = found[name]
            whole, split = (read + 1) * size, (read + 1 + reread) * size
            rows.append(
                f"| {name} | {dtype} | {ops} | {moved:.0f} | {whole} | {split} | "
                f"{moved / split:.1f} to {moved / whole:.1f} × fewer |"
            )
    return rows


def tables() -> dict[str, str]:
    """By the name of the marker that they stand behind in the page."""
    found = {"plan": our_rows(), "native plan": native_rows(), "peers": peer_rows()}
    return {name: "\n".join(rows) for name, rows in found.items()}


def filled(page: str) -> str:
    for name, table in tables().items():
        page = re.sub(rf"(<!-- {name} -->\n)(?:.*?\n)??(<!-- end -->)", rf"\g<1>{table}\n\g<2>", page, flags=re.DOTALL)
    return page


def main() -> None:
    printing.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description=__doc__)
    parser.add_argument("--write", action="store_true", help="into the pages")
    given = parser.parse_args()
    try:
        import fdkernels._core  # noqa: F401
    except ImportError as error:
        parser.exit(1, f"{parser.prog}: fdkernels._core, which makes the plans, is missing: {error}\n")
    if given.write:
        for page in PAGES:
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join(tables().values()))


if __name__ == "__main__":
    main()
