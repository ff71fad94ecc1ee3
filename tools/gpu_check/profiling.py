"""Stage profile: one call (tools.gpu_check.one_call) of a few shapes under torch.profiler and ncu.

ncu measures twice: each kernel by itself, with caches flushed before it; and the call as a whole, where a second kernel
may find the first one's data in the cache. In the second measurement, data that stays in the L2 cache does not count as
bytes written.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from dataclasses import dataclass
from typing import Any

from tools.gpu_check import children
from tools.gpu_check.stage import UNAVAILABLE, Stage

# By device; the shapes are names of benchmarks.cases.shapes.
BACKENDS = {"cuda": ("native", "triton"), "cpu": ("native",)}
SHAPES = {"cuda": ("sdxl", "wan", "cifar_large", "sdxl_large"), "cpu": ("tiny",)}
DTYPE = "bf16"
NCU_SECONDS = 120
# ncu's names of metrics, and our names in the JSON.
WHOLE = {
    "gpu__time_duration.sum": "nanoseconds",
    "dram__bytes_read.sum": "dram_bytes_read",
    "dram__bytes_write.sum": "dram_bytes_written",
}
EACH = WHOLE | {
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent_of_peak",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent_of_peak",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "blocks",
    "launch__block_size": "threads",
    "launch__cluster_size": "cluster",
    "launch__shared_mem_per_block_static": "shared_static",
    "launch__shared_mem_per_block_dynamic": "shared_dynamic",
    "sm__maximum_warps_per_active_cycle_pct": "occupancy_possible_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
}
SHOWN = ("nanoseconds", "dram_bytes_an_element", "dram_percent_of_peak", "registers", "occupancy_percent")
# --section gives the other metrics, as far as the GPU has them; to name a metric that the GPU lacks is an error.
ASKED = ("--metrics", ",".join(WHOLE))
NCU = {
    "each kernel": (
        "--profile-from-start", "off", *ASKED,
        "--section", "SpeedOfLight", "--section", "LaunchStats", "--section", "Occupancy",
    ),
    "the call": ("--replay-mode", "app-range", "--cache-control", "none", *ASKED),
}  # fmt: skip
COMMON = (
    "--clock-control", "none", "--target-processes", "application-only",
    "--csv", "--page", "raw", "--print-units", "base",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    backend: str
    shape: str

    def __str__(self) -> str:
        return f"{self.backend}, {self.shape} {DTYPE}"


def run(stage: Stage) -> None:
    device = stage.options.device
    found = [Subject(backend, shape) for shape in SHAPES[device] for backend in BACKENDS[device]]
    usable = [subject for subject in found if traced(stage, subject)]
    ncu = children.tool("ncu")
    if ncu is None:
        stage.add("ncu", "refused", text="there is none on PATH, nor with CUDA")
        return
    for kind in NCU:
        for backend in BACKENDS[device]:
            for subject in (subject for subject in usable if subject.backend == backend):
                if not profiled(stage, ncu, kind, subject):
                    break  # ncu would refuse the other shapes too


def one_call(stage: Stage, subject: Subject) -> list[str]:
    return [
        stage.options.python, "-m", "tools.gpu_check.one_call", "--backend", subject.backend,
        "--device", stage.options.device, "--shape", subject.shape, "--dtype", DTYPE,
    ]  # fmt: skip


def traced(stage: Stage, subject: Subject) -> bool:
    """Record what torch.profiler sees; False if it failed or the backend cannot run."""
    name = f"torch.profiler, {subject}"
    done = stage.child(name, [*one_call(stage, subject), "--kernels"], limit=NCU_SECONDS)
    status = "refused" if done.code == UNAVAILABLE else done.status
    lists = [line for line in done.output.splitlines() if line.startswith("[")]
    if status != "ok" or not lists:
        stage.add(name, "failed" if status == "ok" else status, done.seconds, done.tail())
        return False
    events = json.loads(lists[-1])
    stage.add(name, "ok", done.seconds, kernels=events)
    if stage.is_gpu:
        stage.summary.append(
            f"{subject}: " + ", ".join(f"{event['name'][:40]} {event['us']:.1f} µs" for event in events)
        )
    return True


def profiled(stage: Stage, ncu: str, kind: str, subject: Subject) -> bool:
    """Record what ncu measures; False if ncu refused."""
    name = f"ncu, {kind}, {subject}"
    if not stage.has_time(name):
        return True
    done = stage.child(name, [ncu, *COMMON, *NCU[kind], *one_call(stage, subject)], limit=NCU_SECONDS)
    rows = parsed(done.output)
    if not rows:
        stage.add(name, "timed out" if done.stopped else "refused", done.seconds, complaint(done.output) or done.tail())
        return bool(done.stopped)
    elements = re.search(r"^elements: (\d+)", done.output, re.MULTILINE)
    for row in rows:
        if elements and "dram_bytes_read" in row and "dram_bytes_written" in row:
            moved = row["dram_bytes_read"] + row["dram_bytes_written"]
            row["dram_bytes_an_element"] = round(moved / int(elements[1]), 3)
        figures = ", ".join(f"{key} {row[key]:g}" for key in SHOWN if key in row)
        stage.summary.append(f"{name}: {row['kernel'][:40]}: {figures}")
    stage.add(name, "ok", done.seconds, kernels=rows)
    return True


def complaint(output: str) -> str:
    """ncu's errors and warnings, which say why it did not measure."""
    return "\n".join(line for line in output.splitlines() if line.startswith(("==ERROR==", "==WARNING==")))[:2000]


def parsed(output: str) -> list[dict[str, Any]]:
    """A dict for each kernel (or range) in ncu's CSV: a line of names, one of units, then the values."""
    lines = output.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return []
    rows = []
    for values in list(csv.DictReader(line for line in lines[first:] if line.startswith('"')))[1:]:
        row: dict[str, Any] = {"kernel": values.get("Kernel Name") or ""}
        for theirs, ours in EACH.items():
            with contextlib.suppress(ValueError):  # "n/a", or a metric that was not asked for
                row[ours] = float((values.get(theirs) or "").replace(",", ""))
        rows.append(row)
    return rows
