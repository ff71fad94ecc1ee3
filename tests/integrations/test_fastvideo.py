"""FastVideo: fdkernels' losses in place of its three methods', against them and against float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.fdkernels import recipes
from tests.integrations.parity import DTYPES, SEEDS, compare, leaf, normal, run, wide
from tests.integrations.video import SHAPE, sigma_of, velocities

TRAINER = "fastvideo"
METHODS = "fastvideo.train.methods.distribution_matching"


class Scheduler(SimpleNamespace):
    num_train_timesteps = 1000

    def add_noise(self, x, noise, timestep):
        sigma = sigma_of(self, timestep).to(x.dtype).view(-1, 1, 1, 1)
        return (1 - sigma) * x + sigma * noise


def scheduler(shift):
    line = torch.linspace(1.0, 0.001, 1000)
    sigmas = shift * line / (1 + (shift - 1) * line)
    return Scheduler(sigmas=sigmas, timesteps=1000 * sigmas)


def model(trainer, role, of, seen, own=None):
    """A network of the trainer's base class, so that its predict_x0 is the trainer's."""
    base = trainer.module("fastvideo.train.models.base").ModelBase

    def predict_noise(self, noisy, timestep, batch, *, conditional, cfg_uncond, attn_kind):
        seen.calls.append((role, conditional, cfg_uncond, attn_kind, batch))
        seen.noisy, seen.timestep = noisy, timestep
        return of[role if conditional else f"{role}_uncond"]

    def add_noise(self, x, noise, timestep):
        return self.noise_scheduler.add_noise(x.flatten(0, 1), noise.flatten(0, 1), timestep).unflatten(0, x.shape[:2])

    methods = {
        "predict_noise": predict_noise,
        "add_noise": add_noise,
        "shift_and_clamp_timestep": lambda _, t: t.clamp(min=100),
    }
    cls = type("Model", (base,), methods | (own or {}))
    cls.__abstractmethods__ = frozenset()
    found = cls.__new__(cls)
    if isinstance(found, torch.nn.Module):
        torch.nn.Module.__init__(found)
    found.noise_scheduler = scheduler(5.0)
    return found


def method(trainer, name, of, **settings):
    seen = SimpleNamespace(calls=[])
    module = {"DMD2Method": "dmd2", "SelfForcingMethod": "self_forcing"}.get(name, "streaming_long_tuning")
    cls = getattr(trainer.module(f"{METHODS}.{module}"), name)
    found = cls.__new__(cls)
    if isinstance(found, torch.nn.Module):
        torch.nn.Module.__init__(found)
    roles = {"student": "student", "teacher": "teacher", "critic": "fake"}
    settings = {
        "method_config": {"real_score_guidance_scale": 4.0}, "cuda_generator": torch.Generator(),
        "_cfg_uncond": {"text": "zero"}, "_sf_scheduler": scheduler(5.0), "_real_score_cfg": True,
        "_score_min_timestep": 20, "_score_max_timestep": 980,
        **{key: model(trainer, role, of, seen) for key, role in roles.items()}, **settings,
    }  # fmt: skip
    for key, value in settings.items():
        setattr(found, key, value)
    return found, seen


def formula(v):
    v = SimpleNamespace(**vars(v))
    if v.teacher_uncond is None:
        v.teacher_uncond = v.teacher
    for name in ("teacher", "teacher_uncond", "fake"):
        setattr(v, name, v.noisy - recipes.frames(v.sigma) * getattr(v, name))
    return recipes.fastvideo(v) if v.chunk_mask is None else recipes.fastvideo_streaming(v)


def check(trainer, call, found, seen, x, of, seed, dtype, mask=None, guided=True):
    def once():
        found.cuda_generator.manual_seed(seed)
        seen.calls.clear()
        return run(call, [x], x, "batch"), list(seen.calls), found.cuda_generator.get_state(), seen.noisy

    theirs, *their_state = once()
    with trainer.patched():
        ours, *our_state = once()
    assert our_state[0] == their_state[0] and all(map(torch.equal, our_state[1:], their_state[1:]))
    inputs = SimpleNamespace(
        student=wide(x), noisy=seen.noisy.double(), sigma=sigma_of(found._sf_scheduler, seen.timestep).expand(len(x)),
        teacher=of["teacher"].double(), teacher_uncond=of["teacher_uncond"].double() if guided else None,
        fake=of["fake"].double(), guidance_scale=found.method_config.get("real_score_guidance_scale") or 1.0,
        chunk_mask=mask,
    )  # fmt: skip
    compare(theirs, ours, run(formula, [inputs.student], inputs), dtype)


@pytest.mark.parametrize("name", ["DMD2Method", "SelfForcingMethod"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_gradient_calls_and_noise(trainer, seed, dtype, name):
    shape = (1 + seed % 2, *SHAPE)
    of = velocities(seed, *shape, dtype=dtype)
    config = {} if seed == 3 else {"real_score_guidance_scale": 4.0}
    found, seen = method(trainer, name, of, method_config=config)
    x = leaf(normal(torch.Generator().manual_seed(seed + 9), *shape), dtype)
    check(trainer, lambda *args: found._dmd_loss(*args), found, seen, x, of, seed, dtype)


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_streaming(trainer, seed, dtype, guided):
    shape = (1, *SHAPE)
    of = velocities(seed, *shape, dtype=dtype)
    found, seen = method(trainer, "StreamingLongTuningMethod", of, _real_score_cfg=guided)
    x = leaf(normal(torch.Generator().manual_seed(seed + 9), *shape), dtype)
    mask = torch.ones(shape[:2], dtype=(torch.bool, torch.float32)[seed % 2])
    mask[:, : seed % 3] = 0

    def call(x, batch):
        return found._dmd_loss_masked(x, batch, chunk_mask=None if seed == 3 else mask)

    check(trainer, call, found, seen, x, of, seed, dtype, mask.double(), guided)


def test_with_a_network_that_has_its_own_x0_the_trainers_loss_runs(trainer):
    found, seen = method(trainer, "DMD2Method", velocities(0, 1, *SHAPE, dtype=torch.float32))
    x = torch.zeros(1, *SHAPE, requires_grad=True)
    found.critic = model(trainer, "fake", {}, seen, {"predict_x0": lambda *_, **__: torch.ones(1, *SHAPE)})
    theirs = found._dmd_loss(x, None)
    found.cuda_generator = torch.Generator()
    with trainer.patched(), pytest.warns(UserWarning, match="Model.predict_x0 is not what fdkernels does"):
        assert torch.equal(found._dmd_loss(x, None), theirs)


@pytest.mark.parametrize("timestep", [[700.0], [700, 20, 999], [[700, 20, 999]]])
@pytest.mark.parametrize("noisy_needs_gradient", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_conversion_of_a_velocity(trainer, dtype, noisy_needs_gradient, timestep):
    generator = torch.Generator().manual_seed(0)
    velocity, noisy, upstream = (normal(generator, 3, *SHAPE[1:]).to(dtype) for _ in range(3))
    leaves = [velocity.requires_grad_(), *([noisy.requires_grad_()] if noisy_needs_gradient else [])]
    utils = trainer.module("fastvideo.models.utils")

    def convert():
        x0 = utils.pred_noise_to_pred_video(velocity, noisy, torch.tensor(timestep), scheduler=scheduler(5.0))
        return x0, torch.autograd.grad(x0, leaves, upstream)

    theirs = convert()
    with trainer.patched():
        torch.testing.assert_close(convert(), theirs)
