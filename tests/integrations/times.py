"""The table of times of docs/integrations.md: the trainers' own functions and fdkernels', in one run.

FDKERNELS_FASTGEN=/path/to/FastGen python -m tests.integrations.times fastgen

Forward and backward on two threads, networks that return given tensors, the medians of calls that take turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdkernels.integrations import model_optimizer as losses_beside_the_step
from tests.integrations import conftest
from tests.integrations.parity import DTYPES, leaf, predictions

WAN, SDXL, CIFAR = (1, 21, 16, 60, 104), (8, 4, 128, 128), (64, 3, 32, 32)
DMD = "compute_distribution_matching_loss"


class Case(NamedTuple):
    what: str
    student: Tensor
    loss: Callable[[], Tensor]


def of_x0(loss: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Iterator[Case]:
    """A function of (student, teacher's x0, fake score's x0)."""
    for shape in shapes:
        for dtype in DTYPES:
            x, tau, fake = (v.to(dtype) for v in predictions(0, *shape))
            x.requires_grad_()
            yield Case("", x, partial(loss, x, tau, fake))


def fastgen(trainer: Any) -> Iterator[Case]:
    from tests.integrations.test_fastgen import LOSSES, model

    module = trainer.module(LOSSES)

    def loss(f_distill: Any, x: Tensor, tau: Tensor, fake: Tensor, logits: Tensor, t: Tensor) -> Any:
        return module.variational_score_distillation_loss(x, tau, fake, f_distill.h(logits, t))

    for shape in (CIFAR, SDXL, WAN):
        for dtype in DTYPES:
            x, tau, fake = (v.to(dtype) for v in predictions(0, *shape))
            logits, t = torch.randn(shape[0], 2).to(dtype), torch.rand(shape[0]).double()
            f_distill = model(trainer, "js", dtype, torch.ones(10))
            x.requires_grad_()
            yield Case("f-distill, js", x, partial(loss, f_distill, x, tau, fake, logits, t))


def model_optimizer(trainer: Any) -> Iterator[Case]:
    module = trainer.module("modelopt.torch.fastgen.losses")
    return of_x0(lambda *x0: module.vsd_loss(*x0), SDXL, WAN)


def model_optimizer_step(trainer: Any) -> Iterator[Case]:
    from tests.integrations.test_model_optimizer_step import DMD as MODULE
    from tests.integrations.test_model_optimizer_step import pipeline

    for shape in (SDXL, WAN):
        for dtype in DTYPES:
            flow, _, step = pipeline(trainer.module(MODULE), 0, dtype, gan=False, shape=shape)
            yield Case("student step", flow, lambda step=step: step()["total"])


def cosmos(trainer: Any) -> Iterator[Case]:
    module = trainer.module("cosmos_framework.model.generator.distillation.common_loss")

    def loss(x: Tensor, tau: Tensor, fake: Tensor) -> Tensor:
        samples = (v.transpose(1, 2).unbind() for v in (x, tau, fake))
        return module.variational_score_distillation_loss(*samples)

    return of_x0(loss, WAN)


def critic(scheduler: Any, wrapper: Any, of_flow: Any, dtype: torch.dtype) -> Case:
    """From the fake score's velocity: x0, the velocity again, the loss."""
    from tests.integrations.video import flow_loss

    v, clean, noise = (leaf(torch.randn(WAN).flatten(0, 1), dtype) for _ in range(3))
    timestep, of = torch.full((WAN[1],), 500.0), SimpleNamespace(scheduler=scheduler)
    clean, noise = clean.detach(), noise.detach()

    def loss() -> Tensor:
        x0 = wrapper._convert_flow_pred_to_x0(of, v, noise, timestep)
        flow = wrapper._convert_x0_to_flow_pred(scheduler, x0_pred=x0, xt=noise, timestep=timestep)
        return flow_loss(of_flow, flow, clean, noise)

    return Case("critic", v, loss)


def self_forcing(trainer: Any, wrappers: str = "utils.wan_wrapper") -> Iterator[Case]:
    from tests.integrations.video import COND, UNCOND, dmd, velocities

    for dtype in DTYPES:
        model = dmd(trainer, wrappers, velocities(0, *WAN, dtype=dtype), SimpleNamespace())
        x, mask = leaf(torch.randn(WAN), dtype), torch.ones(WAN, dtype=torch.bool)
        mask[:, 0] = False
        for what, each in (("", None), ("mask", mask)):
            yield Case(what, x, lambda m=model, x=x, each=each: getattr(m, DMD)(x, COND, UNCOND, each, 0, 100)[0])
        flow_loss = trainer.module("utils.loss").FlowPredLoss()
        yield critic(model.scheduler, type(model.real_score), flow_loss, dtype)


def longlive(trainer: Any) -> Iterator[Case]:
    trainer.module("model.dmd").dist = SimpleNamespace(get_rank=lambda: 1)  # for its print
    return self_forcing(trainer, "utils.wan_5b_wrapper")


def causvid(trainer: Any) -> Iterator[Case]:
    from tests.integrations.test_causvid import dmd

    for dtype in DTYPES:
        x, tau, fake = (leaf(v, dtype) for v in predictions(0, *WAN))
        of = {"teacher": tau.detach(), "fake": fake.detach(), "teacher_uncond": 1.01 * tau.detach()}
        model = dmd(trainer, of, SimpleNamespace(), timestep_shift=8.0, real_task_type="causal_video")
        yield Case("", x, lambda m=model, x=x: getattr(m, DMD)(x, "", "_uncond", None)[0])
        wrapper = trainer.module("causvid.models.wan.wan_wrapper").WanDiffusionWrapper
        yield critic(model.scheduler, wrapper, trainer.module("causvid.loss").FlowPredLoss(), dtype)


def fastvideo(trainer: Any) -> Iterator[Case]:
    from tests.integrations.test_fastvideo import method, velocities

    for name in ("DMD2Method", "SelfForcingMethod", "StreamingLongTuningMethod"):
        for dtype in DTYPES:
            model, x = method(trainer, name, velocities(0, *WAN, dtype=dtype))[0], leaf(torch.randn(WAN), dtype)
            if name.startswith("Streaming"):
                yield Case(name, x, lambda m=model, x=x: m._dmd_loss_masked(x, None, chunk_mask=None))
            else:
                yield Case(name, x, lambda m=model, x=x: m._dmd_loss(x, None))


def lightx2v(trainer: Any) -> Iterator[Case]:
    module = trainer.module("lightx2v_train.trainers.dmd.math")
    return of_x0(lambda x, tau, fake: module.dmd_loss(x, fake, tau), SDXL, WAN)


def diffsynth(trainer: Any) -> Iterator[Case]:
    module = trainer.module("diffsynth.diffusion.dmd2")
    return of_x0(lambda *x0: module._variational_score_distillation_loss(*x0), SDXL, WAN)


def dmd2(trainer: Any) -> Iterator[Case]:
    from tests.integrations import test_dmd2

    x, tau, fake = (v.float() for v in predictions(0, *SDXL))
    x.requires_grad_()
    both, text = torch.cat([tau, 1.01 * tau]).bfloat16(), torch.zeros(SDXL[0], 77, 8)
    stable_diffusion = test_dmd2.guidance(
        trainer.module("main.sd_guidance").SDGuidance, scheduler=SimpleNamespace(add_noise=test_dmd2.add_noise),
        alphas_cumprod=test_dmd2.ALPHAS, real_guidance_scale=8.0, fake_guidance_scale=1, use_fp16=True, sdxl=False,
        real_unet=lambda *_, **__: SimpleNamespace(sample=both),
        fake_unet=lambda *_, **__: SimpleNamespace(sample=fake),
    )  # fmt: skip
    yield Case("SD", x, lambda: getattr(stable_diffusion, DMD)(x, text, text, None, None)[0]["loss_dm"])
    y, *x0 = (v.float() for v in predictions(0, 32, 3, 64, 64))
    y.requires_grad_()
    edm = test_dmd2.edm(trainer, *x0)
    edm.real_unet, edm.fake_unet = (lambda *_, v=v: v for v in x0)
    yield Case("EDM", y, lambda: getattr(edm, DMD)(y, None)[0]["loss_dm"])


CASES = {
    each.__name__: each
    for each in (
        fastgen, model_optimizer, model_optimizer_step, cosmos, self_forcing, longlive, causvid, fastvideo, lightx2v,
        diffsynth, dmd2,
    )
}  # fmt: skip


def seconds(case: Case) -> float:
    case.student.grad = None
    start = time.perf_counter()
    case.loss().backward()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(2)
    for name in sys.argv[1:]:
        beside: Any = losses_beside_the_step if name == "model_optimizer_step" else SimpleNamespace(patched=nullcontext)
        with conftest.importable(name, conftest.checkout(name), is_stand_in=False) as trainer:
            for case in CASES[name](trainer):
                theirs, ours = [], []
                for turn in range(24 if case.student.numel() > 1_000_000 else 64):
                    before = seconds(case)
                    with trainer.patched(), beside.patched():
                        after = seconds(case)
                    if turn > 2:
                        theirs.append(before)
                        ours.append(after)
                a, b = 1e3 * statistics.median(theirs), 1e3 * statistics.median(ours)
                shape, dtype = "×".join(map(str, case.student.shape)), str(case.student.dtype).removeprefix("torch.")
                print(f"| `{name}` {case.what} | {shape} | {dtype} | {a:.2f} | {b:.2f} | {a / b:.1f} |", flush=True)


if __name__ == "__main__":
    main()
