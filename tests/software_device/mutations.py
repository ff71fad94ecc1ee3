"""Faults planted in the library's own sources, and the reports that have to notice them.

    python -m tests.software_device.mutations            all
    python -m tests.software_device.mutations 4 17       the fifth and the eighteenth

Each is a small change of csrc/, as a typing mistake could make it. docs/cuda.md lists them.
"""

from __future__ import annotations

import concurrent.futures
import faulthandler
import itertools
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.cases import Inputs, make, normalizer
from tests.gpu.calls import make_batch, same
from tests.implicit import make_implicit
from tests.software_device import build, device
from tools.gpu_check.stage import PLAN

FDIV, WEIGH, MANY, OPS = (f"fdiv/cuda/{name}" for name in ("kernel.cuh", "weigh.cuh", "weigh_many.cuh", "op.cpp"))
TEAMS, BLOCK, DEVICE, LAUNCH, ELEMENTWISE = (
    f"core/cuda/{name}" for name in ("schedules.cuh", "block.cuh", "device.cu", "launch.h", "elementwise.cuh")
)
SCALE = "core/cuda/scale.cu"
MATH, SHARE, PLANNED = "fdiv/elements.h", "core/share.h", "core/planning.h"
LIBRARIES = 14  # that one process loads, at most


class Mutation(NamedTuple):
    """`old` stands in `file` `times` times, and becomes `new`. `says`: a pattern that the report has to match."""

    what: str
    says: str
    file: str
    old: str
    new: str
    times: int = 1


MUTATIONS = (
    Mutation("a cluster's blocks write before all have begun", "a wait at a cluster's barrier .* without an arrival",
             TEAMS, "  if (team > 1) cluster.barrier_arrive();  // no block may write to one that has not begun\n", ""),
    Mutation("a cluster's sums are read without a barrier", "memory that nothing has written, at byte .* static shared",
             TEAMS, "      cluster.sync();\n", ""),
    Mutation("one buffer for a cluster's sums of two samples", "race: .* static shared", TEAMS, "shared.exchanged[odd]",
             "shared.exchanged[0]", 2),
    Mutation("shares that overlap by an element", "race: write after a write", SHARE,
             "? begin + share : elements;\n  return {begin, end",
             "? begin + share + 1 : elements;\n  return {begin, end"),
    Mutation("the grid's wait acquires nothing", "race: read after a write by thread 0", TEAMS,
             "arrived.load(::cuda::memory_order_acquire)", "arrived.load(::cuda::memory_order_relaxed)"),
    Mutation("the grid's arrival releases nothing", "race: read after a write by thread 0", TEAMS,
             ".fetch_add(1, ::cuda::memory_order_release)", ".fetch_add(1, ::cuda::memory_order_relaxed)"),
    Mutation("arrivals at even and odd turns counted together", "deadlock: .* __nanosleep, csrc/core/cuda/s", TEAMS,
             "arrivals[loaded % 2]", "arrivals[0]"),
    Mutation("all blocks of a team leave their sums in one place", "race: write after a write by thread 0", TEAMS,
             "(b * team + rank) * kExchanged", "(b * team) * kExchanged"),
    Mutation("a cluster's ticket is not reset", "a ticket that is 5, not zero", TEAMS,
             "    if (threadIdx.x == 0) *call.tickets = 0;\n", ""),
    Mutation("a grid's arrivals are not reset", "a ticket that is 4, not zero", TEAMS, "elements.each(1 + 2 * teams,",
             "elements.each(1,"),
    Mutation("a ticket is drawn without order", "race: read after a write by thread 0", BLOCK, "memory_order_acq_rel",
             "memory_order_relaxed"),
    Mutation("the first to draw reports", "race: read after a write by thread 0", BLOCK, "== draws - 1", "== 0"),
    Mutation("a draw is not waited for", "memory that nothing has written, at byte .* static shared", BLOCK,
             "  group.sync();\n  return drawn;", "  return drawn;"),
    Mutation("the coefficient is not waited for", "memory that nothing has written, at byte .* static shared", TEAMS,
             "    elements.sync();\n    if (Op::stores(call)) {",
             "    if (Op::stores(call)) {", 2),
    Mutation("warps' sums are read before they are there", "memory that nothing has written, at byte .* static shared",
             BLOCK, "    sync();\n    return combine_rows", "    return combine_rows"),
    Mutation("scratch is used again before all have read it", "race: write after a read .* static shared", BLOCK,
             "(combine<Combine>(values), values);\n    sync();", "(combine<Combine>(values), values);"),
    Mutation("the weights are not handed over", "deadlock: .* a named barrier", TEAMS,
             "  barrier_arrive(kBetween, static_cast<int>(blockDim.x));\n", ""),
    Mutation("the weights are not waited for", "race: read after a write .* dynamic shared", TEAMS,
             "    if (b == first) wait_for_ahead(call);\n", ""),
    Mutation("the weights are not waited for by a grid", "race: read after a write .* dynamic shared", TEAMS,
             "    if (turn == 0) wait_for_ahead(call);\n", ""),
    Mutation("a block alone meets at a cluster's barrier", "divergent barriers: __syncthreads", TEAMS,
             "if (team > 1) cluster.barrier_", "cluster.barrier_", 5),
    Mutation("a cluster goes on before all have read the state", "race: write after a read", WEIGH,
             "to.means[i] = i < group.threads ? mean : w.state.mean[i]; });\n  }\n  has_read();\n",
             "to.means[i] = 0; });\n  }\n  has_read();\n"
             "  group.each(w.state.bins, [&](int64_t i) { to.means[i] = w.state.mean[i] + 0 * mean; });\n"),
    Mutation("more is held than there is room for", "race: write after a write", MATH, "w < part.held) keep",
             "w <= part.held) keep"),
    Mutation("a prefetch from any address", "no whole units of 16 bytes", TEAMS, "(row + part.begin) * size) / 16 * 16",
             "(row + part.begin) * size + 4)"),
    Mutation("the weights' ratios lie over their means", "race: .* dynamic shared", FDIV,
             "double* means = h + 2 * batch;", "double* means = h + batch;"),
    Mutation("an element beyond the sample", "0 bytes behind a tensor", SHARE, "at < v * V + V && at < length",
             "at < v * V + V && at <= length"),
    Mutation("two samples in one buffer", "gradient: relative L2 error", TEAMS, "call.buffers == 2 &&",
             "call.buffers == 3 &&"),
    Mutation("a figure that is never recorded", "memory that nothing has written, at byte .* new memory", FDIV,
             "    record[4 * p.batch] = sums.nonfinite;\n", ""),
    Mutation("all streams share a ticket", "race: write after a write", DEVICE, "by_stream.try_emplace(id,",
             "by_stream.try_emplace(0 * id,"),
    Mutation("a graph has its stream's ticket", "race: .* by thread 0", DEVICE,
             "if (status != cudaStreamCaptureStatusNone) return next", "if (false) return next"),
    Mutation("blocks leave their bins' sums in one place", "race: write after a write", MANY,
             "to.by_bin + thread * gridDim.x + blockIdx.x", "to.by_bin + thread * gridDim.x"),
    Mutation("ratios are read before all are there", "race: .* static shared", MANY,
             "    });\n    block.sync();\n    if (thread < count) {", "    });\n    if (thread < count) {"),
    Mutation("the bins' logarithms are not waited for", "memory that nothing has written, at byte .* static shared",
             MANY, "    log_means[thread] = logarithm(mean);\n  }\n  block.sync();",
             "    log_means[thread] = logarithm(mean);\n  }"),
    Mutation("each block moves the state", "race: write after a write", MANY, "  if (blockIdx.x != 0) return;\n", ""),
    Mutation("warps that weigh leave a cluster's barrier", "between its arrival at a cluster's barrier and the wait",
             TEAMS, "    });\n    if (team > 1) cluster.barrier_wait();", "    });"),
    Mutation("a plan's shared memory is short of a sample's end", "write of 4 bytes beyond the shared memory", PLANNED,
             "plan.share * call.arithmetic + weight_bytes", "plan.share * call.arithmetic - 16 + weight_bytes"),
    Mutation("a plan's shares leave elements out", "write of 4 bytes beyond the shared memory", PLANNED,
             "  plan.team = size;\n  plan.share = share * call.vector;",
             "  plan.team = size;\n  plan.share = (share - 1) * call.vector;"),
    Mutation("a grid's plan holds more than a block may ask for", "fdiv_grid_kernel: invalid argument", PLANNED,
             "device.shared_per_block - kStaticShared - weight_bytes(call, weigh_first);\n  const int64_t bytes_a",
             "device.shared_per_block + 512 - weight_bytes(call, weigh_first);\n  const int64_t bytes_a"),
    Mutation("a refused call weighs again", "read of 4 bytes of no memory that this call has", OPS,
             "    work.heads = work.bins = 0;\n", ""),
    Mutation("a refusal is left for others to find", "an error is left in CUDA's runtime: too many blocks", LAUNCH,
             "  if (refused) cudaGetLastError();  // or the next call would report it again\n", ""),
    Mutation("a backward's last share is too long", "bytes behind a tensor", ELEMENTWISE,
             "part_of(call.elements, runs.share,", "part_of(call.elements + 1, runs.share,"),
    Mutation("a launch's second gradient begins at its first block", "bytes behind a tensor", SCALE,
             "ScaleMath<float, float>>(scale, scales.runs[n], block)",
             "ScaleMath<float, float>>(scale, scales.runs[n], blockIdx.x)"),
    Mutation("the second value that is held lies over the first",
             "memory that nothing has written, at byte .* dynamic shared", SHARE,
             "      keep<V>(hold + each * kPlanes * held,", "      keep<V>(hold,"),
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


UNCHANGED = Mutation("nothing", "", FDIV, "#pragma once", "#pragma once")


def caught(mutation: Mutation, number: int) -> str | None:
    """The report about a mutation; None: it is not noticed."""
    namespace = f"software_mutation_{number}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        csrc = mutated(mutation, folder)
        kernels = [build.HERE / "few.cu", *build.KERNELS[2:]]
        library = build.library(90, csrc, kernels, namespace=namespace, folder=folder)
        return noticed(device.Software(library, namespace))


PART = device.SMALL._replace(shared_per_block=5 << 10, shared_per_multiprocessor=5 << 10, granted=1)


def noticed(software: device.Software) -> str | None:
    """The first thing that is wrong with a library; None: nothing."""
    with software.serves(), pytest.MonkeyPatch.context() as patch:
        for case, plan, description in calls():
            patch.setenv(PLAN, plan)
            software.use(description)
            two = torch.full((), 2.0) if case.options.get("reduction") != "none" else None
            expected, first = case.expected(), None
            for scheduler, seed in device.SEEDED:
                software.schedule(scheduler, seed)
                software.begin()
                try:
                    outcome = case.run("native", two, stats=case.OP == "fdiv")
                    case.hold(outcome, expected, two)
                except (RuntimeError, ValueError, AssertionError) as error:
                    return str(error).splitlines()[0]
                first = outcome if first is None else first
                if not same(first, outcome):
                    return "bits that depend on who runs first"
                if error := software.last_error():
                    return f"an error is left in CUDA's runtime: {error}"
        patch.setenv(PLAN, "grid")
        software.use(device.SMALL)
        return streams(software)


def calls() -> Iterator[tuple[Inputs, str, device.Description]]:
    for option, plan in itertools.product(
        ("normalizer", "mask", "none", "plain"), ("cluster:2", "grid", "cluster:1", "grid:2")
    ):
        shape = (5, 3, 7, 13) if option in ("normalizer", "mask") else (9, 3, 8, 8)
        yield make_batch(shape, torch.float32, option, seed=4), plan, device.SMALL
    yield make_batch((1, 3, 80, 81), torch.float32, "plain", seed=4), "grid", device.SMALL  # more than it holds
    for plan in ("cluster:2", "grid"):
        yield make_implicit((5, 3, 7, 13)), plan, device.SMALL
    many = make((300, 1, 2, 4), torch.float32, heads=16, normalizer=normalizer(4))
    yield many, "cluster:1", device.SMALL
    yield many, "grid:1", PART  # PART refuses this grid


def streams(software: device.Software) -> str | None:
    """The first thing that is wrong with a library in graphs and in two streams at once; None: nothing."""
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
                    for stream in (side, None):
                        with software.on_stream(stream):
                            found.append(case.step("native", stats=True))
        except RuntimeError as error:
            return str(error).splitlines()[0]
        if not all(same(alone, outcome) for outcome in found):
            return "streams that disturb each other"
    return None


def said(number: int) -> str | None:
    faulthandler.dump_traceback_later(1200, exit=True)  # in case a launcher loops forever
    return caught(MUTATIONS[number] if number < len(MUTATIONS) else UNCHANGED, number)


def all_said(chosen: list[int]) -> Iterator[tuple[int, str | None]]:
    """(number, report) of each. A process loads few libraries: each has its own stacks, and a process 65,530 maps."""
    workers = min(len(chosen), os.cpu_count() or 1)
    for first in range(0, len(chosen), LIBRARIES):
        part = chosen[first : first + LIBRARIES]
        with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            yield from zip(part, pool.map(said, part), strict=True)


def main(chosen: list[int]) -> int:
    missed = planted = 0
    for number, found in all_said(chosen or [len(MUTATIONS), *range(len(MUTATIONS))]):
        if number == len(MUTATIONS):
            if found is not None:
                print(f"nothing was changed, and yet: {found}")
                return 1
            continue
        mutation = MUTATIONS[number]
        as_expected = found is not None and re.search(mutation.says, found) is not None
        missed, planted = missed + (not as_expected), planted + 1
        print(f"{mutation.what}: {found}{'' if as_expected else f' NOT CAUGHT as {mutation.says!r}'}", flush=True)
    print(f"{planted - missed} of {planted} caught")
    return missed


if __name__ == "__main__":
    sys.exit(main([int(number) for number in sys.argv[1:]]))
