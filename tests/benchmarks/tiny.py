"""Cases that take no time, and what might have been measured of them."""

from __future__ import annotations

from typing import Any

from benchmarks.formulas import FORMULAS
from benchmarks.measure import Measured, Row, Skipped
from benchmarks.shapes import SHAPES, Case
from benchmarks.timing import Timing


def tiny(name: str, dtype: str = "fp32") -> Case:
    return FORMULAS[name].case("tiny", SHAPES["tiny_video" if name == "self_forcing" else "tiny"].sizes, dtype)


def row(case: Case, variant: str = "native", **fields: Any) -> Row:
    """Ours where the variant is one word, else a peer's in a mode."""
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
