"""DMD2: fdkernels' loss in both of its recipes, against its own and against float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fdkernels import testing
from tests.fdkernels import recipes
from tests.fdkernels.test_peers import record
from tests.integrations.parity import FP32, SEEDS, Outcome, compare, leaf, normal, predictions, run, wide
from tests.integrations.video import seeded

TRAINER = "dmd2"
METHOD = "compute_distribution_matching_loss"
SHAPE = (3, 4, 5, 6)
ALPHAS = torch.linspace(0.9991, 0.0047, 1000)  # ᾱ


def guidance(cls, **settings):
    found = cls.__new__(cls)
    torch.nn.Module.__init__(found)
    for name, value in {"num_train_timesteps": 1000, "min_step": 20, "max_step": 980, **settings}.items():
        setattr(found, name, value)
    return found


def add_noise(x, noise, t):
    return ALPHAS[t].sqrt().view(-1, 1, 1, 1) * x + (1 - ALPHAS[t]).sqrt().view(-1, 1, 1, 1) * noise


def loss_and_log(model):
    def method(*args):
        losses, log = getattr(model, METHOD)(*args)
        assert losses.keys() == {"loss_dm"}
        return losses["loss_dm"], log

    return method


def same_figures(ours: dict, theirs: dict, without: set) -> None:
    assert theirs.keys() - ours.keys() == without
    assert isinstance(ours["dmtrain_gradient_norm"], torch.Tensor)  # without a sync
    for name, figure in ours.items():
        torch.testing.assert_close(
            torch.as_tensor(figure).float(), torch.as_tensor(theirs[name]).float(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("form", ["fp32", "fp16-sdxl"])
@pytest.mark.parametrize("seed", SEEDS)
def test_stable_diffusion(trainer, seed, form):
    generator, seen, sdxl = torch.Generator().manual_seed(seed), SimpleNamespace(), form == "fp16-sdxl"
    x, scale = leaf(normal(generator, *SHAPE), torch.float32), 1.0 if seed == 0 else 5.0
    cond = normal(generator, *SHAPE)
    of = {
        "cond": cond,
        "uncond": cond + 0.1 * normal(generator, *SHAPE),
        "fake": cond + 0.3 * normal(generator, *SHAPE),
    }

    def real_unet(noisy, t, embedding, added_cond_kwargs):
        seen.real = noisy, t, embedding, added_cond_kwargs
        parts = of["cond"] if len(noisy) == SHAPE[0] else torch.cat([of["uncond"], of["cond"]])
        return SimpleNamespace(sample=parts.to(noisy.dtype))

    def fake_unet(noisy, t, embedding, added_cond_kwargs):
        seen.fake = noisy, t, embedding, added_cond_kwargs
        return SimpleNamespace(sample=of["fake"].float())

    model = guidance(
        trainer.module("main.sd_guidance").SDGuidance, scheduler=SimpleNamespace(add_noise=add_noise),
        real_unet=real_unet, fake_unet=fake_unet, alphas_cumprod=ALPHAS, real_guidance_scale=scale,
        fake_guidance_scale=1, use_fp16=sdxl, sdxl=sdxl,
    )  # fmt: skip
    added = [{"time_ids": normal(generator, 3, 2).float()} for _ in range(2)] if sdxl else [None, None]
    args = x, torch.randn(3, 7, 8), torch.randn(3, 7, 8), *added
    theirs, log = seeded(seed, loss_and_log(model), [x], *args)
    state, their_calls = torch.get_rng_state(), (*seen.real, *seen.fake)
    with trainer.patched():
        ours, our_log = seeded(seed, loss_and_log(model), [x], *args)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close((*seen.real, *seen.fake), their_calls, rtol=0, atol=0)
    noisy, t = seen.fake[:2]
    teacher = of["cond"].to(seen.real[0].dtype)
    if scale > 1:  # in the networks' dtype
        uncond = of["uncond"].to(teacher.dtype)
        teacher = uncond + scale * (teacher - uncond)
    level = ALPHAS[t].double()
    inputs = SimpleNamespace(
        student=wide(x), noisy=noisy.double(), alpha=level.sqrt(), sigma=(1 - level).sqrt(), teacher=teacher.double(),
        teacher_uncond=None, fake=of["fake"].float().double(),
    )  # fmt: skip
    compare(theirs, ours, run(recipes.dmd2_latents, [inputs.student], inputs), torch.float32)
    same_figures(our_log, log, without={"dmtrain_grad"})


def edm(trainer, teacher, fake):
    def unet(x0):
        return lambda noisy, sigma, labels: x0 + 0 * sigma + 0 * labels.view(-1, 1, 1, 1)

    return guidance(
        trainer.module("main.edm.edm_guidance").EDMGuidance, karras_sigmas=torch.linspace(0.002, 80, 1000),
        real_unet=unet(teacher), fake_unet=unet(fake),
    )  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_edm(trainer, seed):
    x, tau, fake = (leaf(v, torch.float32) for v in predictions(seed, *SHAPE))
    model, labels = edm(trainer, tau.detach(), fake.detach()), torch.zeros(SHAPE[0])
    theirs, log = seeded(seed, loss_and_log(model), [x], x, labels)
    state = torch.get_rng_state()
    with trainer.patched():
        ours, our_log = seeded(seed, loss_and_log(model), [x], x, labels)
    assert torch.equal(torch.get_rng_state(), state)
    exact = [wide(each) for each in (x, tau.detach(), fake.detach())]
    compare(theirs, ours, run(recipes.dmd2, [exact[0]], *exact), torch.float32)
    same_figures(our_log, log, without=set())


def test_recorded_pixels(trainer):
    r = record("dmd2_pixel_fp32")
    x, model = leaf(r["student"], torch.float32), edm(trainer, r["teacher"], r["fake"])
    with trainer.patched():
        ours, _ = seeded(0, loss_and_log(model), [x], x, torch.zeros(len(x)))
    check_recorded(ours, r)


def test_recorded_latents(trainer):
    r = record("dmd2_latent_epsilon_fp32")

    class Levels:
        """ᾱ of the recorded samples, whatever t is drawn."""

        def double(self):
            return self

        def __getitem__(self, t):
            return r["alpha"].double() ** 2

    x = leaf(r["student"], torch.float32)
    unet = {name: lambda *_, name=name, **__: SimpleNamespace(sample=r[name]) for name in ("teacher", "fake")}
    model = guidance(
        trainer.module("main.sd_guidance").SDGuidance, alphas_cumprod=Levels(), real_guidance_scale=1.0,
        scheduler=SimpleNamespace(add_noise=lambda *_: r["noisy"]), real_unet=unet["teacher"], fake_unet=unet["fake"],
        fake_guidance_scale=1, use_fp16=False, sdxl=False,
    )  # fmt: skip
    with trainer.patched():
        ours, _ = seeded(0, loss_and_log(model), [x], x, None, None, None, None)
    check_recorded(ours, r)


def check_recorded(ours: Outcome, r: dict[str, torch.Tensor]) -> None:
    assert abs(ours.loss.item() / r["loss"].item() - 1) < FP32
    assert testing.relative_l2(ours.gradients[0], r["grad"].double()) < FP32
