"""The gradient under everything that autograd does with it."""

import pytest
import torch

import fdkernels as fdk
from tests import device
from tests.cases import Outcome, make, normalizer, same_bits

pytestmark = pytest.mark.contract("autograd")

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def leaf(case):
    return case.student.clone().requires_grad_()


def saved_gradient(case, loss):
    """What the op saved for its backward; the loss may have been moved since."""
    node = loss.grad_fn
    while not node.saved_tensors:
        node = node.next_functions[0][0]
    (saved,) = [v for v in node.saved_tensors if v.numel() == case.student.numel()]
    return saved


def _outcome(loss, grad):
    return Outcome(loss.detach(), grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_retain_graph(backend, dtype):
    """Each backward scales the same saved gradient: none scales what the last one left."""
    case = make((4, 3, 6, 5), dtype)
    expected = torch.from_numpy(case.expected().grad)
    student = leaf(case)
    loss = case.call(backend, student)
    for upstream in (2.0, 3.0, 1.0, 0.5, 1.0):
        (grad,) = torch.autograd.grad(loss, student, torch.tensor(upstream, dtype=loss.dtype), retain_graph=True)
        case.hold(_outcome(loss, grad), case.expected(), torch.tensor(upstream))
        # In-place work on what came back (clipping, unscaling) must not reach what is saved.
        grad.fill_(torch.nan)
    (grad,) = torch.autograd.grad(loss, student, torch.tensor(4.0, dtype=loss.dtype))
    case.hold(_outcome(loss, grad), case.expected(), torch.tensor(4.0))
    assert expected.shape == grad.shape


def test_a_freed_graph_cannot_be_used_again(backend):
    case = make()
    student = leaf(case)
    loss = case.call(backend, student)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_accumulation(backend):
    case, other = make(seed=1), make(seed=2)
    student = leaf(case)
    case.call(backend, student).backward()
    first = student.grad.clone()
    other.call(backend, student).backward()
    second = other.but(student=case.student).run(backend).grad
    torch.testing.assert_close(student.grad, first + second, rtol=0, atol=0)


def test_partial_backward(backend):
    """Two losses of one student, backward through one of them, then the other."""
    case, other = make(seed=1), make(seed=2)
    student = leaf(case)
    doubled = student * 1.0
    first, second = case.call(backend, doubled), other.call(backend, doubled)
    (a,) = torch.autograd.grad(first, student, retain_graph=True)
    (b,) = torch.autograd.grad(second, student)
    assert same_bits(a, case.run(backend).grad)
    assert same_bits(b, other.but(student=case.student).run(backend).grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stride_0_upstream(backend, dtype):
    case = make((6, 3, 6, 5), dtype, reduction="none")
    student = leaf(case)
    case.call(backend, student).sum().backward()
    case.hold(_outcome(case.run(backend).loss, student.grad), case.expected(), None)


def test_sliced_and_concatenated_upstream(backend):
    case = make((6, 3, 6, 5), reduction="none")
    upstream = (torch.arange(24.0) - 7)[::4]
    assert upstream.stride() == (4,)
    case.check(backend, upstream)
    student = leaf(case)
    loss = case.call(backend, student)
    torch.cat((loss[:2] * 3, torch.zeros(3), loss[4:])).sum().backward()
    case.hold(_outcome(loss, student.grad), case.expected(), torch.tensor([3.0, 3, 0, 0, 1, 1]))


def test_part_of_none(backend):
    case = make((6, 3, 6, 5), reduction="none")
    student = leaf(case)
    loss = case.call(backend, student)
    loss[2].backward()
    case.hold(_outcome(loss, student.grad), case.expected(), torch.tensor([0.0, 0, 1, 0, 0, 0]))


@pytest.mark.pairwise
@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", (0.0, 65536.0, -1.0, 1 / 3, 2.0**-20))
def test_upstream_values(backend, value, dtype, reduction):
    case = make((4, 3, 6, 5), dtype, reduction=reduction)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = torch.full((4,) if reduction == "none" else (), value, dtype=wide)
    outcome = case.check(backend, upstream)
    if value == 0:
        assert not outcome.grad.any()


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
def test_nonfinite_upstream(backend, value):
    """As a multiplication would: what a loss scaler looks for to skip the step."""
    case = make((4, 3, 6, 5))
    clean = case.run(backend).grad
    for keep in (True, False):
        student = leaf(case)
        loss = case.call(backend, student)
        (grad,) = torch.autograd.grad(loss, student, torch.tensor(value), retain_graph=keep)
        torch.testing.assert_close(grad, clean * value, rtol=0, atol=0, equal_nan=True)


def test_upstream_per_sample_with_one_nan(backend):
    case = make((3, 3, 6, 5), reduction="none")
    outcome = case.run(backend, torch.tensor([1.0, torch.nan, 2.0]))
    assert outcome.grad[1].isnan().all() and outcome.grad[[0, 2]].isfinite().all()


def test_double_backward_raises(backend):
    case = make()
    student = leaf(case)
    with pytest.raises(RuntimeError):
        loss = case.call(backend, student)
        (grad,) = torch.autograd.grad(loss, student, create_graph=True)
        (grad.square().sum() + student.sum()).backward()


def test_double_backward_with_an_upstream_that_needs_grad_raises(backend):
    case = make()
    student, factor = leaf(case), torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError):
        (grad,) = torch.autograd.grad(case.call(backend, student) * factor, student, create_graph=True)
        grad.sum().backward()


@pytest.mark.cpu_only("what takes the student to another device raises first")
@pytest.mark.parametrize("transform", ("grad", "vmap", "jvp", "jacrev"))
def test_torch_func_raises(backend, transform):
    case = make()
    student = case.student.clone()

    def loss(x):
        return case.call(backend, x)

    with pytest.raises((RuntimeError, TypeError, NotImplementedError)):
        if transform == "grad":
            torch.func.grad(loss)(student)
        elif transform == "jacrev":
            torch.func.jacrev(loss)(student)
        elif transform == "vmap":
            torch.func.vmap(loss)(torch.stack((student, student)))
        else:
            torch.func.jvp(loss, (student,), (torch.ones_like(student),))


@pytest.mark.cpu_only("what takes the student to another device raises first")
def test_forward_mode_raises(backend):
    case = make()
    with torch.autograd.forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
        case.call(backend, torch.autograd.forward_ad.make_dual(leaf(case), torch.ones_like(case.student)))


@pytest.mark.parametrize("which", ("teacher", "fake", "logits", "uncond", "noisy", "multiplier", "weight"))
def test_constants_of_the_loss_get_no_gradient(backend, which):
    """The teacher may require grad, since its graph feeds the GAN term; this loss sends nothing there."""
    case = make((4, 3, 6, 5))
    constant = torch.rand(4, 3, 6, 5).requires_grad_()
    change = {"teacher": {"teacher": constant}, "fake": {"fake": constant}}
    change["logits"] = {"logits": case.logits.clone().requires_grad_()}
    change["uncond"] = {"teacher_uncond": constant, "guidance_scale": 2.0}
    change["noisy"] = {"prediction": fdk.Prediction("flow_prediction", constant, sigma=0.5)}
    change["multiplier"] = {"multiplier": constant}
    change["weight"] = {"weight": torch.rand(4).requires_grad_(), "logits": None, "t": None}
    case = case.but(**change[which])
    leaves = [v for v in (constant, case.logits, case.options.get("weight")) if v is not None and v.requires_grad]
    for frozen in leaves:
        student = leaf(case)
        grads = torch.autograd.grad(case.call(backend, student), (student, frozen), allow_unused=True)
        assert grads[0] is not None and grads[1] is None
    frozen_student = case.call(backend, case.student.detach())
    assert not frozen_student.requires_grad


def test_the_teachers_graph_stays_alive_for_the_gan_term(backend):
    case = make((4, 3, 6, 5))
    source = torch.randn(4, 3, 6, 5, requires_grad=True)
    teacher = source.tanh()
    student = leaf(case)
    gan = teacher.square().mean()
    (case.but(teacher=teacher).call(backend, student) + gan).backward()
    torch.testing.assert_close(source.grad, torch.autograd.grad(source.tanh().square().mean(), source)[0])
    assert same_bits(student.grad, case.but(teacher=teacher.detach()).run(backend).grad)


def test_changing_inputs_after_the_forward(backend):
    """The gradient is of the values that went in; a backward that could not know them raises."""
    case = make((4, 3, 6, 5))
    expected = case.run(backend).grad
    inputs = case.but(teacher=case.teacher.clone(), fake=case.fake.clone(), logits=case.logits.clone())
    student = leaf(case)
    loss = inputs.call(backend, student)
    with torch.no_grad():
        for v in (student, inputs.teacher, inputs.fake, inputs.logits):
            v.zero_()
    loss.backward()
    assert same_bits(student.grad, expected)


def test_changing_a_saved_tensor_raises(backend):
    case = make((4, 3, 6, 5))
    loss = case.call(backend, leaf(case))
    saved_gradient(case, loss).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_freed_graphs_gradient_counts_as_changed(backend):
    """A backward may scale the saved gradient in place; then its version says so, or it is untouched."""
    case = make((4, 3, 6, 5))
    student = leaf(case)
    loss = case.call(backend, student)
    saved = saved_gradient(case, loss)
    before, version = saved.clone(), saved._version
    loss.backward(torch.tensor(2.0))
    assert same_bits(before, saved) or saved._version > version


def test_saved_tensors_hooks(backend):
    case = make((4, 3, 6, 5))
    packed = []

    def pack(v):
        packed.append(v.shape)
        return v.clone()

    for keep in (True, False):
        student = leaf(case)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v.clone()):
            loss = case.call(backend, student)
        (grad,) = torch.autograd.grad(loss, student, torch.tensor(2.0), retain_graph=keep)
        case.hold(_outcome(loss, grad), case.expected(), torch.tensor(2.0))
    assert case.student.shape in packed


def test_hooks_that_keep_the_packed_tensor(backend):
    """Unpacking twice gives the same, even if a backward worked in place on what it unpacked first."""
    case = make((4, 3, 6, 5))
    student = leaf(case)
    with torch.autograd.graph.saved_tensors_hooks(lambda v: v, lambda v: v):
        loss = case.call(backend, student)
    (first,) = torch.autograd.grad(loss, student, torch.tensor(2.0), retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(loss, student, torch.tensor(2.0))
    assert same_bits(first, second)


def test_save_on_cpu(backend):
    case = make((4, 3, 6, 5))
    student = leaf(case)
    with torch.autograd.graph.save_on_cpu():
        loss = case.call(backend, student)
    loss.backward()
    assert same_bits(student.grad, case.run(backend).grad)


class _PseudoTarget(torch.autograd.Function):
    """½ mean (x - target)², whose gradient at the case's student is claimed to be the backend's."""

    @staticmethod
    def forward(ctx, x, target, call):
        ctx.call, ctx.at = call, x.detach().clone()
        return 0.5 * (x - target).square().mean()

    @staticmethod
    def backward(ctx, upstream):
        student = ctx.at.requires_grad_()
        with torch.enable_grad():
            loss = ctx.call(student)
        return *torch.autograd.grad(loss, student, upstream), None, None


def test_gradcheck(backend):
    """In fp64, against finite differences of the form that every peer writes: 0.5·mse(x, stop_gradient(x - g))."""
    case = make((3, 2, 3, 2), torch.float64, ratio_range=None)
    g = torch.from_numpy(case.expected().grad) * case.student.numel()
    target = case.student - g
    x = case.student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: _PseudoTarget.apply(v, target, lambda s: case.call(backend, s)), x)
    loss = 0.5 * (case.student - target).square().mean()
    torch.testing.assert_close(case.run(backend).loss, loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("enabled", (True, False))
def test_autocast(backend, dtype, enabled):
    """Autocast chooses the networks' dtypes, not this loss's arithmetic."""
    case = make((4, 3, 6, 5), dtype, normalizer=normalizer())
    outside = case.run(backend)
    with torch.autocast(device.name(), torch.bfloat16, enabled=enabled):
        inside = case.check(backend)
    assert same_bits(inside.grad, outside.grad) and same_bits(inside.loss, outside.loss)
    assert same_bits(inside.mean, outside.mean)


def test_grad_scaler(backend):
    """A float16 parameter under a loss scale of 65536: unscaled, it is the gradient."""
    case = make((4, 3, 16, 16), torch.float32)
    parameter = torch.nn.Parameter(case.student.clone())
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    half = case.but(teacher=case.teacher.half(), fake=case.fake.half(), student=case.student.half())
    scaler.scale(half.call(backend, parameter.half())).backward()
    scaler.unscale_(optimizer)
    want = torch.from_numpy(half.expected().grad)
    assert (parameter.grad.double() - want).norm() / want.norm() < 5e-4


def test_inference_mode(backend):
    case = make()
    with torch.inference_mode():
        loss = case.call(backend)
    assert same_bits(loss.clone(), case.run(backend).loss)


def test_a_cast_of_the_loss(backend):
    """loss.half() or .double() downstream casts the upstream gradient, not the result."""
    case = make()
    for cast in (torch.float64, torch.float32):
        student = leaf(case)
        (case.call(backend, student).to(cast) * 2).backward()
        case.hold(_outcome(case.run(backend).loss, student.grad), case.expected(), torch.tensor(2.0))
        assert student.grad.dtype == student.dtype


def test_saved_tensor_hooks_keep_their_tensors(backend):
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return len(kept) - 1

    case = make((8, 3, 4, 4))
    with torch.autograd.graph.saved_tensors_hooks(pack, kept.__getitem__):
        loss = case.call(backend, case.student.requires_grad_())
    before = [tensor.clone() for tensor in kept]
    (3 * loss).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))


class _SendsNothingBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return None


def test_an_upstream_that_is_none(backend):
    """What uses the loss may send it no gradient; then the student gets none, or zeros."""
    case = make((2, 3, 4, 4), divergence="rkl", heads=None)
    student = case.student.clone().requires_grad_()
    loss = device.on_device(fdk.fused_fdiv_loss)(student, case.teacher, case.fake, divergence="rkl", backend=backend)
    (_SendsNothingBack.apply(loss) + student.sum()).backward()
    torch.testing.assert_close(student.grad, torch.ones_like(student))
