"""Every loss, under everything that autograd does with it."""

import pytest
import torch

from tests import device
from tests.cases import same_bits

pytestmark = [pytest.mark.contract("autograd"), pytest.mark.needs("gradients", "is_loss")]

SHAPE = (6, 3, 6, 5)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Graph:
    """A case's result with its graph, ready for backward."""

    def __init__(self, case, backend):
        self.case, self.leaves = case, case.leaves()
        self.result = case.call(backend, **self.leaves)

    def grads(self, upstream=None, keep=False, of=None, **options):
        if upstream is not None:
            upstream = torch.as_tensor(upstream, dtype=self.result.dtype)
        of = self.result if of is None else of
        return torch.autograd.grad(of, (*self.leaves.values(),), upstream, retain_graph=keep, **options)

    def hold(self, grads, upstream=None):
        upstream = None if upstream is None else torch.as_tensor(upstream)
        self.case.hold(self.case.outcome(self.result, grads), self.case.expected(), upstream)

    def grad_fields(self):
        return [leaf.grad for leaf in self.leaves.values()]

    def saved(self):
        """The gradients that the op saved for its backward. The result may have moved to another device since."""
        node = self.result.grad_fn
        while not node.saved_tensors:
            node = node.next_functions[0][0]
        sizes = {leaf.numel() for leaf in self.leaves.values()}
        return [v for v in node.saved_tensors if v.numel() in sizes]


@pytest.fixture
def case(op):
    return op.make(SHAPE)


def equal_bits(first, second):
    return all(map(same_bits, first, second))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_retain_graph(op, backend, dtype):
    """Each backward scales the saved gradient, never the gradient that the last backward left."""
    graph = Graph(op.make(SHAPE, dtype), backend)
    for upstream in (2.0, 3.0, 1.0, 0.5, 1.0):
        grads = graph.grads(upstream, keep=True)
        graph.hold(grads, upstream)
        # In-place work on returned gradients (clipping, unscaling) must not reach the saved ones.
        for grad in grads:
            grad.fill_(torch.nan)
    graph.hold(graph.grads(4.0), 4.0)


def test_a_freed_graph_cannot_be_used_again(case, backend):
    result = Graph(case, backend).result
    result.backward()
    with pytest.raises(RuntimeError, match="second time"):
        result.backward()


def test_accumulation(op, case, backend):
    graph, other = Graph(case, backend), op.make(SHAPE, seed=2)
    graph.result.backward()
    first = [grad.clone() for grad in graph.grad_fields()]
    other.call(backend, **graph.leaves).backward()
    second = other.but(**{name: getattr(case, name) for name in op.gradients}).run(backend).grads
    torch.testing.assert_close(graph.grad_fields(), [a + b for a, b in zip(first, second, strict=True)], rtol=0, atol=0)


def test_partial_backward(op, case, backend):
    """Two results of the same tensors: backward through one of them, then through the other."""
    other, graph = op.make(SHAPE, seed=2), Graph(case, backend)
    shared = {name: leaf * 1.0 for name, leaf in graph.leaves.items()}
    first, second = case.call(backend, **shared), other.call(backend, **shared)
    one = graph.grads(keep=True, of=first)
    two = graph.grads(of=second)
    assert equal_bits(one, case.run(backend).grads)
    assert equal_bits(two, other.but(**{name: getattr(case, name) for name in op.gradients}).run(backend).grads)


@pytest.mark.needs("is_loss", "per_sample")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stride_0_upstream(op, backend, dtype):
    graph = Graph(op.make(SHAPE, dtype, **op.per_sample), backend)
    graph.result.sum().backward()
    graph.hold(graph.grad_fields())


@pytest.mark.needs("is_loss", "per_sample")
def test_sliced_and_concatenated_upstream(op, backend):
    case = op.make(SHAPE, **op.per_sample)
    upstream = (torch.arange(24.0) - 7)[::4]
    assert upstream.stride() == (4,)
    case.check(backend, upstream)
    graph = Graph(case, backend)
    torch.cat((graph.result[:2] * 3, torch.zeros(3), graph.result[4:])).sum().backward()
    graph.hold(graph.grad_fields(), [3.0, 3, 0, 0, 1, 1])
    graph = Graph(case, backend)
    graph.result[2].backward()
    graph.hold(graph.grad_fields(), [0.0, 0, 1, 0, 0, 0])


@pytest.mark.needs("is_loss", "per_sample")
@pytest.mark.pairwise
@pytest.mark.parametrize("per_sample", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", (0.0, 65536.0, -1.0, 1 / 3, 2.0**-20))
def test_upstream_values(op, backend, value, dtype, per_sample):
    case = op.make(SHAPE, dtype, **(op.per_sample if per_sample else {}))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    outcome = case.check(backend, torch.full(SHAPE[:1] if per_sample else (), value, dtype=wide))
    if value == 0:
        assert not any(grad.any() for grad in outcome.grads)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
def test_nonfinite_upstream(case, backend, value):
    """The gradient is multiplied by NaN or infinity: a loss scaler looks for them to skip the step."""
    clean = case.run(backend).grads
    for keep in (True, False):
        grads = Graph(case, backend).grads(value, keep=keep)
        torch.testing.assert_close(grads, tuple(v * value for v in clean), rtol=0, atol=0, equal_nan=True)


@pytest.mark.needs("is_loss", "per_sample")
def test_upstream_per_sample_with_one_nan(op, backend):
    outcome = op.make((3, *SHAPE[1:]), **op.per_sample).run(backend, torch.tensor([1.0, torch.nan, 2.0]))
    for grad in outcome.grads:
        assert grad[1].isnan().all() and grad[[0, 2]].isfinite().all()


def test_double_backward_raises(case, backend):
    graph = Graph(case, backend)
    with pytest.raises(RuntimeError):
        grads = graph.grads(create_graph=True)
        sum(
            grad.square().sum() + leaf.sum() for grad, leaf in zip(grads, graph.leaves.values(), strict=True)
        ).backward()
    graph, factor = Graph(case, backend), torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError):
        sum(grad.sum() for grad in graph.grads(of=graph.result * factor, create_graph=True)).backward()


@pytest.mark.cpu_only("what takes the tensors to another device raises first")
@pytest.mark.parametrize("transform", ("grad", "vmap", "jvp", "jacrev"))
def test_torch_func_raises(op, case, backend, transform):
    x = getattr(case, op.gradients[0]).clone()

    def result(x):
        return case.call(backend, **{op.gradients[0]: x})

    with pytest.raises((RuntimeError, TypeError, NotImplementedError)):
        if transform == "vmap":
            torch.func.vmap(result)(torch.stack((x, x)))
        elif transform == "jvp":
            torch.func.jvp(result, (x,), (torch.ones_like(x),))
        else:
            getattr(torch.func, transform)(result)(x)


@pytest.mark.cpu_only("what takes the tensors to another device raises first")
def test_forward_mode_raises(case, backend):
    with torch.autograd.forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
        duals = {k: torch.autograd.forward_ad.make_dual(v, torch.ones_like(v)) for k, v in case.leaves().items()}
        case.call(backend, **duals)


def test_constants_get_no_gradient(op, constant, case, backend):
    """Also constants that require a gradient."""
    case = case.but(**{constant: getattr(case, constant).clone().requires_grad_()})
    graph = Graph(case, backend)
    *grads, none = torch.autograd.grad(
        graph.result, (*graph.leaves.values(), getattr(case, constant)), allow_unused=True
    )
    assert all(grad is not None for grad in grads) and none is None
    assert not case.call(backend).requires_grad


def test_changing_inputs_after_the_forward(case, backend):
    """The gradient is that of the values that went in."""
    expected = case.run(backend).grads
    graph = Graph(case.but(**{name: v.clone() for name, v in case.tensors().items()}), backend)
    with torch.no_grad():
        for v in (*graph.leaves.values(), *graph.case.tensors().values()):
            v.zero_()
    assert equal_bits(graph.grads(), expected)


def test_changing_a_saved_tensor_raises(case, backend):
    graph = Graph(case, backend)
    graph.saved()[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        graph.result.backward()


def test_the_freed_graphs_gradient_counts_as_changed(case, backend):
    """A backward may scale the saved gradient in place. If it does, the tensor's version must change."""
    graph = Graph(case, backend)
    before = [(saved, saved.clone(), saved._version) for saved in graph.saved()]
    assert len(before) == len(graph.leaves)
    graph.result.backward(torch.tensor(2.0))
    assert all(same_bits(saved, copied) or saved._version > version for saved, copied, version in before)


def test_saved_tensors_hooks(case, backend):
    packed = []

    def pack(v):
        packed.append(v.shape)
        return v.clone()

    for keep in (True, False):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v.clone()):
            graph = Graph(case, backend)
        graph.hold(graph.grads(2.0, keep=keep), 2.0)
    assert all(leaf.shape in packed for leaf in graph.leaves.values())


def test_hooks_that_keep_the_packed_tensor(case, backend):
    """Unpacking twice gives the same values, even if a backward worked in place on what it unpacked first."""
    kept = []

    def pack(v):
        kept.append(v)
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, kept.__getitem__):
        graph = Graph(case, backend)
    before = [v.clone() for v in kept]
    first = [grad.clone() for grad in graph.grads(2.0, keep=True)]
    assert equal_bits(first, graph.grads(2.0))
    assert equal_bits(before, kept)


def test_save_on_cpu(case, backend):
    with torch.autograd.graph.save_on_cpu():
        graph = Graph(case, backend)
    assert equal_bits(graph.grads(), case.run(backend).grads)


class _Claimed(torch.autograd.Function):
    """A formula whose gradient is claimed to be the op's gradient at the case's own inputs."""

    @staticmethod
    def forward(ctx, formula, case, backend, *inputs):
        ctx.graph = case.but(**dict(zip(case.GRADIENTS, (v.detach().clone() for v in inputs), strict=True))), backend
        return formula(*inputs)

    @staticmethod
    def backward(ctx, upstream):
        with torch.enable_grad():
            return None, None, None, *Graph(*ctx.graph).grads(upstream)


@pytest.mark.needs("is_loss", "formula")
def test_gradcheck(op, backend):
    """In fp64: the op's gradient against finite differences of a formula in plain PyTorch."""
    case = op.make((3, 2, 3, 2), torch.float64)
    formula = op.formula(case)
    inputs = case.leaves().values()
    assert torch.autograd.gradcheck(lambda *v: _Claimed.apply(formula, case, backend, *v), (*inputs,))
    torch.testing.assert_close(case.run(backend).loss, formula(*case.leaves().values()).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("enabled", (True, False))
def test_autocast(op, backend, dtype, enabled):
    """Autocast chooses the networks' dtypes, not this op's arithmetic."""
    case = op.variants["state"](SHAPE, dtype)
    outside = case.run(backend)
    with torch.autocast(device.name(), torch.bfloat16, enabled=enabled):
        inside = case.check(backend)
    assert inside.same_bits(outside)


def test_inference_mode(case, backend):
    with torch.inference_mode():
        result = case.call(backend)
    assert same_bits(result.clone(), case.run(backend).loss)


def test_a_cast_of_the_result(case, backend):
    """.double() downstream casts the upstream gradient, not the result."""
    for cast in (torch.float64, torch.float32):
        graph = Graph(case, backend)
        (graph.result.to(cast) * 2).backward()
        graph.hold(graph.grad_fields(), 2.0)
        assert all(
            grad.dtype == leaf.dtype for grad, leaf in zip(graph.grad_fields(), graph.leaves.values(), strict=True)
        )


class _SendsNothingBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return None


def test_an_upstream_that_is_none(case, backend):
    """The user of a result may send it no gradient; then the inputs get none, or zeros."""
    graph = Graph(case, backend)
    (_SendsNothingBack.apply(graph.result) + sum(leaf.sum() for leaf in graph.leaves.values())).backward()
    torch.testing.assert_close(graph.grad_fields(), [torch.ones_like(leaf) for leaf in graph.leaves.values()])
