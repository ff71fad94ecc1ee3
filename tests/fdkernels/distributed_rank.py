"""The ranks of test_distributed.py: each rank runs every scenario on every backend and saves its results.

The ranks are forked from one process that has torch loaded.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import fdkernels as fdk
from tests import conftest
from tests.cases import Case, make, normalizer
from tests.contracts import BACKENDS

SPLITS = ((5, 2, 4), (6, 0, 1), (3, 3, 3))
DIVERGENCES = ("js", "kl", "rkl")


def global_case(splits: tuple[int, ...]) -> Case:
    return make((sum(splits), 3, 4, 4), seed=sum(splits))


def state() -> fdk.RatioNormalizer:
    return normalizer(4)


def local(case: Case, splits: tuple[int, ...], rank: int) -> Case:
    part = slice(sum(splits[:rank]), sum(splits[: rank + 1]))
    tensors = {name: getattr(case, name)[part] for name in ("student", "teacher", "fake", "logits", "t")}
    return case.but(**tensors)


class CountedReduces:
    """Records the sizes of the all-reduces inside the block."""

    def __enter__(self) -> list[int]:
        self.sizes: list[int] = []
        self.original = dist.all_reduce

        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.sizes.append(tensor.numel())
            return self.original(tensor, *args, **kwargs)

        dist.all_reduce = counted
        return self.sizes

    def __exit__(self, *_: Any) -> None:
        dist.all_reduce = self.original


def scenarios(backend: str, rank: int, pair: Any) -> dict[Any, Any]:
    world = dist.group.WORLD
    found: dict[Any, Any] = {}
    for splits in SPLITS:
        mine = local(global_case(splits), splits, rank)
        for divergence in DIVERGENCES:
            shared = state()
            with CountedReduces() as sizes:
                weight = fdk.fdiv_weight(
                    mine.logits, mine.t, divergence=divergence, normalizer=shared, group=world, backend=backend
                )
            found[backend, "weight", splits, divergence] = {
                "weight": weight, "mean": shared.mean.clone(), "all_reduces": sizes
            }  # fmt: skip
        outcome = mine.but(normalizer=state(), group=world).run(backend)
        found[backend, "loss", splits] = {"loss": outcome.loss, "grad": outcome.grad}

    splits = SPLITS[0]
    mine = local(global_case(splits), splits, rank)
    collectives = {}
    for name, options in {
        "neither": {"normalize_weight": False},
        "batch mean": {},
        "normalizer": {"normalize_weight": False, "normalizer": state()},
        "eval": {"normalizer": state().eval()},
    }.items():
        with CountedReduces() as collectives[name]:
            fdk.fdiv_weight(mine.logits, mine.t, group=world, backend=backend, **options)
    found[backend, "collectives"] = collectives

    logits = mine.logits.clone()
    if rank == 0:
        logits[0] = torch.nan
    found[backend, "bad sample"] = fdk.fdiv_weight(
        logits, mine.t, divergence="kl", normalizer=state(), group=world, backend=backend
    )
    if rank < 2:
        found[backend, "subgroup"] = fdk.fdiv_weight(mine.logits, divergence="kl", group=pair, backend=backend)
    found[backend, "warnings"] = warnings_without_group(backend)
    found[backend, "ddp"] = under_ddp(backend, rank)
    return found


def warnings_without_group(backend: str) -> list[str]:
    from fdkernels._op import checks

    case = make((8, 3, 4, 4))
    checks.warned.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        case.but(divergence="rkl").call(backend)
        case.call(backend, group=dist.group.WORLD)
        case.call(backend)
        case.call(backend)
    return [str(w.message) for w in caught if w.category is UserWarning]  # not NumPy's, from Triton 3.6's interpreter


def under_ddp(backend: str, rank: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    case = make((8, 6), seed=10 + rank)
    generator = torch.nn.Linear(6, 6)

    def gradient(model: torch.nn.Module) -> torch.Tensor:
        generator.zero_grad()
        case.call(backend, model(case.student), group=dist.group.WORLD).backward()
        return generator.weight.grad.clone()

    return {"local": gradient(generator), "averaged": gradient(torch.nn.parallel.DistributedDataParallel(generator))}


def run(folder: str, size: int, rank: int) -> None:
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    pair = dist.new_group([0, 1])
    found: dict[Any, Any] = {}
    for backend in BACKENDS:
        found.update(scenarios(backend, rank, pair))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(folder: str, size: int) -> int:
    conftest._interpret_faster()
    for rank in range(size):
        if not os.fork():
            try:
                run(folder, size, rank)
            except BaseException:
                print(f"rank {rank}:", traceback.format_exc(), flush=True)
                os._exit(1)
            os._exit(0)
    return max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(size))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
