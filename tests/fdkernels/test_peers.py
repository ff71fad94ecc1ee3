"""Recorded outputs of FastGen, DMD2 and Self-Forcing: equal to 1e-5 in fp32; in bf16, ours are closer to float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fdkernels as fdk
from fdkernels import testing
from tests import oracle
from tests.cases import Case
from tests.device import on_device

pytestmark = pytest.mark.contract("peers")

DATA = Path(__file__).parents[1] / "data"
TOLERANCE = 1e-5


def record(name: str) -> dict[str, torch.Tensor]:
    with np.load(DATA / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def case_of(name: str) -> tuple[Case, dict[str, torch.Tensor]]:
    """The case that corresponds to a peer's function, and the record."""
    r = record(name)
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    image = {k: v.to(dtype) for k, v in r.items() if v.shape == r["student"].shape and v.dtype == torch.float32}
    if name.startswith("fastgen_vsd"):
        options = {"weight": r["weight"]}
    elif name == "dmd2_latent_epsilon_fp32":
        level = fdk.Prediction("epsilon", r["noisy"], alpha=r["alpha"], sigma=r["sigma"])
        options = {"divergence": "rkl", "scale": fdk.DmdScale(0.0), "prediction": level}
    elif name.startswith("dmd2"):
        options = {"divergence": "rkl", "scale": fdk.DmdScale(0.0)}
    else:
        options = {
            "divergence": "rkl",
            "scale": fdk.DmdScale(0.0),
            "teacher_uncond": image["teacher_uncond"],
            "guidance_scale": 1 + float(r["guidance_w"]),
            "mask": r.get("mask"),
        }
    teacher = image["teacher_cond"] if "teacher_cond" in image else image["teacher"]
    return Case(image["student"], teacher, image["fake"], options=options), r


LOSSES = (
    "fastgen_vsd_image_fp32",
    "fastgen_vsd_video_fp32",
    "dmd2_latent_epsilon_fp32",
    "dmd2_pixel_fp32",
    "self_forcing_dmd_fp32",
    "self_forcing_dmd_masked_fp32",
)


@pytest.mark.parametrize("name", LOSSES)
def test_fp32(backend, name):
    case, recorded = case_of(name)
    outcome = case.run(backend)
    assert abs(outcome.loss.item() / recorded["loss"].item() - 1) < TOLERANCE
    assert testing.relative_l2(outcome.grad, recorded["grad"]) < TOLERANCE
    case.check(backend)


@pytest.mark.parametrize("name", [name.replace("fp32", "bf16") for name in LOSSES if not name.startswith("dmd2")])
def test_bf16_is_closer_to_float64(backend, name):
    case, recorded = case_of(name)
    outcome, expected = case.run(backend), case.expected()
    exact = torch.from_numpy(expected.grad)
    ours, theirs = testing.relative_l2(outcome.grad, exact), testing.relative_l2(recorded["grad"], exact)
    assert ours < 2.5e-3 and ours < theirs, (ours, theirs)
    ours, theirs = (abs(loss.item() / expected.loss - 1) for loss in (outcome.loss, recorded["loss"]))
    assert ours < 1e-5 and ours < theirs, (ours, theirs)


DIVERGENCES = {
    "kl": "kl", "js": "js", "sf": "softened_rkl", "neyman": "neyman", "sh": "squared_hellinger", "jf": "jeffreys"
}  # fmt: skip


def fastgen_normalizer(r: dict[str, torch.Tensor]) -> fdk.RatioNormalizer:
    t_range = tuple(r["t_range"].double().tolist())
    state = fdk.RatioNormalizer(len(r["bins_before"]), t_range=t_range, decay=float(r["decay"]))
    state.mean.copy_(r["bins_before"])
    return state


@pytest.mark.parametrize("batch", (64, 6))
@pytest.mark.parametrize("name", DIVERGENCES)
def test_fastgen_weights(backend, name, batch):
    r = record(f"fastgen_weight_{name}_b{batch}")
    state = fastgen_normalizer(r)
    ratio_range = tuple(float(f"{v:.6g}") for v in r["ratio_range"].tolist())
    weight = on_device(fdk.fdiv_weight)(
        r["logits"], r["t"], divergence=name, normalizer=state, ratio_range=ratio_range, backend=backend
    )
    torch.testing.assert_close(weight, r["weight"], rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(state.mean, r["bins_after"], rtol=TOLERANCE, atol=0)
    # With FastGen's three epsilons accounted for, only fp32's rounding is left.
    plain, plain_bins = fastgen_weight(r, name, ratio_range, epsilon=0.0)
    theirs, their_bins = fastgen_weight(r, name, ratio_range, epsilon=1e-6)
    torch.testing.assert_close(weight.double() * (theirs / plain), r["weight"].double(), rtol=2e-6, atol=0)
    torch.testing.assert_close(
        state.mean.double() * (their_bins / plain_bins), r["bins_after"].double(), rtol=1e-6, atol=0
    )


def fastgen_weight(r, name, ratio_range, epsilon) -> tuple[torch.Tensor, torch.Tensor]:
    """FastGen's formula in float64: epsilon is added to each bin's count, each bin's mean and the batch mean of h.

    FastGen's h leaves out the constants of neyman (2) and sh (1/4), which matters only to the last epsilon.
    """
    logits, t = oracle.float64(r["logits"]), oracle.float64(r["t"])
    ratio = np.clip(np.exp(logits.mean(1)), *ratio_range)
    state = fastgen_normalizer(r)
    index, bins = oracle.bin_index(t, state), oracle.float64(state.mean)
    for i in np.unique(index):
        members = ratio[index == i]
        bins[i] = state.decay * bins[i] + (1 - state.decay) * members.sum() / (len(members) + epsilon)
    h = oracle.weight_function(DIVERGENCES[name], np.log(ratio / (bins[index] + epsilon)))
    h = h / {"neyman": 2.0, "sh": 0.25}.get(name, 1.0)
    return torch.from_numpy(h / (h.mean() + epsilon)), torch.from_numpy(bins)


def test_the_recorded_epsilons_are_what_the_difference_is():
    """Without FastGen's epsilons, the recorded weights are off by more than fp32's rounding."""
    differences = []
    for name in DIVERGENCES:
        r = record(f"fastgen_weight_{name}_b6")
        plain, _ = fastgen_weight(r, name, (0.1, 20.0), epsilon=0.0)
        theirs, _ = fastgen_weight(r, name, (0.1, 20.0), epsilon=1e-6)
        recorded = r["weight"].double()
        differences.append(((plain - recorded).abs() / recorded).max() / ((theirs - recorded).abs() / recorded).max())
    assert max(differences) > 3


def test_generator_term(backend):
    """FastGen's `gan_loss_generator`, beside a score difference of 0."""
    r = record("fastgen_gan")
    x, logits = torch.zeros(16, 3), r["fake_logits"].clone().requires_grad_()
    loss = on_device(fdk.fused_fdiv_loss)(x, x, x, logits, divergence="rkl", gan_weight=2.0, backend=backend)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, 2 * r["gen_loss"], rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(gradient, 2 * r["gen_grad"], rtol=TOLERANCE, atol=0)
