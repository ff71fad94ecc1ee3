"""The peers' chains, rewritten here, give what the peers' own functions gave (recorded in tests/data)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cases import baselines

DATA = Path(__file__).parents[1] / "data"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# bf16 chains round after every op: the originals rounded in the same order, or nearly.
TOLERANCE = {"fp32": 1e-6, "bf16": 2e-3}
GUIDED = ("teacher_cond", "teacher_uncond", "fake", "guidance_w")
CHAINS = {
    "fastgen_vsd_image": (baselines.fastgen_loss, ("teacher", "fake", "weight")),
    "fastgen_vsd_video": (baselines.fastgen_loss, ("teacher", "fake", "weight")),
    "dmd2_pixel": (baselines.dmd2_pixel_chain, ("teacher", "fake")),
    "dmd2_latent_epsilon": (baselines.dmd2_latent_epsilon_chain, ("teacher", "fake", "noisy", "alpha", "sigma")),
    "self_forcing_dmd": (baselines.self_forcing_chain, GUIDED),
    "self_forcing_dmd_masked": (baselines.self_forcing_chain, (*GUIDED, "mask")),
}


def load(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    with np.load(DATA / f"{name}.npz") as file:
        return {k: torch.from_numpy(file[k]).to(dtype) if file[k].dtype == np.float32 else torch.as_tensor(file[k])
                for k in file}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in CHAINS for dtype in DTYPES if dtype == "fp32" or not name.startswith("dmd2")],
)
def test_loss_and_gradient(name: str, dtype: str) -> None:
    chain, inputs = CHAINS[name]
    case = load(f"{name}_{dtype}", DTYPES[dtype])
    student = case["student"].requires_grad_()
    loss = chain(student, *(case[key].item() if key == "guidance_w" else case[key] for key in inputs))
    (gradient,) = torch.autograd.grad(loss, student)
    expected = case["grad"].double()
    assert gradient.dtype == student.dtype and expected.norm() > 0
    assert (gradient.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()
    torch.testing.assert_close(loss.double(), case["loss"].double(), rtol=10 * TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("alpha", ("1.0", "1.2"))
def test_sid(alpha: str) -> None:
    """SiD's own loss is a sum."""
    case = load(f"sid_alpha{alpha}")
    inputs = [case[name].requires_grad_() for name in ("student", "teacher", "fake")]
    loss = baselines.sid_loss(*inputs, alpha=case["sid_alpha"].item()) * inputs[0].numel()
    torch.testing.assert_close(loss.detach(), case["loss"], rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(loss, inputs)
    for name, gradient in zip(("student", "teacher", "fake"), gradients, strict=True):
        expected = case[f"grad_{name}"]
        assert (gradient - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("batch", [6, 64])
def test_fastgen_weight(batch: int) -> None:
    case = load(f"fastgen_weight_js_b{batch}")
    bins = case["bins_before"].clone()
    weight = baselines.fastgen_weight(
        case["logits"], case["t"], bins, t_range=tuple(case["t_range"].tolist()),
        decay=case["decay"].item(), ratio_range=tuple(case["ratio_range"].tolist()),
    )  # fmt: skip
    torch.testing.assert_close(weight, case["weight"], rtol=1e-6, atol=0)
    torch.testing.assert_close(bins, case["bins_after"], rtol=1e-6, atol=0)
