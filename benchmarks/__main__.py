"""Command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path

import torch

from benchmarks.fdiv import DTYPES, SHAPES, Row, measure
from benchmarks.setting import cpu_name

HEADER = (
    f"{'variant':22} {'median ms':>10} {'95 % interval':>19} {'GB/s':>6} {'× stream':>9} "
    f"{'× eager':>8} {'× compile':>10} {'grad error':>11}"
)


def format_row(row: Row) -> str:
    interval = f"{row.low_ms:.4g} – {row.high_ms:.4g}"
    compiled = "" if row.x_compile is None else f"{row.x_compile:.2f}"
    error = "" if row.gradient_error is None else f"{row.gradient_error:.1e}"
    return (
        f"{row.variant:22} {row.median_ms:10.4g} {interval:>19} {row.gb_per_s:6.1f} {row.x_stream:9.2f} "
        f"{row.x_eager:8.2f} {compiled:>10} {error:>11}"
    )


def parse_shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(part) for part in text.split("x"))
    if len(shape) < 2 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected a shape like 8x3x512x512, got {text!r}")
    return shape


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--shapes", type=parse_shape, nargs="+", default=SHAPES, help="default: %(default)s")
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--backend", default="auto", help="of fdkernels")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=None, help="default: torch's")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile of the peer out")
    parser.add_argument("--json", type=Path, default=None, metavar="F", help="write the rows there too")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # Two videos are the shape under test; what a batch of two does to the weights is not.
    warnings.filterwarnings("ignore", message="normalize_weight over")

    setting = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "load average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "compile": None if options.no_compile else "torch.compile default mode, dynamic=False, forward and backward",
    }
    print(", ".join(f"{key}: {value}" for key, value in setting.items()))
    if os.getloadavg()[0] > 0.5:
        print("other work is running on this machine: take these figures for a test run, not for a measurement")
    print("fused_fdiv_loss, js with normalizer, dmd scale, forward + backward; peer: FastGen's chain (weight + loss)")
    print("× stream: time over the streaming limit's (addcmul, 3 reads + 1 write), lower is better")
    print("× eager, × compile: how many times faster than these; below 1 is slower")
    rows: list[Row] = []
    for shape in options.shapes:
        for dtype in options.dtypes:
            found = measure(
                shape, dtype, backend=options.backend, rounds=options.rounds, compiled=not options.no_compile
            )
            sets = found[0].input_sets
            residence = "in cache" if sets == 1 else f"{sets} input sets in rotation, beyond the cache"
            print(f"\n{'×'.join(map(str, shape))} {dtype}, {residence}\n{HEADER}")
            print("\n".join(format_row(row) for row in found), flush=True)
            rows += found
    if options.json is not None:
        options.json.write_text(json.dumps({"setting": setting, "rows": [row.as_dict() for row in rows]}, indent=1))
        print(f"\n{options.json}")


if __name__ == "__main__":
    main()
