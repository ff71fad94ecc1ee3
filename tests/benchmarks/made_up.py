"""Made-up rows, and a report of them with everything that a report can have."""

from __future__ import annotations

import math
import re
from typing import Any

from benchmarks.cases.formulas import FORMULAS
from benchmarks.cases.shapes import SHAPES, Case
from benchmarks.measure.rows import Measured, Row, Skipped
from benchmarks.measure.run import make_report
from benchmarks.measure.timing import Timing

UNITS = {"µs": 1, "ms": 1e3, "s": 1e6, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def row(case: Case, variant: str = "native", **fields: Any) -> Row:
    """Our row if the variant is one word, else a peer's in a mode."""
    _, _, mode = variant.partition(" ")
    found: dict[str, Any] = {
        "op": case.op, "shape_name": case.shape_name, "shape": case.shape, "dtype": case.dtype,
        "formula": case.formula, "variant": variant, "ours": not mode, "backend": None if mode else variant,
        "mode": mode or None, "wrong": False, "wrong_because": None, "time_us": 10.0, "low_us": 9.0, "high_us": 11.0,
        "call_us": None, "min_bytes": 1000, "gb_per_s": 0.1, "percent_of_ceiling": 10.0, "ceiling_gb_per_s": 1.0,
        "gradient_error": 1e-7, "input_sets": 1, "rounds": 6, "timed_by": "calls",
    }  # fmt: skip
    return Row(**found | fields)


def measured(case: Case, *rows: Row, skipped: tuple[Skipped, ...] = (), clocks: str | None = None) -> Measured:
    return Measured(list(rows or [row(case)]), list(skipped), Timing(1e-3, 9e-4, 2e-3, 6, 1), 2**20, clocks)


def report() -> dict[str, Any]:
    """Wins, losses, no difference, wrong rows of ours and of others, nulls, plain calls."""
    done = {}
    for f, (name, formula) in enumerate(FORMULAS.items()):
        for s, shape in enumerate(("cifar", "wan", "pixels1024_large")):
            if formula.why_not(SHAPES[shape].sizes):
                continue
            case = formula.case(shape, SHAPES[shape].sizes, "bf16" if f % 2 else "fp32")
            least, ours_us = formula.minimum_bytes(case), 31.7 + 13.7 * s + 3.1 * f
            variants = {"native": 1.0, "reference": 3.3, "triton": 1.21}
            modes = ("eager", "compile default", "compile max-autotune-no-cudagraphs")
            variants |= {f"{formula.peer} {mode}": (4.37, 1.02, 0.61)[m] * 1.07**s for m, mode in enumerate(modes)}
            rows = []
            for variant, factor in variants.items():
                us, made = factor * ours_us, variant.partition(" ")[2]
                wrong = (
                    f"{name} {made}" == f"dmd2_latent {modes[1]}" or f"{name} {shape} {variant}" == "fastgen wan native"
                )
                wall = name == "self_forcing" and made == "eager"
                rows.append(row(
                    case, variant, wrong=wrong, wrong_because="gradient is off by 0.31" if wrong else None, time_us=us,
                    low_us=0.97 * us, high_us=1.04 * us, min_bytes=least, gb_per_s=least / us / 1e3,
                    percent_of_ceiling=100 * least / us / 12.3e3 if formula.images else None,
                    ceiling_gb_per_s=12.3 + s, gradient_error=math.nan if wrong else 5.09e-8 * us, input_sets=1 + s,
                    launches=None if made in modes[1:] else 3, timed_by="wall" if wall else "graph",
                    call_us=24.5, call_low_us=24.1, call_high_us=25.9, wall_us=us + 23, wall_low_us=us + 22,
                    wall_high_us=us + 25, syncs=2.5 * wall,
                ))  # fmt: skip
            done[case] = measured(case, *rows)
    skipped = [
        Skipped("triton", "no GPU of capability 8.0", "unavailable"),
        Skipped("a" * 99, "b" * 99, "failed", False),
    ]
    return make_report(done, skipped, "cuda", dict(SETTING))


SETTING = {
    "device": "An H100 <Accelerator> & more", "kind": "cuda", "threads": 2, "torch": "2.13.0+cu130", "triton": None,
    "driver": "580.65", "cuda": "13.0", "nvidia_smi": {"clocks.sm": "1980 MHz"},
    "date": "2026-07-14T09:30:00+00:00", "commit": "7d6a2e0c51a3f9e2b7d8c4a6e1f05b93d27a8c64-dirty",
    "compile_modes": ["default", "max-autotune-no-cudagraphs"],
}  # fmt: skip


def number_of(text: str) -> float:
    """The number in a text with its unit, in microseconds or bytes."""
    found = re.fullmatch(r"([-\d.,]+(?:e[+-]?\d+)?)(?: (µs|ms|s|B|kB|MB|GB|TB|GB/s|×|%))?", text.replace("\u00a0", " "))
    assert found, text
    return float(found[1].replace(",", "")) * UNITS.get(found[2], 1)


def agrees(text: str, value: float | None) -> bool:
    """Whether the text shows the number, to half a unit of its third digit."""
    if value is None:
        return text == "–"
    return math.isclose(number_of(text), value, rel_tol=0.051 if "e" in text else 0.0051)
