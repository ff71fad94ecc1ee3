"""The ranks of docs/recipes.md's block `ranks`, forked from one process: `python -m tests.fdkernels.recipes_rank DIR`.

Each rank saves the loss and gradient of its part of the batch, by backend.
"""

from __future__ import annotations

import os
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

from tests.fdkernels.recipes import PARTS, RECIPES, inputs
from tests.fdkernels.test_recipes import BLOCKS, run

BACKENDS = ("reference", "native")


def rank_of(folder: str, rank: int) -> None:
    rendezvous, timeout = f"file://{folder}/rendezvous", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=len(PARTS), timeout=timeout)
    found = {}
    for backend in BACKENDS:
        given = inputs(RECIPES["ranks"], torch.float64)
        size = len(given["student"])
        part = {k: v[PARTS[rank]] if isinstance(v, torch.Tensor) and len(v) == size else v for k, v in given.items()}
        found[backend] = run(BLOCKS["ranks"], backend, {**part, "group": dist.group.WORLD})
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(folder: str) -> int:
    for rank in range(len(PARTS)):
        if not os.fork():
            try:
                rank_of(folder, rank)
            except BaseException:
                print(f"rank {rank}:", traceback.format_exc(), flush=True)
                os._exit(1)
            os._exit(0)
    return max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in PARTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
