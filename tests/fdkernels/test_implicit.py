"""`score_implicit_loss`: exact losses and gradients, what gets none, samples at the limits, SiD's recorded losses."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fdkernels as fdk
from fdkernels import testing
from fdkernels.implicit.arguments import IMPLICIT
from fdkernels.implicit.triton_plan import Limits, plan
from tests.device import on_device
from tests.implicit import make_implicit, raw_implicit, weighted_implicit

DATA = Path(__file__).parents[1] / "data"
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
KINDS = ("sid", "sim")
SHAPE = (5, 3, 6, 7)
EACH = torch.linspace(0.3, 2, 5)


@pytest.mark.contract("exactness", op="implicit")
class TestExactness:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_kinds(self, backend, kind, dtype):
        make_implicit(SHAPE, dtype, kind=kind).check(backend)
        weighted_implicit(SHAPE, dtype, kind=kind).check(backend)

    @pytest.mark.pairwise
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("fake", DTYPES, ids=str)
    @pytest.mark.parametrize("teacher", DTYPES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_any_mix_of_dtypes(self, backend, dtype, teacher, fake, kind):
        case = weighted_implicit(SHAPE, dtype, kind=kind)
        case.but(teacher=case.teacher.to(teacher), fake=case.fake.to(fake)).check(backend)

    @pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_reductions(self, backend, dtype, kind, reduction):
        weighted_implicit(SHAPE, dtype, kind=kind, reduction=reduction).check(backend)

    @pytest.mark.parametrize("alpha", (0.5, 1.0, 1.2, 2, -1.0))
    def test_alpha(self, backend, alpha):
        make_implicit(SHAPE, alpha=alpha).check(backend)

    @pytest.mark.parametrize("floor", (0.0, 0.38, 3.0))
    def test_floor(self, backend, floor):
        """0.38 lies between the samples' means."""
        case = make_implicit(SHAPE, floor=floor)
        case.student[1] = case.teacher[1] + 1e-3
        assert (case.student - case.teacher).abs().mean((1, 2, 3)).gt(0.38).unique().numel() == 2
        case.check(backend)

    @pytest.mark.parametrize("c", (1e-4, 0.5, 40.0))
    @pytest.mark.parametrize("score_scale", (None, 1.7, -1.7, EACH, EACH.double(), EACH.bfloat16()), ids=repr)
    def test_score_scale(self, backend, score_scale, c):
        make_implicit(SHAPE, kind="sim", score_scale=score_scale, c=c).check(backend)

    @pytest.mark.parametrize(
        "weight", (0.0, 2.5, EACH, EACH.half(), (EACH, 0.5), (2.0, EACH), (EACH, EACH**2), (0.0, EACH)), ids=repr
    )
    @pytest.mark.parametrize("kind", KINDS)
    def test_weights(self, backend, kind, weight):
        make_implicit(SHAPE, kind=kind, weight=weight).check(backend)

    def test_shapes_of_a_value_a_sample(self, backend):
        case = make_implicit(SHAPE, kind="sim", score_scale=EACH, weight=EACH)
        expected = case.run(backend)
        strided = torch.stack((EACH, torch.full_like(EACH, torch.nan)), 1)[:, 0]
        for values in (EACH.reshape(5, 1, 1, 1), strided):
            assert case.but(score_scale=values, weight=values).run(backend).same_bits(expected)
        for one in (torch.tensor(1.5), torch.tensor([1.5])):
            case.but(score_scale=one, weight=(one, one)).check(backend)
        same = case.but(score_scale=1.5, weight=1.5).run(backend)
        assert case.but(score_scale=torch.tensor(1.5), weight=torch.tensor(1.5)).run(backend).same_bits(same)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
    def test_the_gradients_add_up_to_0(self, backend, dtype, kind):
        grads = weighted_implicit(SHAPE, dtype, kind=kind).run(backend).grads
        total, size = (sum(each(grad.double()) for grad in grads) for each in (lambda v: v, torch.abs))
        assert (total.abs() <= size * (2**-7 if dtype == torch.bfloat16 else 2**-22)).all() and size.max() > 0

    def test_sid_is_the_squared_form_of_sim(self, backend):
        """Where each divisor is the same constant: floor is larger than omega, and c larger than the root."""
        case, constant = make_implicit(SHAPE, torch.float64, reduction="sum"), 1e9
        squared = case.but(alpha=1.0, floor=constant).run(backend)
        root = case.but(kind="sim", c=constant).run(backend)
        torch.testing.assert_close(root.loss, squared.loss, rtol=1e-12, atol=0)
        for found, expected in zip(root.grads, squared.grads, strict=True):
            assert testing.relative_l2(found, expected) < 1e-12

    @pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, torch.float64), ids=str)
    def test_a_fake_score_that_has_learned_the_student(self, backend, dtype):
        """Terms of e and d cancel: f - x is a thousandth of them."""
        case = make_implicit((4, 999), dtype, alpha=1.0)
        fake = case.student.double() * (1 + 1e-3 * torch.linspace(-1, 2, 999, dtype=torch.float64))
        for kind in KINDS:
            near = make_implicit((4, 999), dtype, kind=kind, **({"alpha": 1.0} if kind == "sid" else {}))
            near.but(fake=fake.to(dtype)).check(backend)

    @pytest.mark.parametrize("score_scale", (0.0, 1e-10, 1.0, 1e30))
    @pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
    def test_a_fake_score_that_starts_as_the_teacher(self, backend, dtype, score_scale):
        """e = 0: no loss, and a gradient for the fake score and the teacher alone."""
        for kind in KINDS:
            case = make_implicit((3, 700), dtype, kind=kind, weight=1e-30 if score_scale == 1e30 else None)
            if kind == "sim":
                case = case.but(score_scale=score_scale)
            case = case.but(fake=case.teacher.clone())
            outcome = case.check(backend)
            assert outcome.loss == 0 and not outcome.grads[0].any()
            assert outcome.grads[2].any() == (kind == "sid" or score_scale > 0)

    @pytest.mark.parametrize("size", (1e-18, 1e18))
    @pytest.mark.parametrize("kind", KINDS)
    def test_squares_beyond_float32(self, backend, kind, size):
        """They are added up in float64. The loss is 1e18 at most: sid's is of the inputs' size."""
        case = make_implicit((3, 700), kind=kind, score_scale=1.0) if kind == "sim" else make_implicit((3, 700))
        scaled = case.but(**{name: getattr(case, name) * size for name in case.ORDER})
        scaled.but(**({"c": 0.5 * size} if kind == "sim" else {"floor": 1e-30})).check(backend)

    def test_a_sample_of_each_size(self, backend):
        """The float32 products of the first underflow, those of the last overflow."""
        sizes = torch.tensor([1e-19, 1e-8, 1.0, 1e19])[:, None]
        case = make_implicit((4, 700), reduction="none", floor=0.0)
        case.but(**{name: getattr(case, name) * sizes for name in case.ORDER}).check(backend)

    @pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
    @pytest.mark.parametrize("name", ("student", "teacher", "fake"))
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_not_finite_reaches_its_sample(self, backend, kind, name, value):
        case = make_implicit((4, 37), kind=kind, reduction="none")
        expected = case.run(backend)
        getattr(case, name)[1, 5] = value
        outcome, others = case.run(backend), [0, 2, 3]
        for found, clean in zip((outcome.loss, *outcome.grads), (expected.loss, *expected.grads), strict=True):
            assert found[1].isnan().all() and torch.equal(found[others], clean[others])
        assert case.but(reduction="mean").run(backend).loss.isnan()

    @pytest.mark.parametrize("name", ("score_scale", "weight"))
    def test_a_constant_that_is_not_finite_reaches_its_sample(self, backend, name):
        case = make_implicit(SHAPE, kind="sim", **{name: torch.tensor([1.0, torch.nan, 1, 1, 1])})
        grad = case.run(backend).grad
        assert grad[1].isnan().all() and grad[[0, 2, 3, 4]].isfinite().all()


@pytest.mark.contract("autograd", op="implicit")
@pytest.mark.parametrize(
    "wanted", ((), ("student",), ("teacher",), ("fake",), ("student", "fake"), ("teacher", "fake"))
)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_what_requires_no_gradient_gets_none(backend, dtype, wanted):
    """It gets no memory either. The loss and the other gradients have the same bits."""
    case = make_implicit(SHAPE, dtype)
    expected = case.run(backend)
    inputs = {name: getattr(case, name).clone().requires_grad_(name in wanted) for name in case.ORDER}
    loss = case.call(backend, **inputs)
    assert loss.requires_grad == bool(wanted) and torch.equal(loss.detach(), expected.loss)
    if not wanted:
        return
    node = loss.grad_fn
    while not node.saved_tensors:
        node = node.next_functions[0][0]
    saved = [gradient.numel() for gradient in node.saved_tensors[::2]]
    assert saved == [case.student.numel() * (name in wanted) for name in case.ORDER]
    loss.backward()
    for (name, tensor), grad in zip(inputs.items(), expected.grads, strict=True):
        assert (tensor.grad is not None) == (name in wanted)
        assert tensor.grad is None or torch.equal(tensor.grad, grad)


@pytest.mark.contract("autograd", op="implicit")
@pytest.mark.cpu_only("what a graph holds is the same everywhere")
@pytest.mark.backends("native", "triton")
@pytest.mark.parametrize("asked", (True, False))
def test_gradients_of_the_raw_op(backend, asked):
    """Those that autograd wants, also if the op was called without their flags."""
    op = getattr(torch.ops.fdkernels, f"implicit_{backend}").default
    _, expected, _, _, _, of_fake, *_ = op(*IMPLICIT.operands(raw_implicit()))
    call = raw_implicit(with_student_grad=asked, with_teacher_grad=False, with_fake_grad=asked)
    student, fake = (v.clone().requires_grad_() for v in (call.student, call.fake))
    loss, *_ = op(*IMPLICIT.operands(call._replace(student=student, fake=fake)))
    for _ in range(2):
        found = torch.autograd.grad(loss, (student, fake), torch.tensor(3.0), retain_graph=True)
        torch.testing.assert_close(found, (3 * expected, 3 * of_fake), rtol=1e-6, atol=0)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss, student, create_graph=True)


FLOATS = {
    "sid": lambda v: {"alpha": 1 + 0.1 * v, "floor": 0.1 * v, "weight": (v, 0.5 * v)},
    "sim": lambda v: {"kind": "sim", "c": 2 * v, "score_scale": 1 + v, "weight": v},
}


@pytest.mark.contract("compile", op="implicit")
@pytest.mark.host_code("how floats travel to an op")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", FLOATS)
def test_floats_that_change_in_one_graph(backend, name):
    case = make_implicit((6, 3, 4, 4)).on()

    def step(student, teacher, fake, value):
        return fdk.score_implicit_loss(student, teacher, fake, backend=backend, **FLOATS[name](value))

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for i, value in enumerate((2.0, 3.5, 1.25, 0.5)):
        found, expected = case.leaves().values(), case.leaves().values()
        with torch.compiler.set_stance("fail_on_recompile" if i > 1 and torch.__version__ >= "2.13" else "default"):
            loss = compiled(*found, value)
        loss.backward()
        step(*expected, value).backward()
        for one, other in zip(found, expected, strict=True):
            assert testing.relative_l2(one.grad, other.grad) < 1e-6, value


@pytest.mark.parametrize("is_wide", (False, True))
@pytest.mark.parametrize("elements", (1, 1_000, 4_096, 4_097, 8_192, 8_193, 65_536, 3 << 20, 2**31 - 1, 3 << 30))
@pytest.mark.parametrize("batch", (1, 8, 3_000))
def test_the_plan_of_triton(batch, elements, is_wide):
    """Each element has one program. A program that reports adds a bounded number of sums at a time."""
    found = plan(batch, elements, is_wide, Limits())
    covered = found.tile * found.tiles
    assert covered * found.programs >= elements > covered * (found.programs - 1)
    assert (found.schedule == "whole") == (elements <= (4_096 if is_wide else 8_192))
    assert found.schedule == "split" or found.programs == found.tiles == 1
    assert found.wide_offsets == (covered * found.programs >= 2**31)
    assert found.samples * found.pieces <= 1_024 and found.num_warps in (4, 8, 16)
    sizes = (found.tile, found.samples, found.pieces)
    assert all(size & (size - 1) == 0 for size in sizes)


@pytest.mark.contract("peers", op="implicit")
@pytest.mark.parametrize("alpha", ("1.0", "1.2"))
def test_sid(backend, alpha):
    """SiD's generator loss, recorded, with the gradients of all three."""
    with np.load(DATA / f"sid_alpha{alpha}.npz") as arrays:
        v = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    inputs = {name: v[name].clone().requires_grad_() for name in ("student", "teacher", "fake")}
    loss = on_device(fdk.score_implicit_loss)(
        *inputs.values(), alpha=float(v["sid_alpha"]), reduction="sum", backend=backend
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), v["loss"], rtol=1e-6, atol=0)
    for name, tensor in inputs.items():
        assert testing.relative_l2(tensor.grad, v[f"grad_{name}"]) < 1e-6


@pytest.mark.contract("bad input", op="implicit")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    (
        ({"kind": "sidd"}, ValueError, "kind: expected one of 'sid', 'sim', got 'sidd'"),
        ({"kind": "sim", "c": None}, ValueError, "c: kind 'sim' needs it, got None"),
        ({"kind": "sim", "c": 0}, ValueError, "c: expected a positive number, got 0"),
        ({"kind": "sim", "c": torch.nan}, ValueError, "c: expected a finite number, got nan"),
        ({"c": 0.1}, ValueError, "c: expected with kind='sim', got kind='sid'"),
        ({"kind": "sim", "alpha": 1.2}, ValueError, "alpha: expected with kind='sid', got kind='sim'"),
        ({"kind": "sim", "floor": 0.0}, ValueError, "floor: expected with kind='sid', got kind='sim'"),
        ({"score_scale": 2.0}, ValueError, "score_scale: expected with kind='sim', got kind='sid'"),
        ({"alpha": "1"}, ValueError, "alpha: expected a finite number, got '1'"),
        ({"floor": -1e-5}, ValueError, "floor: expected a number >= 0, got -1e-05"),
        ({"kind": "sim", "score_scale": "1"}, TypeError, "score_scale: expected a number or a tensor, got str"),
        ({"kind": "sim", "score_scale": torch.inf}, ValueError, "score_scale: expected a finite number, got inf"),
        (
            {"kind": "sim", "score_scale": torch.ones(3)},
            ValueError,
            r"score_scale: expected one number a sample.*\(4,\)",
        ),
        ({"weight": True}, TypeError, "weight: expected a number or a tensor, got bool"),
        ({"weight": (1.0,)}, ValueError, r"weight: expected a number, a tensor or a pair of these, got \(1.0,\)"),
        ({"weight": (1.0, "2")}, TypeError, r"weight\[1\]: expected a number or a tensor, got str"),
        (
            {"weight": torch.ones(4, 3)},
            ValueError,
            r"weight: expected one number a sample, of shape \(4,\) or.*\(4, 3\)",
        ),
        ({"weight": torch.ones(4) > 0}, ValueError, "weight: expected a real dtype, got torch.bool"),
        ({"weight": torch.ones(4, requires_grad=True)}, ValueError, "weight: expected a tensor without gradient"),
        (
            {"weight": (1, torch.ones(4, requires_grad=True))},
            ValueError,
            r"weight\[1\]: expected a tensor without grad",
        ),
        (
            {"kind": "sim", "score_scale": torch.ones(4, requires_grad=True)},
            ValueError,
            "score_scale: expected a tensor without gradient, which it would not get; pass score_scale.detach",
        ),
        ({"weight": torch.ones(4, device="meta")}, ValueError, "weight: expected device"),
        ({"reduction": "avg"}, ValueError, "reduction: expected one of 'mean', 'sum', 'none', got 'avg'"),
    ),
    ids=str,
)
def test_refused(backend, changes, error, message):
    with pytest.raises(error, match=message):
        make_implicit(**changes).call(backend)


@pytest.mark.contract("bad input", op="implicit")
@pytest.mark.host_code("no kernel runs")
def test_an_empty_batch(backend):
    with pytest.raises(ValueError, match=r"student: expected at least one sample, got shape \(0, 3\)"):
        fdk.score_implicit_loss(*(torch.zeros(0, 3),) * 3, backend=backend)
