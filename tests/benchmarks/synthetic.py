"""Reports for the tests: made-up ones in which there is everything that a report can have, and the measured ones."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from benchmarks import figures
from benchmarks.comparisons import SCHEMA, Report, compared
from benchmarks.measure import Row

PEERS = {"fastgen": "fastgen", "dmd2_pixel": "dmd2", "dmd2_latent": "dmd2", "self_forcing": "self-forcing"}
MODES = ("eager", "compile default", "compile max-autotune-no-cudagraphs")
SHAPES = {
    "CIFAR": [64, 3, 32, 32],
    "SD1.5": [8, 4, 64, 64],
    "Wan": [1, 16, 21, 60, 104],
    "pixels, 1024, large": [16, 3, 1024, 1024],
}
FIELDS = {field.name for field in dataclasses.fields(Row)}


def synthetic(kind: str = "cpu") -> dict[str, Any]:
    """Wins, losses, no difference, wrong baselines, wrong rows of ours, nulls, long names; on a GPU plain calls too."""
    rows: list[dict[str, Any]] = []
    for f, (formula, peer) in enumerate(PEERS.items()):
        for s, (shape_name, shape) in enumerate(SHAPES.items()):
            for dtype, itemsize in (("fp32", 4), ("bf16", 2)):
                named = [("native", None, 1.0), ("reference", None, 3.3)]
                named += [(f"{peer} {mode}", mode, (4.37, 1.83, 1.02)[m] * 0.6 ** (2 * (s + f) % 3))
                          for m, mode in enumerate(MODES)]  # fmt: skip
                named += [("triton", None, 1.21)] if kind == "cuda" else []
                least = 4 * itemsize * math.prod(shape)
                ceiling = 12.3 * (3.1 if least < 8e6 else 1 + 0.01 * s)
                ours_us = 31.7 + least / 11.3e3 * (1 + 0.37 * (s + f) % 1.1)
                case = {"op": "fused_fdiv_loss", "shape_name": shape_name, "shape": shape, "dtype": dtype}
                case |= {"formula": formula, "min_bytes": least, "ceiling_gb_per_s": ceiling, "input_sets": 1 + s}
                rows += [row({**case, "variant": name, "mode": mode}, factor * ours_us, kind)
                         for name, mode, factor in named]  # fmt: skip
    case = {"op": "fdiv_weight", "shape_name": "CIFAR", "shape": [64, 2], "dtype": "fp32", "formula": "weight",
            "min_bytes": 1104, "ceiling_gb_per_s": 12.3, "input_sets": 1}  # fmt: skip
    weight = (("native", None, 22.3), ("fastgen eager", "eager", 83.3))
    rows += [row({**case, "variant": name, "mode": mode}, us, kind) for name, mode, us in weight]
    return {
        "schema": SCHEMA,
        "setting": SETTING | (ON_GPU if kind == "cuda" else {}),
        "ceiling": {"name": "device copy" if kind == "cuda" else "streaming limit (3 reads, 1 write)", "gb_per_s": 12.3,
                    "low": 11.9, "high": 12.8, "measured_on": "1024 MiB" if kind == "cuda" else "Wan fp32"},
        "rows": rows,
        "comparisons": compared(rows),  # type: ignore[arg-type]
        "skipped": [{"kind": "unavailable", "ours": True, "what": "triton", "why": "no GPU of capability 8.0"},
                    {"kind": "failed", "ours": False, "what": 6 * "averylongtokenwithoutanyblank",
                     "why": 6 * "anotherlongtokenwithoutanyblank"}],
        "method": ["Each variant is called 40 times, in turn.", "An interval holds the median in 95 of 100 runs."],
        "formulas": {"fastgen": "FastGen's weight, then loss", "dmd2_pixel": "DMD2's guidance on pixels, sigma 0.5"},
    }  # fmt: skip


def row(named: dict[str, Any], time_us: float, kind: str) -> dict[str, Any]:
    variant, mode, least = named["variant"], named["mode"], named["min_bytes"]
    ours = mode is None
    no_images = named["formula"] == "weight"
    why = None
    if named["formula"] == "dmd2_latent" and mode == MODES[1]:
        why = "gradient is off by 0.31 (allowed 0.2)"
    elif (named["formula"], named["shape_name"], variant) == ("fastgen", "SD1.5", "native"):
        why = "gradient is off by 0.0123 (allowed 1e-05)"
    wall = kind == "cuda" and named["formula"] == "self_forcing" and mode == "eager"
    on_gpu = {"timed_by": "wall" if wall else "graph", "call_us": 24.5 + 0.1 * len(variant),
              "call_low_us": 24.1 + 0.1 * len(variant), "call_high_us": 25.9 + 0.1 * len(variant),
              "syncs": 2.5 if wall else 0, "wall_us": time_us + 23, "wall_low_us": time_us + 22,
              "wall_high_us": time_us + 25, "kernel_us": None if wall else 0.91 * time_us}  # fmt: skip
    on_cpu = dict.fromkeys(on_gpu, None) | {"timed_by": "calls"}
    bandwidth = least / time_us / 1e3
    found = {
        **named, "ours": ours, "backend": variant if ours else None, "wrong": why is not None, "wrong_because": why,
        "time_us": time_us, "low_us": 0.97 * time_us, "high_us": 1.04 * time_us, "gb_per_s": bandwidth,
        "percent_of_ceiling": None if no_images else 100 * bandwidth / named["ceiling_gb_per_s"],
        "gradient_error": None if why else 5.09e-8 * time_us, "rounds": 40, "extra_bytes": least // 4 + len(variant),
        "counted_bytes": None if mode in MODES[1:] else (1 if ours else 5 + len(named["shape"])) * least + 812,
        "graphs": 1 + len(named["shape"]) if mode in MODES[1:] else None,
        "launches": None if mode in MODES[1:] else 3 if ours else 48,
        "predicted_us": least / named["ceiling_gb_per_s"] / 1e3 if ours and not no_images else None,
        **(on_gpu if kind == "cuda" else on_cpu),
    }  # fmt: skip
    assert set(found) == FIELDS, set(found) ^ FIELDS
    return found


SETTING = {
    "device": "AMD EPYC 9B14 96-Core <Processor> & more", "kind": "cpu", "threads": 2, "torch": "2.13.0+cpu",
    "triton": None, "driver": None, "cuda": None, "clocks": None, "date": "2026-07-14T09:30:00+00:00",
    "commit": "7d6a2e0c51a3f9e2b7d8c4a6e1f05b93d27a8c64-dirty", "fdkernels": "0.1.0", "l2_mib": 50.0,
    "command": "python -m benchmarks fused_fdiv_loss --shapes cifar,sd15,wan --baseline eager,compile,autotune",
    "load_average": 0.21, "compile_modes": ["default", "max-autotune-no-cudagraphs"],
    "nvidia_smi": {"clocks.sm": "1980 MHz"},
}  # fmt: skip
ON_GPU = {"kind": "cuda", "device": "H100", "cuda": "13.0", "driver": "580.65", "clocks": "1980 MHz"}


def one_row() -> Report:
    report = synthetic()
    return {**report, "comparisons": [], "rows": [report["rows"][0]]}


REPORTS = {"synthetic cpu": synthetic(), "synthetic gpu": synthetic("cuda")}
"""Made up and measured."""
REPORTS |= {path.stem: report for path, report in figures.reports(figures.RESULTS).items()}
