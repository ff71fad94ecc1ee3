"""python -m benchmarks.share: what part of a student step lies between the networks, with networks that compute.

A student step runs the student forward and backward, and the teacher twice (guidance) and the fake score once forward;
between them lies `fastgen_student` (docs/benchmarks.md), by FastGen's ops and by ours. A discriminator and an optimizer
would add to the networks' time. A CPU's times are processor time of one thread, which other
processes lengthen little. Needs diffusers. `--json FILE` writes the times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cases.formulas import FORMULAS, make_inputs
from benchmarks.cases.setting import setting_of_run
from benchmarks.measure.gpu_timing import wait_for
from benchmarks.report.shown import duration, significant
from fdkernels import backends, printing

STEP = FORMULAS["fastgen_student"]
# The trainer's digits; diffusers' defaults for CIFAR-10 (google/ddpm-cifar10-32).
NETWORKS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "digits": ((64, 1, 8, 8), {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
                               "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}),
    "ddpm-cifar10": ((4, 3, 32, 32), {
        "block_out_channels": (128, 256, 256, 256), "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }),
}  # fmt: skip


def measure(name: str, device: str, rounds: int) -> dict[str, Any]:
    """Medians in µs of the networks' part, and of the part between them by FastGen's ops and by ours, interleaved."""
    from diffusers import UNet2DModel

    shape, settings = NETWORKS[name]
    net: nn.Module = UNet2DModel(sample_size=shape[-1], in_channels=shape[1], out_channels=shape[1], **settings)
    net.to(device)
    x, t = torch.randn(shape, device=device), torch.rand(shape[0], device=device)
    inputs = STEP.timed(make_inputs(STEP.case(name, shape, "fp32"), device, 0))
    ours = STEP.our_step(backends.choose("auto", device), device)
    theirs = STEP.peer_step(STEP.chain, device)

    def networks() -> None:
        with torch.no_grad():
            for _ in range(3):
                net(x, t)
        net(x, t).sample.sum().backward()

    parts = {"networks": networks, "fastgen": lambda: theirs(inputs), "fdkernels": lambda: ours(inputs)}
    times: dict[str, list[float]] = {part: [] for part in parts}
    clock = time.process_time if device == "cpu" else time.perf_counter
    for i in range(rounds + 1):
        for part, run in parts.items():
            wait_for(device)
            start = clock()
            run()
            wait_for(device)
            if i:  # the first calls allocate
                times[part].append(1e6 * (clock() - start))
    medians = {f"{part}_us": statistics.median(found) for part, found in times.items()}
    return {"network": name, "shape": shape, "parameters": sum(p.numel() for p in net.parameters()), **medians}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: times of the parts, and what part of the step lies between the networks."""
    lines = [["network", "batch", "networks", "between, FastGen's ops", "share", "between, here", "share"], ["---"] * 7]
    for row in rows:
        batch = "×".join(map(str, row["shape"]))
        cells = [f"{row['network']}, {row['parameters'] / 1e6:.2g} M parameters", batch, duration(row["networks_us"])]
        for us in (row["fastgen_us"], row["fdkernels_us"]):
            cells += [duration(us), f"{significant(100 * us / (us + row['networks_us']))} %"]
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("\u00a0", " ")


def main() -> None:
    printing.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.share", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    setting = setting_of_run(given.device, "python -m benchmarks.share", [])
    rows = [measure(name, given.device, given.rounds) for name in NETWORKS]
    print(table(rows), end="")
    if given.json:
        given.json.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
