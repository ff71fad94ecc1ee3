"""cosmos-framework: fdkernels' losses of lists of samples in place of its own."""

from __future__ import annotations

import pytest
import torch

from tests.integrations.parity import DTYPES, SEEDS, compare, leaf, normal, run, wide

TRAINER = "cosmos"
LOSSES = "cosmos_framework.model.generator.distillation.common_loss"
SHAPES = ((3, 4, 5, 2), (3, 1, 5, 2), (3, 3, 2, 6))  # (C, T, H, W)
REDUCTIONS = ("mean", "sum", "per_instance_sum")


def exact_loss(students, references, gradients, masks, scales, reduction):
    """The formula in float64, without a pseudo-target's rounding."""
    total = 0.0
    for i, (x, reference, gradient) in enumerate(zip(students, references, gradients, strict=True)):
        kept = (torch.ones_like(x) if masks is None else masks[i].expand_as(x)).double()
        count = kept.sum().clamp(min=1)
        distance = ((x.detach() - reference).abs() * kept).sum() / count
        weight = 1 / distance.clamp(min=1e-5) if reduction == "per_instance_sum" else 1 / (distance + 1e-6)
        g = gradient * weight * (1.0 if scales is None else scales[i].double())
        square = ((x - (x - g).detach()).square() * kept).sum()
        total = total + {"mean": 0.5 / count, "sum": 0.5, "per_instance_sum": 1.0}[reduction] * square
    return total / len(students)


def samples(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    students = [leaf(normal(generator, *shape), dtype) for shape in SHAPES]
    teachers, fakes = [], []
    for x, error in zip(students, (0.1, 0.2, 0.4), strict=True):
        teachers.append((x.detach().double() + error * normal(generator, *x.shape)).to(dtype))
        fakes.append((teachers[-1].double() + 0.3 * error * normal(generator, *x.shape)).to(dtype))
    masks = [torch.tensor(kept).view(-1, 1, 1) for kept in ([1.0, 0.0, 0.0, 1.0], [1.0], [0.0, 1.0, 0.0])]
    return students, teachers, fakes, masks, torch.tensor([0.4, 1.3, 0.8])


@pytest.mark.parametrize("from_gradient", [False, True], ids=["x0", "gradient"])
@pytest.mark.parametrize("with_options", [False, True], ids=["plain", "masked-scaled"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_losses(trainer, seed, dtype, reduction, with_options, from_gradient):
    students, teachers, fakes, masks, scales = samples(seed, dtype)
    if not with_options:
        masks = scales = None
    gradients = [fake.double() - tau.double() for fake, tau in zip(fakes, teachers, strict=True)]
    name, given = "variational_score_distillation_loss", (teachers, fakes)
    if from_gradient:
        name, given = f"{name}_from_gradient", ([v.to(dtype) for v in gradients], teachers)
        gradients = [v.double() for v in given[0]]
    module = trainer.module(LOSSES)
    theirs = run(getattr(module, name), students, students, *given, masks, scales, reduction)
    with trainer.patched():
        ours = run(getattr(module, name), students, students, *given, masks, scales, reduction)
    wide_students = [wide(x) for x in students]
    references = [tau.double() for tau in teachers]
    exact = run(exact_loss, wide_students, wide_students, references, gradients, masks, scales, reduction)
    compare(theirs, ours, exact, dtype)


def test_a_sample_that_is_not_finite_is_dropped_from_the_per_instance_sum_alone(trainer):
    students, teachers, fakes, *_ = samples(0, torch.float32)
    fakes[1][0, 0, 0, 0] = torch.inf
    module = trainer.module(LOSSES)

    def of(reduction):
        loss = module.variational_score_distillation_loss
        return run(loss, students, students, teachers, fakes, reduction=reduction)

    for reduction, is_finite in (("per_instance_sum", True), ("mean", False)):
        theirs = of(reduction)
        with trainer.patched():
            ours = of(reduction)
        assert torch.isfinite(theirs.loss) == torch.isfinite(ours.loss) == is_finite
        if is_finite:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
            assert not ours.gradients[1].any()


def test_under_autocast_the_loss_is_float32(trainer):
    students, teachers, fakes, *_ = samples(0, torch.bfloat16)
    module = trainer.module(LOSSES)

    def dtype():
        with torch.autocast("cpu", torch.bfloat16):
            return module.variational_score_distillation_loss(students, teachers, fakes).dtype

    theirs = dtype()
    with trainer.patched():
        assert dtype() == theirs == torch.float32


def test_an_unknown_reduction_is_refused(trainer):
    students, teachers, fakes, *_ = samples(0, torch.float32)
    loss = trainer.module(LOSSES)
    with trainer.patched(), pytest.raises(ValueError, match="expected mean, sum or per_instance_sum, got 'max'"):
        loss.variational_score_distillation_loss(students, teachers, fakes, reduction="max")
