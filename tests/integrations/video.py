"""Self-Forcing's and LongLive's DMD with small networks: the trainer's own classes around given velocities."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.integrations.parity import Outcome, compare, leaf, normal, run, wide

SHAPE = (6, 4, 3, 5)
NAMES = ("teacher", "teacher_uncond", "fake", "fake_uncond")
COND, UNCOND = {"prompt_embeds": "cond"}, {"prompt_embeds": "uncond"}


def velocities(seed: int, *shape: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the networks predict, as views of (B, C, F, H, W); frames differ in their distance from the student."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.linspace(0.3, 1.0, shape[1], dtype=torch.float64).view(-1, 1, 1, 1)
    first = normal(generator, *shape)
    parts = (first, *(first + gap * normal(generator, *shape) for gap in (0.1, 0.3, 0.35)))
    sized = [(size * part).to(dtype).transpose(1, 2).contiguous().transpose(1, 2) for part in parts]
    return dict(zip(NAMES, sized, strict=True))


def wrapper(kind: type[nn.Module], scheduler: Any, predict: Callable[..., Tensor], uniform: bool = True) -> nn.Module:
    """The trainer's wrapper around predict(x_t, prompt, **rest), all of them (B, F, C, H, W)."""
    found = kind.__new__(kind)
    nn.Module.__init__(found)
    found.scheduler, found.uniform_timestep, found.seq_len = scheduler, uniform, 0
    found._call_model = found.model = lambda x, t, context, seq_len, **rest: predict(
        x.transpose(1, 2), context, t=t, **rest
    ).transpose(1, 2)
    return found


def dmd(trainer: Any, wrappers: str, of: dict[str, Tensor], seen: SimpleNamespace, **options: Any) -> nn.Module:
    """The trainer's DMD object, with what its __init__ takes from the configuration."""

    def predict(role: str) -> Callable[..., Tensor]:
        def network(noisy: Tensor, context: str, **rest: Any) -> Tensor:
            seen.noisy, seen.rest = noisy, rest
            return of[role if context == "cond" else f"{role}_uncond"]

        return network

    kind, cls = trainer.module(wrappers).WanDiffusionWrapper, trainer.module("model.dmd").DMD
    schedule = trainer.module("utils.scheduler").FlowMatchScheduler
    # The schedulers of the generator and of the scores have other shifts, as in the trainers' configurations.
    options = {"shift": 5.0} | options
    generator, scores = (schedule(shift=shift) for shift in (5.0, 8.0))
    for each in (generator, scores):
        if not trainer.is_stand_in:
            each.sigma_min, each.extra_one_step = 0.0, True
            each.set_timesteps(1000, training=True)
    found = cls.__new__(cls)
    nn.Module.__init__(found)
    uniform = not options.get("i2v", False)
    settings = {
        "args": SimpleNamespace(i2v=options.get("i2v", False)), "device": torch.device("cpu"), "scheduler": generator,
        "real_score": wrapper(kind, scores, predict("teacher"), uniform),
        "fake_score": wrapper(kind, scores, predict("fake"), uniform),
        "real_guidance_scale": 3.0, "fake_guidance_scale": options.get("fake_w", 0.0),
        "timestep_shift": options["shift"], "ts_schedule": True, "ts_schedule_max": False, "min_score_timestep": 0,
        "num_train_timestep": 1000, "min_step": 20, "max_step": 980,
        "num_frame_per_block": options.get("block", 3), "independent_first_frame": options.get("first", False),
    }  # fmt: skip
    for name, value in settings.items():
        setattr(found, name, value)
    return found


def sigma_of(scheduler: Any, timestep: Tensor) -> Tensor:
    nearest = (scheduler.timesteps.double() - timestep[..., None]).abs().argmin(-1)
    return scheduler.sigmas.double()[nearest]


def seeded(
    seed: int, function: Callable[..., Any], wrt: list[Tensor], *args: Any, **kwargs: Any
) -> tuple[Outcome, Any]:
    """`run` for a function that returns (loss, log): (outcome, log), after which the generator is where it is."""
    logs: list[Any] = []

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        found, log = function(*args, **kwargs)
        logs.append(log)
        return found

    torch.manual_seed(seed)
    return run(loss, wrt, *args, **kwargs), logs[0]


def check_conversions(
    trainer: Any, wrapper: type, scheduler: Any, dtype: torch.dtype, noisy_needs_gradient: bool = False
) -> None:
    """x0 of a velocity and the velocity of x0: values and gradients against float64."""
    generator = torch.Generator().manual_seed(0)
    v, noisy, upstream = (normal(generator, 6, 4, 3, 5).to(dtype) for _ in range(3))
    timestep = torch.linspace(20, 980, 6)
    sigma, leaves = sigma_of(scheduler, timestep).view(-1, 1, 1, 1), [v.requires_grad_()]
    if noisy_needs_gradient:
        leaves.append(noisy.requires_grad_())
    with trainer.patched():
        x0 = wrapper._convert_flow_pred_to_x0(SimpleNamespace(scheduler=scheduler), v, noisy, timestep)
        flow = wrapper._convert_x0_to_flow_pred(scheduler, x0_pred=v, xt=noisy, timestep=timestep)
    exact = noisy.double() - sigma * v.double(), (noisy.double() - v.double()) / sigma
    factors = (-sigma, torch.ones_like(sigma)), (-1 / sigma, 1 / sigma)
    for found, true, by in zip((x0, flow), exact, factors, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, true.to(dtype))
        for mine, factor in zip(torch.autograd.grad(found, leaves, upstream), by, strict=False):
            torch.testing.assert_close(mine, (factor * upstream).to(dtype))


def flow_loss(loss: Any, flow: Tensor, x: Tensor, noise: Tensor, **options: Any) -> Tensor:
    """A FlowPredLoss of the trainers, called as they call it."""
    unused = dict.fromkeys(("x_pred", "noise_pred", "alphas_cumprod", "timestep"))
    found: Tensor = loss(x=x, noise=noise, flow_pred=flow, **unused, **options)
    return found


def check_critic_loss(loss: Any, trainer: Any, seed: int, dtype: torch.dtype, masked_dims: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    flow, x, noise = (normal(generator, 6, 4, 3, 5) for _ in range(3))
    flow = leaf(noise - x + 0.3 * flow, dtype)
    x, noise = x.to(dtype), noise.to(dtype)
    mask = torch.ones(x.shape[:masked_dims] or x.shape, dtype=torch.bool)
    mask[:2] = masked_dims == 0
    options = {"gradient_mask": mask} if masked_dims else {}

    def call(flow: Tensor) -> Tensor:
        return flow_loss(loss, flow, x, noise, **options)

    theirs = run(call, [flow], flow)
    with trainer.patched():
        ours = run(call, [flow], flow)
    exact = wide(flow)
    target = noise.double() - x.double()
    compare(theirs, ours, run(lambda v: (v - target)[mask].square().mean(), [exact], exact), dtype)


def check_critic_step(
    trainer: Any, monkeypatch: Any, wrappers: str, seed: int, dtype: torch.dtype, context: int = 0, **args: Any
) -> None:
    """The critic's loss from its velocity. The trainer converts that to x0 with one table of σ, back with another."""
    generator, seen = torch.Generator().manual_seed(seed), SimpleNamespace()
    clean, noise = normal(generator, 2, 1 + seed % 2, *SHAPE).to(dtype)
    flow = leaf(noise - clean + 0.3 * normal(generator, *clean.shape), dtype)
    model = dmd(trainer, wrappers, {"fake": flow}, seen, shift=(1.0, 5.0)[seed % 2])
    vars(model.args).update(args, denoising_loss_type="flow")
    model.fake_score.uniform_timestep = context == 0
    model.denoising_loss_func, model.dtype = trainer.module("utils.loss").FlowPredLoss(), dtype
    model.scheduler.alphas_cumprod = None
    asked: list[Any] = []
    model._run_generator = lambda conditional_dict, **given: asked.append(given) or (clean, None, None, 100)
    model._slice_block_cond_dict = lambda condition, *segments: asked.append(segments) or condition
    monkeypatch.setattr(torch, "randn_like", lambda _: noise.clone())
    arguments = clean.shape, {"prompt_embeds": "cond"}, UNCOND, clean, clean[:, :context] if context else None
    theirs, log = seeded(seed, model.critic_loss, [flow], *arguments)
    before, state = dict(vars(seen)), torch.get_rng_state()
    vars(seen).clear()
    with trainer.patched():
        ours, our_log = seeded(seed, model.critic_loss, [flow], *arguments)
    half = len(asked) // 2
    torch.testing.assert_close((asked[half:], vars(seen)), (asked[:half], before), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state) and our_log.keys() == log.keys()
    timestep = log["critic_timestep"]
    assert torch.equal(our_log["critic_timestep"], timestep)
    sigmas = (sigma_of(each, timestep)[..., None, None, None] for each in (model.fake_score.scheduler, model.scheduler))
    ratio, exact = torch.divide(*sigmas), wide(flow)
    noise[:, :context] = 0
    target, kept = noise.double() - clean.double(), slice(context, None)
    assert (ratio != 1).any()
    compare(theirs, ours, run(lambda v: (ratio * v - target)[:, kept].square().mean(), [exact], exact), dtype)
