"""`generator_loss`, `discriminator_loss`, `gradient_penalty`: exact results in both tails, kinks and clamps, FastGen's
recorded losses, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fdkernels as fdk
from tests.adversarial import (
    DiscriminatorCase,
    GeneratorCase,
    PenaltyCase,
    make_discriminator,
    make_generator,
    make_penalty,
)
from tests.device import is_slow, on_device

DATA = Path(__file__).parents[1] / "data"
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
KINDS = ("logistic", "hinge", "relativistic")
SHAPE = (5, 3, 6, 7)
ELEMENTWISE = {torch.float32: 2e-7, torch.float64: 1e-13}


def each_of(values, dtype):
    """Every value as a sample of one logit."""
    return torch.tensor(values, dtype=torch.float64).to(dtype)


@pytest.mark.contract("exactness", op="adversarial")
class TestExactness:
    @pytest.mark.pairwise
    @pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_kinds(self, backend, dtype, kind, reduction):
        for clamp in (None, 1.5):
            make_discriminator(SHAPE, dtype, kind=kind, reduction=reduction, clamp=clamp).check(backend)
            make_generator(SHAPE, dtype, kind=kind, reduction=reduction, clamp=clamp).check(backend)

    @pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_penalty(self, backend, dtype, reduction):
        for sigma in (None, 0.05, 3.0, np.float32(0.7)):
            make_penalty(SHAPE, dtype, sigma=sigma, reduction=reduction).check(backend)

    @pytest.mark.parametrize("shape", ((64,), (16, 3), (4, 1, 16, 16), (2, 1, 130, 130)), ids=str)
    def test_shapes_of_discriminators(self, backend, shape):
        make_discriminator(shape).check(backend)
        make_generator(shape, reduction="none").check(backend)
        make_penalty(shape, sigma=0.1).check(backend)

    @pytest.mark.pairwise
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("real", DTYPES, ids=str)
    @pytest.mark.parametrize("fake", DTYPES, ids=str)
    def test_any_mix_of_dtypes(self, backend, fake, real, kind):
        case = make_discriminator(SHAPE, fake, kind=kind)
        for upstream in (None, torch.tensor(65536.0)):
            case.but(real_logits=case.real_logits.to(real)).check(backend, upstream)

    @pytest.mark.parametrize("dtype", ELEMENTWISE, ids=str)
    def test_both_tails(self, backend, dtype):
        """Every value and every gradient, however small, has its own relative error."""
        values = (0.0, 1e-30, 1e-3, 0.7, 1.0, 5.0, 17.0, 36.0, 37.0, 80.0, 86.0, 600.0, 700.0, 1e4, 1e30)
        v = each_of([sign * value for value in values for sign in (1, -1)], dtype)
        tolerance = {"rtol": ELEMENTWISE[dtype], "atol": 2.0**-126 if dtype == torch.float32 else 1e-300}
        for case in (
            GeneratorCase(v, options={"reduction": "none"}),
            DiscriminatorCase(v, v.flip(0), options={"reduction": "none"}),
            DiscriminatorCase(v, v.roll(3), options={"reduction": "none", "kind": "relativistic"}),
        ):
            outcome, (loss, gradients) = case.run(backend), case.expected()
            torch.testing.assert_close(outcome.loss.double(), loss, **tolerance)
            for found, expected in zip(outcome.grads, gradients, strict=True):
                torch.testing.assert_close(found.double(), expected, **tolerance)

    def test_softplus_everywhere(self, backend):
        """In float64, at 20,000 places (interpreted: 200): value and derivative to 1e-14."""
        v = torch.linspace(-720, 720, 201 if is_slow(backend) else 20_001, dtype=torch.float64) + 1e-3
        for scale in (1.0, 0.05, 1e-3):
            case = GeneratorCase((v * scale)[:, None], options={"reduction": "none"})
            outcome, (loss, gradients) = case.run(backend), case.expected()
            torch.testing.assert_close(outcome.loss, loss, rtol=1e-14, atol=1e-300)
            torch.testing.assert_close(outcome.grad, gradients[0], rtol=1e-14, atol=1e-300)

    def test_small_float16_gradients(self, backend):
        """Those of logits that are already right: sigmoid(-14) is subnormal in float16, its gradient under a loss
        scale is not."""
        logits = torch.linspace(5, 16, 256).view(64, 4).half()
        for reduction, upstream in (("mean", torch.tensor(2.0**24)), ("none", torch.full((64,), 2.0**16))):
            GeneratorCase(logits, options={"reduction": reduction}).check(backend, upstream)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_kinks_and_borders(self, backend, dtype):
        """hinge at its kink has the gradient 0; the clamp keeps the gradient at its borders."""
        values = each_of((-2, -1, -0.5, 0.5, 1, 2), dtype)
        case = DiscriminatorCase(values, values, options={"kind": "hinge", "reduction": "sum"})
        outcome = case.check(backend)
        assert outcome.grads[0].tolist() == [0, 0, 1, 1, 1, 1] and outcome.grads[1].tolist() == [-1, -1, -1, -1, 0, 0]
        for kind in KINDS:
            for clamp in (0.5, 1, 2.0):
                options = {"kind": kind, "clamp": clamp, "reduction": "sum"}
                outcome = DiscriminatorCase(values, values.flip(0) * 2, options=options).check(backend)
                outside = values.abs() > clamp
                assert not outcome.grads[0][outside].any()
        outcome = GeneratorCase(values, options={"kind": "hinge", "clamp": 1.0, "reduction": "sum"}).check(backend)
        assert outcome.grad.tolist() == [0, -1, -1, -1, -1, 0]

    @pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
    def test_a_small_difference(self, backend, dtype):
        """The penalty's gradient is that of the difference of the values given."""
        logits, noise = make_discriminator((4, 300), torch.float64).tensors().values()
        case = PenaltyCase(logits=logits.to(dtype) + 3, perturbed_logits=(logits + 1e-2 * noise).to(dtype) + 3)
        case.but(sigma=0.01).check(backend)


@pytest.mark.contract("exactness", op="adversarial")
class TestNotFinite:
    @pytest.mark.parametrize("clamp", (None, 2.0))
    @pytest.mark.parametrize("kind", KINDS)
    def test_nan_propagates(self, backend, kind, clamp):
        """To the loss of its sample, and to its own gradient; in pairs, to both gradients."""
        case = make_discriminator((4, 37), kind=kind, clamp=clamp, reduction="none")
        case.fake_logits[1, 5] = torch.nan
        outcome = case.run(backend)
        assert outcome.loss.isnan().tolist() == [False, True, False, False]
        assert outcome.grads[0].isnan().nonzero().tolist() == [[1, 5]]
        of_real = outcome.grads[1].isnan().nonzero().tolist()
        # A clamped partner keeps its gradient of 0.
        paired = kind == "relativistic" and (clamp is None or case.real_logits[1, 5].abs() <= clamp)
        assert of_real == ([[1, 5]] if paired else [])
        assert case.but(reduction="mean").run(backend).loss.isnan()

    @pytest.mark.parametrize("kind", KINDS)
    def test_nan_of_a_generator(self, backend, kind):
        case = make_generator((4, 37), kind=kind)
        case.fake_logits[1, 5] = torch.nan
        outcome = case.run(backend)
        assert outcome.loss.isnan() and outcome.grad.isnan().nonzero().tolist() == [[1, 5]]

    @pytest.mark.parametrize("clamp", (None, 2.0))
    @pytest.mark.parametrize("kind", KINDS)
    def test_infinity(self, backend, kind, clamp):
        """As in the formula: infinite values, slopes of 0 and 1, and a clamp makes them finite."""
        v = each_of((torch.inf, -torch.inf, 1.0, 0.5, torch.inf, -torch.inf), torch.float32)
        other = each_of((0.5, 1.0, torch.inf, -torch.inf, -torch.inf, torch.inf), torch.float32)
        for case in (
            DiscriminatorCase(v, other, options={"kind": kind, "reduction": "none", "clamp": clamp}),
            make_generator((6,), kind=kind, reduction="none", clamp=clamp).but(fake_logits=v),
        ):
            outcome, (loss, gradients) = case.run(backend), case.expected()
            torch.testing.assert_close(outcome.loss.double(), loss, rtol=1e-6, atol=0)
            for found, expected in zip(outcome.grads, gradients, strict=True):
                torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.contract("exactness", op="adversarial")
class TestInputs:
    @pytest.mark.parametrize("reduction", ("mean", "sum"))
    @pytest.mark.parametrize("kind", ("logistic", "hinge"))
    def test_different_shapes_are_two_means(self, backend, kind, reduction):
        fake, real = make_discriminator((6, 5)).fake_logits, make_discriminator((3, 2, 4, 4)).real_logits
        DiscriminatorCase(fake, real.double(), options={"kind": kind, "reduction": reduction, "clamp": 2.0}).check(
            backend
        )

    def test_different_heads_of_each_sample(self, backend):
        fake, real = make_discriminator((6, 5)).fake_logits, make_discriminator((6, 2, 4)).real_logits
        DiscriminatorCase(fake, real, options={"reduction": "none"}).check(backend)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_logits_twice(self, backend, kind):
        logits = make_discriminator((4, 9)).fake_logits.requires_grad_()
        loss = on_device(fdk.discriminator_loss)(logits, logits, kind=kind, backend=backend)
        wide = logits.detach().double().requires_grad_()
        expected = DiscriminatorCase(wide, wide, options={"kind": kind}).formula(wide, wide)
        torch.testing.assert_close(
            torch.autograd.grad(loss, logits)[0].double(), torch.autograd.grad(expected, wide)[0], rtol=1e-6, atol=1e-9
        )

    def test_gradients_go_where_they_are_asked_for(self, backend):
        for name in ("fake_logits", "real_logits"):
            case = make_discriminator((4, 9))
            leaf = getattr(case, name).requires_grad_()
            loss = case.call(backend)
            saved = loss.grad_fn.saved_tensors if hasattr(loss.grad_fn, "saved_tensors") else ()
            assert sum(v.numel() for v in saved) <= 9 * 4  # one gradient's memory
            gradient = torch.autograd.grad(loss, leaf)[0]
            expected = make_discriminator((4, 9)).expected()[1][case.ORDER.index(name)]
            torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=1e-9)

    def test_a_noise_level_for_each_sample(self, backend):
        """As the docstring has it: each sample's mean over its own sigma²."""
        sigma = torch.linspace(0.05, 0.5, 6)
        case = make_penalty((6, 7), reduction="none")
        leaves = case.leaves()
        loss = (case.call(backend, **leaves) / sigma**2).mean()
        wide = [v.detach().double().requires_grad_() for v in leaves.values()]
        expected = ((wide[0] - wide[1]).square().mean(1) / sigma.double() ** 2).mean()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
        found = torch.autograd.grad(loss, (*leaves.values(),))
        for gradient, other in zip(found, torch.autograd.grad(expected, wide), strict=True):
            torch.testing.assert_close(gradient.double(), other, rtol=1e-6, atol=1e-9)


@pytest.mark.contract("peers", op="adversarial")
def test_fastgen(backend):
    """FastGen's gan_loss_discriminator and gan_loss_generator, recorded."""
    with np.load(DATA / "fastgen_gan.npz") as arrays:
        v = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    case = DiscriminatorCase(v["fake_logits"], v["real_logits"])
    outcome = case.check(backend)
    torch.testing.assert_close(outcome.loss, v["disc_loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(outcome.grads, (v["disc_grad_fake"], v["disc_grad_real"]), rtol=1e-5, atol=1e-9)
    outcome = GeneratorCase(v["fake_logits"]).check(backend)
    torch.testing.assert_close(outcome.loss, v["gen_loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(outcome.grad, v["gen_grad"], rtol=1e-5, atol=1e-9)


LOGITS = torch.zeros(4, 3)


@pytest.mark.contract("bad input", op="adversarial")
@pytest.mark.parametrize(
    ("function", "arguments", "options", "error", "message"),
    (
        ("generator_loss", (LOGITS,), {"kind": "wgan"}, ValueError, "kind: expected one of 'logistic', 'hinge', 'rel"),
        ("generator_loss", (LOGITS,), {"kind": "relativistic"}, ValueError, "real_logits: kind 'relativistic' needs"),
        ("generator_loss", (LOGITS, LOGITS), {}, ValueError, "real_logits: expected with kind='relativistic' alone, g"),
        ("generator_loss", (LOGITS,), {"clamp": 0}, ValueError, "clamp: expected a positive number, got 0"),
        ("generator_loss", (LOGITS,), {"clamp": torch.inf}, ValueError, "clamp: expected a finite number, got inf"),
        ("generator_loss", (LOGITS,), {"reduction": "avg"}, ValueError, "reduction: expected one of 'mean', 'sum', 'n"),
        ("generator_loss", (LOGITS[:0],), {}, ValueError, r"fake_logits: expected at least one sample, got shape \(0,"),
        ("generator_loss", (LOGITS[:, :0],), {}, ValueError, "fake_logits: expected at least one element a sample"),
        ("generator_loss", (LOGITS[0, 0],), {}, ValueError, r"fake_logits: expected shape \(B, ...\), got \(\)"),
        ("generator_loss", (LOGITS.int(),), {}, ValueError, "fake_logits: expected a floating dtype"),
        ("generator_loss", ([0.0],), {}, TypeError, "fake_logits: expected a tensor, got list"),
        ("discriminator_loss", (LOGITS, None), {}, TypeError, "real_logits: expected a tensor, got NoneType"),
        ("discriminator_loss", (LOGITS, LOGITS[:0]), {}, ValueError, "real_logits: expected at least one sample"),
        ("discriminator_loss", (LOGITS, LOGITS.int()), {}, ValueError, "real_logits: expected a floating dtype"),
        ("discriminator_loss", (LOGITS, LOGITS[:2].int()), {}, ValueError, "real_logits: expected a floating dtype"),
        ("discriminator_loss", (LOGITS, LOGITS[:2].to("meta")), {}, ValueError, "real_logits: expected device"),
        ("discriminator_loss", (LOGITS, LOGITS[:2]), {"kind": "relativistic"}, ValueError,
         r"real_logits: expected shape \(4, 3\) like fake_logits, got \(2, 3\)"),
        ("discriminator_loss", (LOGITS, LOGITS[:2]), {"reduction": "none"}, ValueError,
         r"real_logits: expected 4 samples like fake_logits with reduction='none', got shape \(2, 3\)"),
        ("gradient_penalty", (LOGITS, LOGITS[:2]), {}, ValueError,
         r"perturbed_logits: expected shape \(4, 3\) like logits, got \(2, 3\)"),
        ("gradient_penalty", (LOGITS, LOGITS), {"sigma": -0.1}, ValueError, "sigma: expected a positive number, got -"),
        ("gradient_penalty", (LOGITS, LOGITS), {"sigma": torch.ones(4)}, ValueError, "sigma: expected a finite number"),
        ("gradient_penalty", (LOGITS, LOGITS.to("meta")), {}, ValueError, "perturbed_logits: expected device"),
    ),
)  # fmt: skip
def test_refused(backend, function, arguments, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        on_device(getattr(fdk, function))(*arguments, backend=backend, **options)


@pytest.mark.contract("raw operands", op="adversarial")
@pytest.mark.backends("native", "triton")
@pytest.mark.parametrize("changes", ({"kind": "relativistic"}, {"kind": "square"}, {"with_others_grad": True}), ids=str)
def test_others_that_a_raw_call_needs(backend, changes):
    from fdkernels._op import registry
    from tests import refusals
    from tests.adversarial import raw_adversarial

    op = registry.ops["adversarial"]
    call = raw_adversarial(**{"others": None, "with_others_grad": False, **changes})
    raw = registry.kernels[f"adversarial_{backend}"]
    assert refusals.is_refused(lambda *given: raw(*given), op.arguments.operands(call), "others")
