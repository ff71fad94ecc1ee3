"""Where ops are faked or recorded (FakeTensorMode, make_fx, jit.trace, meta tensors, torch.func), no value is read."""

import warnings

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import fdkernels as fdk
from fdkernels.prediction import KINDS as ALL_KINDS
from tests.cases import normalizer

pytestmark = [
    pytest.mark.contract("compile"),
    pytest.mark.cpu_only("the same Python runs ahead of every device's kernels"),
]

KINDS = {kind: row for kind, row in ALL_KINDS.items() if kind not in ("sample", "affine")}
SHAPE = (8, 3, 4, 4)


def prediction(kind: str, noisy: Tensor, sigma: Tensor | float) -> fdk.Prediction:
    alpha = 1 - sigma if kind == "flow_prediction" else (1 - sigma**2) ** 0.5
    return fdk.Prediction(kind, noisy, alpha=alpha, sigma=sigma)


def coefficients(kind: str, noisy: Tensor, sigma: Tensor) -> Tensor:
    """a and c, formed as a call's kernel forms them."""
    made = prediction(kind, noisy, sigma)
    return torch.stack(torch.broadcast_tensors(*KINDS[kind].coefficients(*levels(made, noisy), made.sigma_data)))


def levels(made: fdk.Prediction, noisy: Tensor) -> list[Tensor]:
    return [torch.as_tensor(level).expand(noisy.shape[0]) for level in made.levels()]


def inputs(requires_grad: bool = True) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    student, teacher, fake, noisy = (torch.randn(SHAPE, generator=generator) for _ in range(4))
    logits, t, sigma = (torch.rand(8, generator=generator) for _ in range(3))
    return student.requires_grad_(requires_grad), teacher, fake, noisy, logits, t, 0.05 + 0.9 * sigma


def gradient(backend: str, kind: str, state: fdk.RatioNormalizer, *tensors: Tensor) -> Tensor:
    student, teacher, fake, noisy, logits, t, sigma = tensors
    loss = fdk.fused_fdiv_loss(
        student, teacher, fake, logits, t, normalizer=state, prediction=prediction(kind, noisy, sigma),
        mask=torch.arange(8) > 1, backend=backend,
    )  # fmt: skip
    return torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_fake_tensors(backend, kind):
    """As a memory estimator does: build everything and run a step with tensors that have no values."""
    with FakeTensorMode():
        tensors = inputs()
        for state in (fdk.RatioNormalizer(4), fdk.RatioNormalizer(3, edges=torch.rand(2)), None):
            assert gradient(backend, kind, state, *tensors).shape == SHAPE
        samples = fdk.RatioNormalizer.from_samples(torch.rand(100))
        assert gradient(backend, kind, samples, *tensors).shape == SHAPE
        prediction(kind, tensors[0], 0.6)


def test_numbers_are_checked_under_fake_tensors_too():
    with FakeTensorMode(), pytest.raises(ValueError, match=r"^alpha, sigma: v_prediction needs .*got a difference of"):
        fdk.Prediction("v_prediction", torch.ones(SHAPE), alpha=0.5, sigma=0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ("real", "fake", "symbolic"))
def test_make_fx_of_a_prediction(kind, mode):
    noisy, sigma = inputs()[3], inputs()[6]
    for pre_dispatch in (False, True):
        graph = make_fx(lambda *v: coefficients(kind, *v), tracing_mode=mode, pre_dispatch=pre_dispatch)(noisy, sigma)
        other = sigma.flip(0)
        assert torch.equal(graph(noisy, other), coefficients(kind, noisy, other))


@pytest.mark.parametrize("mode", ("real", "fake", "symbolic"))
def test_make_fx_of_a_step(backend, mode):
    """The recorded graph gives the call's result on other data: no value of the first data is baked in."""
    state = normalizer(4).eval()

    def step(*tensors: Tensor) -> Tensor:
        return gradient(backend, "v_prediction", state, *tensors)

    graph = make_fx(step, tracing_mode=mode, _allow_non_fake_inputs=True)(*inputs())
    flipped = [v.detach().flip(0) for v in inputs()]
    expected = step(flipped[0].clone().requires_grad_(), *flipped[1:])
    torch.testing.assert_close(graph(*flipped), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_under_torch_func(kind):
    """No value of one sample serves all, and nothing raises: a Prediction is an affine map, with derivatives."""
    noisy, sigma = inputs()[3][:, :1], inputs()[6]
    pair = torch.stack((sigma, sigma.flip(0)))
    mapped = torch.func.vmap(lambda s: coefficients(kind, noisy, s))(pair)
    assert torch.equal(mapped, torch.stack([coefficients(kind, noisy, s) for s in pair]))
    torch.func.jvp(lambda s: coefficients(kind, noisy, s), (sigma,), (torch.ones_like(sigma),))


@pytest.mark.parametrize("kind", KINDS)
def test_jit_trace_sees_no_value(kind):
    noisy, sigma = inputs()[3], inputs()[6]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = torch.jit.trace(lambda *v: coefficients(kind, *v), (noisy, sigma))
    told = [str(w.message) for w in caught if "prediction.py" in w.filename and "Python number" in str(w.message)]
    assert not told
    assert torch.equal(traced(noisy, sigma.flip(0)), coefficients(kind, noisy, sigma.flip(0)))


class Unreadable(Tensor):
    """A subclass that does not let anyone read its values."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (Tensor.item, Tensor.aminmax, Tensor.tolist, Tensor.__bool__, Tensor.__float__):
            raise AssertionError(f"{func.__name__} of a subclass")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_subclasses(kind):
    noisy, sigma = inputs()[3], inputs()[6]
    found = coefficients(kind, noisy, sigma.as_subclass(Unreadable))
    assert torch.equal(found.as_subclass(Tensor), coefficients(kind, noisy, sigma))
    prediction(kind, noisy, torch.nn.Parameter(sigma))
    with pytest.raises(ValueError, match="^sigma: expected finite"):
        fdk.Prediction(kind, noisy, alpha=sigma, sigma=torch.nn.Parameter(-sigma))


@pytest.mark.parametrize("kind", KINDS)
def test_meta_tensors(kind):
    with torch.device("meta"):
        state = fdk.RatioNormalizer(4)
        student, *others = (torch.empty_like(v) for v in inputs())
        assert gradient("auto", kind, state, student.requires_grad_(), *others).is_meta
        prediction(kind, torch.ones(SHAPE), 0.6)


@pytest.mark.parametrize("kind", KINDS)
def test_another_default_device(kind):
    """Levels on the CPU are checked on the CPU, whatever the default device is."""
    noisy, sigma = inputs()[3], inputs()[6]
    with torch.device("meta"):
        prediction(kind, noisy, sigma)
        with pytest.raises(ValueError, match=r"^sigma: expected finite"):
            fdk.Prediction(kind, noisy, alpha=sigma, sigma=-sigma)


def test_modes_that_run_what_they_see():
    """Under an operation counter, values exist: they are checked and kept."""
    with FlopCounterMode(display=False):
        samples = fdk.RatioNormalizer.from_samples(100 * torch.rand(100), bins=4)
        with pytest.raises(ValueError, match="edges: expected finite, strictly increasing"):
            fdk.RatioNormalizer(3, edges=[0.9, 0.1])
        with pytest.raises(ValueError, match=r"alpha: expected finite numbers >= 0"):
            fdk.Prediction("epsilon", torch.zeros(8, 3), alpha=-torch.ones(8), sigma=torch.ones(8))
    assert samples.t_range[1] > 90
