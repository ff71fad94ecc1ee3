"""Faults planted in the library's own sources, and what has to notice them: python -m tests.software_device.mutations.

Each is a change of csrc/ of the kind that a slip of the keyboard makes. `caught` says what the software device said of
it, or how results were wrong. docs/cuda.md lists them.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.cases import Case
from tests.gpu.calls import hold, in_float64, make_batch, same
from tests.gpu_check.stage import PLAN
from tests.software_device import build, device

FDIV, BLOCK, WEIGH = "cuda/fdiv.cuh", "cuda/block.cuh", "cuda/weigh.cuh"
DEVICE, SAMPLE, SMALL = "cuda/device.cu", "fdkernels/sample.h", "cuda/fdiv_small.cu"


class Mutation(NamedTuple):
    """`old` stands in `file` `times` times, and becomes `new`."""

    what: str
    file: str
    old: str
    new: str
    times: int = 1


MUTATIONS = (
    Mutation("a cluster's blocks write before all have begun", FDIV,
             "  cluster.barrier_arrive();  // no block may write to one that has not begun\n", "", ),
    Mutation("a cluster's sums are read without a barrier", FDIV, "      cluster.sync();\n", ""),
    Mutation("one buffer for a cluster's sums of two samples", FDIV, "shared.exchanged[odd]", "shared.exchanged[0]", 2),
    Mutation("shares that overlap by an element", SAMPLE, "? begin + share : elements;\n  return {begin, end",
             "? begin + share + 1 : elements;\n  return {begin, end"),
    Mutation("the grid's wait acquires nothing", FDIV, "arrived.load(::cuda::memory_order_acquire)",
             "arrived.load(::cuda::memory_order_relaxed)"),
    Mutation("the grid's arrival releases nothing", FDIV, ".fetch_add(1, ::cuda::memory_order_release)",
             ".fetch_add(1, ::cuda::memory_order_relaxed)"),
    Mutation("arrivals at even and odd turns counted together", FDIV, "arrivals[loaded % 2]", "arrivals[0]"),
    Mutation("all blocks of a team leave their sums in one place", FDIV, "(b * team + rank) * kExchanged",
             "(b * team) * kExchanged"),
    Mutation("a cluster's ticket is not reset", FDIV, "    if (threadIdx.x == 0) *call.r.tickets = 0;\n", ""),
    Mutation("a grid's arrivals are not reset", FDIV, "elements.each(1 + 2 * teams,", "elements.each(1,"),
    Mutation("a ticket is drawn without order", BLOCK, "memory_order_acq_rel", "memory_order_relaxed"),
    Mutation("the first to draw reports", BLOCK, "== draws - 1", "== 0"),
    Mutation("a draw is not waited for", BLOCK, "  group.sync();\n  return drawn;", "  return drawn;"),
    Mutation("the coefficient is not waited for", FDIV,
             "    elements.sync();\n    if (call.p.gradient != nullptr) scatter",
             "    if (call.p.gradient != nullptr) scatter", 2),
    Mutation("warps' sums are read before they are there", BLOCK,
             "    sync();\n    return combine_rows", "    return combine_rows"),
    Mutation("scratch is used again before all have read it", BLOCK,
             "    spread(combine<Op>(values), values);\n    sync();", "    spread(combine<Op>(values), values);"),
    Mutation("the weights are not handed over", FDIV, "  barrier_arrive(kOfWeights, kWarp + call.weighing);\n", ""),
    Mutation("the weights are not waited for", FDIV, "  if (is_first) wait_for_weights(call);\n", ""),
    Mutation("a cluster goes on before all have read the state", WEIGH,
             "to.means[i] = i < group.threads ? mean : w.state.mean[i]; });\n  }\n  has_read();\n",
             "to.means[i] = 0; });\n  }\n  has_read();\n"
             "  group.each(w.state.bins, [&](int64_t i) { to.means[i] = w.state.mean[i] + 0 * mean; });\n"),
    Mutation("more is held than there is room for", SAMPLE, "w < part.held) keep", "w <= part.held) keep"),
    Mutation("a prefetch from any address", FDIV, "(row + part.begin) * size) / 16 * 16",
             "(row + part.begin) * size + 4)"),
    Mutation("the weights' ratios lie over their means", FDIV, "double* means = h + 2 * batch;",
             "double* means = h + batch;"),
    Mutation("an element beyond the sample", SAMPLE, "at < v * V + V && at < length", "at < v * V + V && at <= length"),
    Mutation("two samples in one buffer", FDIV, "call.buffers == 2 &&", "call.buffers == 3 &&"),
    Mutation("a figure that is never recorded", FDIV, "    record[4 * p.batch] = sums.nonfinite;\n", ""),
    Mutation("all streams share a ticket", DEVICE, "by_stream.try_emplace(id,", "by_stream.try_emplace(0 * id,"),
    Mutation("a graph has its stream's ticket", DEVICE, "if (status != cudaStreamCaptureStatusNone) return next",
             "if (false) return next"),
    Mutation("a backward's last vector is not whole", SMALL, "if (scale.aligned && i + V <= last)",
             "if (scale.aligned && i < last)"),
)  # fmt: skip


def mutated(mutation: Mutation, folder: Path) -> Path:
    """A copy of csrc/ with the fault."""
    csrc = folder / "csrc"
    shutil.copytree(build.ROOT / "csrc", csrc)
    file = csrc / mutation.file
    text = file.read_text()
    if text.count(mutation.old) != mutation.times:
        raise ValueError(f"{mutation.what}: stands {text.count(mutation.old)} times in {mutation.file}")
    file.write_text(text.replace(mutation.old, mutation.new))
    return csrc


UNCHANGED = Mutation("nothing", FDIV, "#pragma once", "#pragma once")


def caught(mutation: Mutation, number: int) -> str | None:
    """What noticed it."""
    namespace = f"software_mutation_{number}"
    with tempfile.TemporaryDirectory() as folder:
        csrc = mutated(mutation, Path(folder))
        library = build.library(90, csrc, [build.HERE / "few.cu", SMALL], namespace=namespace)
    return noticed(device.Software(library, namespace))


def noticed(software: device.Software) -> str | None:
    """What is wrong with a library; None where nothing is."""
    with software.serves(), pytest.MonkeyPatch.context() as patch:
        for case, plan in calls():
            patch.setenv(PLAN, plan)
            software.use(device.SMALL)
            two = torch.full((), 2.0) if case.options.get("reduction") != "none" else None
            expected, first = in_float64(case, two), None
            for scheduler, seed in itertools.product(device.SCHEDULERS, (0, 1)):
                software.schedule(scheduler, seed)
                try:
                    outcome = case.run("native", two, stats=True)
                    hold(case, outcome, expected)
                except (RuntimeError, AssertionError) as error:
                    return str(error).splitlines()[0]
                first = outcome if first is None else first
                if not same(first, outcome):
                    return "bits that depend on who runs first"
        patch.setenv(PLAN, "grid")
        return streams(software)


def calls() -> Iterator[tuple[Case, str]]:
    for option, plan in itertools.product(
        ("normalizer", "mask", "none", "plain"), ("cluster:2", "grid", "cluster:1", "grid:2")
    ):
        shape = (5, 3, 7, 13) if option in ("normalizer", "mask") else (9, 3, 8, 8)
        yield make_batch(shape, torch.float32, option, seed=4), plan
    yield make_batch((1, 3, 80, 81), torch.float32, "plain", seed=4), "grid"  # more than the device holds


def streams(software: device.Software) -> str | None:
    """The same in a graph and in two streams at once."""
    case = make_batch((5, 3, 8, 8), torch.float32, "plain", seed=4)
    for scheduler in device.SCHEDULERS:
        software.schedule(scheduler, 1)
        try:
            alone = case.step("native", stats=True)
            side, beside, found, graphs = software.new_stream(), software.new_stream(), [], []
            for _ in range(2):
                with software.captured(side) as graph:
                    found.append(case.step("native", stats=True))
                graphs.append(graph)
            with software.held_back():
                for _ in range(2):
                    graphs[0].replay(beside)
                    graphs[1].replay()
                    with software.on_stream(side):
                        found.append(case.step("native", stats=True))
        except RuntimeError as error:
            return str(error).splitlines()[0]
        if not all(same(alone, outcome) for outcome in found):
            return "streams that disturb each other"
    return None


def main() -> int:
    missed = 0
    if found := caught(UNCHANGED, len(MUTATIONS)):
        print(f"nothing was changed, and yet: {found}")
        return 1
    for number, mutation in enumerate(MUTATIONS):
        found = caught(mutation, number)
        missed += found is None
        print(f"{mutation.what}: {found or 'NOT CAUGHT'}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} caught")
    return missed


if __name__ == "__main__":
    sys.exit(main())
