"""Every loss that the adapters replace, called in one way: `LOSSES[trainer][name](peer, given())`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.integrations import test_causvid, test_dmd2, test_fastvideo, test_model_optimizer_step, video
from tests.integrations.conftest import checkout, importable, stand_in
from tests.integrations.parity import normal

SHAPE = (3, *video.SHAPE)


class Given(NamedTuple):
    """The student's output, and what the scores predict: x0, a velocity or ε."""

    x: Tensor
    tau: Tensor
    uncond: Tensor
    fake: Tensor

    def to(self, student, scores):
        return Given(self.x.to(student), *(each.to(scores) for each in self[1:]))


def given():
    generator = torch.Generator().manual_seed(0)
    x, error, near, far = (normal(generator, *SHAPE) for _ in range(4))
    tau = x + torch.tensor([0.05, 0.2, 0.5]).view(-1, 1, 1, 1, 1) * error
    return Given(x, tau, tau + 0.1 * near, tau + 0.2 * far).to(torch.float32, torch.float32)


def on(module, name, *args, logits=False, **options):
    """A loss of the trainer's module, called with these of `given`."""

    def call(peer, v):
        parts = [getattr(v, each, each) for each in args]
        parts = [each.flatten(1) for each in parts] if logits else parts
        named = {name: getattr(v, each) for name, each in options.items()}
        return getattr(peer.module(module), name)(*parts, **named)

    return call


def cosmos(name, reduction):
    def call(peer, v):
        loss = getattr(peer.module("cosmos_framework.model.generator.distillation.common_loss"), name)
        pair = [v.fake - v.tau, v.tau] if name.endswith("gradient") else [v.tau, v.fake]
        found = loss(list(v.x), *map(list, pair), reduction=reduction)
        return found / v.x[0].numel() if reduction.endswith("sum") else found  # a sum's gradient would overflow float16

    return call


def of(v):
    return {"teacher": v.tau, "teacher_uncond": v.uncond, "fake": v.fake, "fake_uncond": v.fake}


def velocity(wrappers):
    def call(peer, v):
        model = video.dmd(peer, wrappers, of(v), SimpleNamespace())
        with mock.patch("torch.distributed.get_rank", return_value=0):  # which LongLive asks
            return model.compute_distribution_matching_loss(v.x, video.COND, video.UNCOND)[0]

    return call


def critic(module):
    def call(peer, v):
        return video.flow_loss(peer.module(module).FlowPredLoss(), v.x, v.tau, v.fake)

    return call


def causvid(peer, v):
    of = {"teacher": v.tau, "teacher_uncond": v.uncond, "fake": v.fake}
    options = {"timestep_shift": 8.0, "real_task_type": "causal_video"}
    model = test_causvid.dmd(peer, of, SimpleNamespace(), **options)
    return model.compute_distribution_matching_loss(v.x, "", "_uncond")[0]


def fastvideo(name):
    def call(peer, v):
        if name.startswith("Streaming"):  # it takes one video at a time
            v = Given(*(part[:1] for part in v))
        found, _ = test_fastvideo.method(peer, name, of(v))
        found.cuda_generator.manual_seed(0)
        if name.startswith("Streaming"):
            return found._dmd_loss_masked(v.x, None, chunk_mask=None)
        return found._dmd_loss(v.x, None)

    return call


def step(peer, v):
    module = peer.module(test_model_optimizer_step.DMD)
    _, networks, student_step = test_model_optimizer_step.pipeline(module, 0, v.x.dtype, gan=False, shape=SHAPE)
    for network, flow in zip(networks, (v.x, v.tau, v.fake), strict=True):
        network.flow, network.uncond = flow, v.uncond
    return student_step()["total"]


def edm(peer, v):
    x, tau, fake = (each.flatten(1, 2) for each in (v.x, v.tau, v.fake))
    return test_dmd2.edm(peer, tau, fake).compute_distribution_matching_loss(x, torch.zeros(len(x)))[0]["loss_dm"]


COMMON, DMD2 = "fastgen.methods.common_loss", "diffsynth.diffusion.dmd2"
MODELOPT, LIGHTX2V = "modelopt.torch.fastgen.losses", "lightx2v_train.trainers.dmd.math"
VSD = "variational_score_distillation_loss"
LOSSES = {
    "fastgen": {
        "vsd": on(COMMON, VSD, "x", "tau", "fake"),
        "generator": on(COMMON, "gan_loss_generator", "x", logits=True),
        "discriminator": on(COMMON, "gan_loss_discriminator", "x", "tau", logits=True),
        "denoising": on(COMMON, "denoising_score_matching_loss", "flow", "x", x0="tau", eps="fake"),
    },
    "model_optimizer": {
        "vsd": on(MODELOPT, "vsd_loss", "x", "tau", "fake"),
        "generator": on(MODELOPT, "gan_gen_loss", "x", logits=True),
        "discriminator": on(MODELOPT, "gan_disc_loss", "x", "tau", logits=True),
        "r1": on(MODELOPT, "r1_loss", "x", "tau", logits=True),
        "denoising": on(MODELOPT, "dsm_loss", "flow", "x", x0="tau", eps="fake"),
    },
    "model_optimizer_step": {"vsd": step},
    "diffsynth": {
        "vsd": on(DMD2, f"_{VSD}", "x", "tau", "fake"),
        "generator": on(DMD2, "_gan_loss_generator", "x", logits=True),
        "discriminator": on(DMD2, "_gan_loss_discriminator", "x", "tau", logits=True),
    },
    "cosmos": {
        "mean": cosmos(VSD, "mean"),
        "instances": cosmos(VSD, "per_instance_sum"),
        "gradient": cosmos(f"{VSD}_from_gradient", "mean"),
    },
    "lightx2v": {"dmd": on(LIGHTX2V, "dmd_loss", "x", "fake", "tau")},
    "self_forcing": {"dmd": velocity("utils.wan_wrapper"), "critic": critic("utils.loss")},
    "longlive": {"dmd": velocity("utils.wan_5b_wrapper"), "critic": critic("utils.loss")},
    "causvid": {"dmd": causvid, "critic": critic("causvid.loss")},
    "fastvideo": {name: fastvideo(name) for name in ("DMD2Method", "SelfForcingMethod", "StreamingLongTuningMethod")},
    "dmd2": {"edm": edm},
}  # fmt: skip


def kinds(name):
    return ["stand-in", "checkout"] if checkout(name) else ["stand-in"]


def opened(name, kind):
    is_stand_in = kind == "stand-in"
    return importable(name, stand_in(name) if is_stand_in else checkout(name), is_stand_in)


def every(*only):
    """Parametrizes by (peer, loss): all losses of all trainers, or those named."""
    chosen = [
        pytest.param((name, kind), call, id=f"{name}-{kind}-{loss}")
        for name, losses in LOSSES.items()
        for loss, call in losses.items()
        if not only or (name, loss) in only
        for kind in kinds(name)
    ]
    return pytest.mark.parametrize("peer, call", chosen, indirect=["peer"], scope="module")
