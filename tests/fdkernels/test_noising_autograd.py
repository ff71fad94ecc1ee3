"""`add_noise` is linear in x0: its gradient is α times the upstream, of any shape of graph and to any order."""

import pytest
import torch

import fdkernels as fdk
from fdkernels import testing
from tests.cases import same_bits
from tests.device import on_device
from tests.layouts import LAYOUTS
from tests.noising import make_noising

pytestmark = pytest.mark.contract("autograd", op="noising")

SHAPE = (6, 3, 4, 5)


@pytest.fixture
def case():
    return make_noising(SHAPE, levels="per row")


def graph(case, backend):
    leaf = case.x0.clone().requires_grad_()
    return leaf, case.call(backend, x0=leaf)


def alpha_times(case, upstream):
    return case.expected()[1] * upstream.double()


def test_repeated_backwards(case, backend):
    leaf, x_t = graph(case, backend)
    for seed in range(3):
        upstream = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
        (gradient,) = torch.autograd.grad(x_t, leaf, upstream, retain_graph=True)
        testing.assert_gradient(gradient, alpha_times(case, upstream))
        gradient.fill_(torch.nan)
    x_t.sum().backward()
    testing.assert_gradient(leaf.grad, alpha_times(case, torch.ones(SHAPE)))
    with pytest.raises(RuntimeError, match="second time"):
        x_t.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_upstreams_of_any_layout(case, backend, layout):
    leaf, x_t = graph(case, backend)
    upstream = LAYOUTS[layout](torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))
    testing.assert_gradient(torch.autograd.grad(x_t, leaf, upstream)[0], alpha_times(case, upstream))


def test_partial_upstream(case, backend):
    leaf, x_t = graph(case, backend)
    x_t[2, 1].sum().backward()
    picked = torch.zeros(SHAPE)
    picked[2, 1] = 1
    testing.assert_gradient(leaf.grad, alpha_times(case, picked))


@pytest.mark.parametrize("value", (0.0, 65536.0, torch.nan, torch.inf))
def test_upstream_values(case, backend, value):
    leaf, x_t = graph(case, backend)
    upstream = torch.ones(SHAPE)
    upstream[1] = value
    testing.assert_gradient(torch.autograd.grad(x_t, leaf, upstream)[0], alpha_times(case, upstream))


def test_gradcheck_to_second_order(backend):
    case = make_noising((2, 3, 2), torch.float64)

    def x_t(x0):
        return case.call(backend, x0=x0)

    x0 = case.x0.requires_grad_()
    assert torch.autograd.gradcheck(x_t, x0) and torch.autograd.gradgradcheck(x_t, x0)


def test_the_gradient_of_a_gradient(case, backend):
    leaf, x_t = graph(case, backend)
    upstream = torch.ones(SHAPE, requires_grad=True)
    (gradient,) = torch.autograd.grad(x_t, leaf, upstream, create_graph=True)
    testing.assert_gradient(torch.autograd.grad(gradient.sum(), upstream)[0], alpha_times(case, torch.ones(SHAPE)))


def test_levels_that_change_between_forward_and_backward(case, backend):
    leaf, x_t = graph(case, backend)
    if case.on().alpha is not case.alpha:
        pytest.skip("the op saved the device's copy")
    case.alpha.mul_(2)
    if backend == "reference":  # it saves what it has computed of the levels
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x_t.sum().backward()


def test_no_gradient_where_none_is_wanted(case, backend):
    assert not case.call(backend).requires_grad
    with torch.no_grad():
        assert not case.call(backend, x0=case.x0.clone().requires_grad_()).requires_grad
    with torch.inference_mode():
        result = case.call(backend)
    assert same_bits(result.clone(), case.call(backend))


@pytest.mark.cpu_only("what takes the tensors to another device raises first")
@pytest.mark.parametrize("transform", ("grad", "vmap", "jvp"))
def test_torch_func_raises(case, backend, transform):
    def total(x0):
        return case.call(backend, x0=x0).sum()

    with pytest.raises((RuntimeError, TypeError, NotImplementedError)):
        if transform == "vmap":
            torch.func.vmap(total)(torch.stack((case.x0, case.x0)))
        elif transform == "jvp":
            torch.func.jvp(total, (case.x0,), (torch.ones_like(case.x0),))
        else:
            torch.func.grad(total)(case.x0)


def test_autocast_and_hooks(case, backend):
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.save_on_cpu():
        leaf, x_t = graph(case, backend)
    assert x_t.dtype == torch.float32
    x_t.sum().backward()
    testing.assert_gradient(leaf.grad, alpha_times(case, torch.ones(SHAPE)))


@pytest.mark.parametrize("return_noise", (False, True))
def test_drawn_noise(case, backend, return_noise):
    leaf = case.x0.clone().requires_grad_()
    result = on_device(fdk.add_noise)(leaf, case.alpha, case.sigma, return_noise=return_noise, backend=backend)
    x_t, noise = result if return_noise else (result, None)
    assert noise is None or not noise.requires_grad
    x_t.sum().backward()
    testing.assert_gradient(leaf.grad, alpha_times(case, torch.ones(SHAPE)))


@pytest.mark.host_code("what PyTorch exports")
@pytest.mark.backends("native", "triton")
def test_export(case, backend):
    class Step(torch.nn.Module):
        def forward(self, x0, alpha, sigma, noise):
            return fdk.add_noise(x0 * 2, alpha, sigma, noise, backend=backend)

    placed = case.on()
    given = placed.x0.requires_grad_(), placed.alpha, placed.sigma, placed.noise
    exported = torch.export.export(Step(), given).module()(*given)
    exported.sum().backward()
    testing.assert_gradient(placed.x0.grad.cpu(), 2 * case.expected()[1])
