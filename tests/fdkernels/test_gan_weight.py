"""The generator's term that `fused_fdiv_loss` takes along: its value, the gradient of the logits, what is refused."""

import pytest
import torch

import fdkernels as fdk
from tests.cases import assert_stats, make_gan, normalizer

pytestmark = pytest.mark.contract("exactness", op="fdiv, gan")

SHAPE = (9, 3, 6, 5)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.pairwise
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("divergence", ("rkl", "js", "kl"))
@pytest.mark.parametrize("heads", (0, 1, 3, 40, 300))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_gradient_and_figures(backend, reduction, divergence, heads, dtype):
    case = make_gan(SHAPE, dtype, heads=heads, reduction=reduction, divergence=divergence)
    case.check(backend)
    assert_stats(case.run(backend, stats=True).stats, case.expected())


@pytest.mark.parametrize("batch", (1, 2, 300))
def test_batches(backend, batch):
    make_gan((batch, 7), torch.bfloat16).check(backend)
    make_gan((batch, 7), reduction="none", divergence="rkl").check(backend)


@pytest.mark.parametrize("n", (300, 40_001))
def test_samples_of_any_size(backend, n):
    """Samples that a program holds, and larger ones."""
    make_gan((3, n), torch.bfloat16, normalizer=normalizer()).check(backend)
    make_gan((3, n), reduction="none").check(backend)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32, torch.float64), ids=str)
def test_both_tails(backend, dtype):
    """softplus(-l) is -l on the left, and e^-l on the right, where 1 + e^-l is 1."""
    logits = torch.tensor([-1e4, -80.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 80.0, 400.0], dtype=dtype)
    make_gan(SHAPE, dtype, reduction="none", ratio_range=None).but(logits=logits).check(backend)


def test_weights_that_come_before_the_launch(backend):
    """A divergence of one's own is weighed in PyTorch, and many logits in a launch of their own."""
    own = fdk.Divergence("test_gan_own", lambda log_ratio: 0.5 * log_ratio)
    mine, theirs = (make_gan(SHAPE, divergence=d).run(backend) for d in (own, "alpha(0.5)"))
    torch.testing.assert_close(mine.loss, theirs.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(mine.grads, theirs.grads, rtol=1e-5, atol=1e-9)
    make_gan((700, 3), heads=9).check(backend)


@pytest.mark.parametrize("over", ("frame", 3, "batch"))
def test_beside_every_scale(backend, over):
    """The sets of a scale are not the samples of the logits."""
    for options in ({}, {"reduction": "sum"}) if over == "batch" else ({}, {"reduction": "none"}):
        case = make_gan((4, 6, 5), heads=2, scale=fdk.DmdScale(over=over), nonfinite="zero", **options)
        for logits in (case.logits, case.logits.index_fill(0, torch.tensor([2]), torch.nan)):
            case.but(logits=logits).check(backend)
            assert_stats(case.but(logits=logits).run(backend, stats=True).stats, case.but(logits=logits).expected())


@pytest.mark.parametrize(("weight", "upstream"), ((1e-3, 65536.0), (1e-6, 65536.0), (1e5, 1e-3)))
def test_weights_beyond_float16(backend, weight, upstream):
    """A small weight does not make a float16 gradient underflow before the loss scale, nor a large one overflow."""
    case = make_gan(SHAPE, torch.float16, heads=2, gan_weight=weight)
    logits = case.logits.clone()
    logits[0], logits[1] = torch.tensor([12.0, 9.0]), torch.tensor([-3.0, 6.0])
    case.but(logits=logits).check(backend, torch.tensor(upstream))


@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf))
def test_samples_without_a_finite_logit(backend, bad):
    """They add nothing with "zero", all heads of the sample; else NaN or infinity reaches the loss."""
    case = make_gan(SHAPE, heads=3, nonfinite="zero")
    logits = case.logits.clone()
    logits[4, 1] = bad
    outcome = case.but(logits=logits).check(backend)
    assert outcome.loss.isfinite() and not outcome.grads[1][4].any()
    case = case.but(logits=logits, nonfinite="propagate", divergence="rkl", normalize_weight=False)
    assert not case.run(backend).loss.isfinite()


def test_strides_of_the_logits(backend):
    case = make_gan(SHAPE, heads=4)
    wide = torch.zeros(9, 8)
    wide[:, ::2] = case.logits
    for logits in (wide[:, ::2], case.logits.t().contiguous().t(), case.logits[:1].expand(9, 4)):
        case.but(logits=logits).check(backend)


def test_a_gradient_only_for_what_asks_for_it(backend):
    case = make_gan(SHAPE)
    logits = case.logits.clone().requires_grad_()
    loss = case.call(backend, logits=logits)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, case.run(backend).grads[1])
    student = case.student.clone().requires_grad_()
    case.call(backend, student=student).backward()
    assert student.grad is not None
    without = make_gan(SHAPE, gan_weight=None)
    assert not without.call(backend, logits=logits).requires_grad
    assert not case.call(backend).requires_grad


def test_adds_to_the_loss_without_it(backend):
    """At weight 0 only the logits' gradient remains, and it is 0."""
    case = make_gan(SHAPE, gan_weight=0)
    alone = make_gan(SHAPE, gan_weight=None).call(backend)
    outcome = case.run(backend)
    assert outcome.loss == alone and not outcome.grads[1].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"gan_weight": -0.1}, "gan_weight: expected a number of at least 0, got -0.1"),
        ({"gan_weight": "1"}, "gan_weight: expected a finite number, got '1'"),
        ({"gan_weight": float("nan")}, "gan_weight: expected a finite number, got nan"),
        ({"gan_weight": 1.0, "count": 5}, "gan_weight: expected without count"),
        ({"gan_weight": 1.0, "logits": None, "divergence": "rkl"}, "gan_weight: expected beside logits, got None"),
        (
            {"gan_weight": 1.0, "logits": None, "t": None, "weight": torch.ones(9)},
            "gan_weight: expected beside logits, got None; beside weight= add fdkernels.generator_loss",
        ),
    ),
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        make_gan(SHAPE).but(**changes).call("reference")


def test_module():
    case = make_gan(SHAPE, divergence="kl")
    loss = fdk.FDivLoss("kl", bins=None, gan_weight=0.3, backend="reference")
    result = loss(case.student, case.teacher, case.fake, case.logits, case.t)
    assert result == case.call("reference")
    with pytest.raises(ValueError, match="gan_weight: expected a number of at least 0, got -1"):
        fdk.FDivLoss(gan_weight=-1)
