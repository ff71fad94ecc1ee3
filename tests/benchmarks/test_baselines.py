"""The peers' chains, written anew, give what the peers' own functions gave (recorded in tests/data)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import baselines

DATA = Path(__file__).parents[1] / "data"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# bf16 chains round after every op: the recorded figures are those of the same roundings in the same order, or nearly.
TOLERANCE = {"fp32": 1e-6, "bf16": 2e-3}


def load(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    with np.load(DATA / f"{name}.npz") as file:
        return {k: torch.from_numpy(file[k]).to(dtype) if file[k].dtype == np.float32 else torch.as_tensor(file[k])
                for k in file}  # fmt: skip


def assert_matches(loss: torch.Tensor, student: torch.Tensor, case: dict[str, torch.Tensor], tolerance: float) -> None:
    (gradient,) = torch.autograd.grad(loss, student)
    expected = case["grad"].double()
    assert gradient.dtype == student.dtype
    assert expected.norm() > 0
    assert (gradient.double() - expected).norm() <= tolerance * expected.norm()
    torch.testing.assert_close(loss.double(), case["loss"].double(), rtol=10 * tolerance, atol=0)


@pytest.mark.parametrize("divergence", sorted(baselines.FASTGEN_WEIGHTS))
@pytest.mark.parametrize("batch", [6, 64])
def test_fastgen_weight(divergence: str, batch: int) -> None:
    case = load(f"fastgen_weight_{divergence}_b{batch}")
    bins = case["bins_before"].clone()
    weight = baselines.fastgen_weight(
        case["logits"], case["t"], bins, divergence=divergence, t_range=tuple(case["t_range"].tolist()),
        decay=case["decay"].item(), ratio_range=tuple(case["ratio_range"].tolist()),
    )  # fmt: skip
    torch.testing.assert_close(weight, case["weight"], rtol=1e-6, atol=0)
    torch.testing.assert_close(bins, case["bins_after"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_fastgen_loss(kind: str, dtype: str) -> None:
    case = load(f"fastgen_vsd_{kind}_{dtype}", DTYPES[dtype])
    student = case["student"].requires_grad_()
    loss = baselines.fastgen_loss(student, case["teacher"], case["fake"], case["weight"])
    assert_matches(loss, student, case, TOLERANCE[dtype])


def test_fastgen_chain_is_weight_then_loss() -> None:
    image, weight = load("fastgen_vsd_image_fp32"), load("fastgen_weight_kl_b64")
    logits, t = weight["logits"][:8], weight["t"][:8]
    bins, chain_bins = torch.ones(10), torch.ones(10)
    h = baselines.fastgen_weight(logits, t, bins, divergence="kl")
    student, teacher, fake = image["student"], image["teacher"], image["fake"]
    expected = baselines.fastgen_loss(student, teacher, fake, h)
    assert torch.equal(baselines.fastgen_chain(student, teacher, fake, logits, t, chain_bins, "kl"), expected)
    assert torch.equal(bins, chain_bins) and not torch.equal(bins, torch.ones(10))


def test_dmd2_pixel() -> None:
    case = load("dmd2_pixel_fp32")
    student = case["student"].requires_grad_()
    assert_matches(baselines.dmd2_pixel_chain(student, case["teacher"], case["fake"]), student, case, 1e-6)


def test_dmd2_latent_epsilon() -> None:
    case = load("dmd2_latent_epsilon_fp32")
    student = case["student"].requires_grad_()
    inputs = (case[k] for k in ("teacher", "fake", "noisy", "alpha", "sigma"))
    assert_matches(baselines.dmd2_latent_epsilon_chain(student, *inputs), student, case, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", ["", "_masked"])
def test_self_forcing(masked: str, dtype: str) -> None:
    case = load(f"self_forcing_dmd{masked}_{dtype}", DTYPES[dtype])
    student = case["student"].requires_grad_()
    inputs = (case[k] for k in ("teacher_cond", "teacher_uncond", "fake"))
    loss = baselines.self_forcing_chain(student, *inputs, case["guidance_w"].item(), case.get("mask"))
    assert_matches(loss, student, case, TOLERANCE[dtype])
