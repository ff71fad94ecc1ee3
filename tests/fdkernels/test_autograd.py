"""Gradients of `fused_fdiv_loss` beyond test_op_autograd.py: constant options, the GAN term, a loss scaler."""

import pytest
import torch

import fdkernels as fdk
from tests.cases import make, same_bits

pytestmark = pytest.mark.contract("autograd")


def leaf(case):
    return case.student.clone().requires_grad_()


@pytest.mark.parametrize("which", ("uncond", "noisy", "multiplier", "weight"))
def test_constants_among_the_options_get_no_gradient(backend, which):
    case = make((4, 3, 6, 5))
    constant = torch.rand((4,) if which == "weight" else (4, 3, 6, 5)).requires_grad_()
    changes = {
        "uncond": {"teacher_uncond": constant, "guidance_scale": 2.0},
        "noisy": {"prediction": fdk.Prediction("flow_prediction", constant, sigma=0.5)},
        "multiplier": {"multiplier": constant},
        "weight": {"weight": constant, "logits": None, "t": None},
    }
    case, student = case.but(**changes[which]), leaf(case)
    grads = torch.autograd.grad(case.call(backend, student), (student, constant), allow_unused=True)
    assert grads[0] is not None and grads[1] is None
    assert not case.call(backend, case.student.detach()).requires_grad


def test_the_teachers_graph_stays_alive_for_the_gan_term(backend):
    """The teacher may require grad; this loss sends no gradient there."""
    case = make((4, 3, 6, 5))
    source = torch.randn(4, 3, 6, 5, requires_grad=True)
    teacher = source.tanh()
    student = leaf(case)
    gan = teacher.square().mean()
    (case.but(teacher=teacher).call(backend, student) + gan).backward()
    torch.testing.assert_close(source.grad, torch.autograd.grad(source.tanh().square().mean(), source)[0])
    assert same_bits(student.grad, case.but(teacher=teacher.detach()).run(backend).grad)


def test_grad_scaler(backend):
    """A float16 step under a loss scale of 65536: unscaled, its gradient is the oracle's."""
    case = make((4, 3, 16, 16), torch.float32)
    parameter = torch.nn.Parameter(case.student.clone())
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    half = case.but(teacher=case.teacher.half(), fake=case.fake.half(), student=case.student.half())
    scaler.scale(half.call(backend, parameter.half())).backward()
    scaler.unscale_(optimizer)
    want = torch.from_numpy(half.expected().grad)
    assert (parameter.grad.double() - want).norm() / want.norm() < 5e-4
