"""torch.export and other graphs of raw ops: their gradients are right, or making the graph raises."""

import pytest
import torch
from torch import nn

import fdkernels as fdk
from fdkernels.fdiv.arguments import FDIV
from tests.cases import make
from tests.ops import raw_fdiv

pytestmark = [pytest.mark.contract("autograd"), pytest.mark.cpu_only("what a graph holds is the same everywhere")]

CASE = make((8, 3, 4, 4))
INPUTS = (CASE.student, CASE.teacher, CASE.fake, CASE.logits, CASE.t)


class Student(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, 1, 1))
        self.loss = fdk.FDivLoss("kl", bins=4, backend=backend)

    def forward(self, student, *others):
        return self.loss(student * self.gain, *others)


def step(model):
    loss = model(*INPUTS)
    loss.backward()
    (gain,) = model.parameters()
    (mean,) = model.buffers()
    return loss.detach(), gain.grad, mean


@pytest.mark.parametrize("strict", (True, False))
@pytest.mark.backends("native", "triton")
def test_exported_training_graph(backend, strict):
    program = torch.export.export(Student(backend), INPUTS, strict=strict)
    for exported, eager in zip(step(program.module()), step(Student(backend)), strict=True):
        torch.testing.assert_close(exported, eager, rtol=1e-6, atol=0)


def test_exported_without_gradient(backend):
    model = Student(backend)
    with torch.no_grad():
        program = torch.export.export(model, INPUTS)
        torch.testing.assert_close(program.module()(*INPUTS), Student(backend)(*INPUTS), rtol=1e-6, atol=0)


@pytest.mark.backends("reference")
def test_a_training_graph_of_the_reference_is_refused(backend):
    with pytest.raises(RuntimeError, match="torch.export would lose the gradient of the reference backend"):
        torch.export.export(Student(backend), INPUTS, strict=False)


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("with_grad", (True, False))
@pytest.mark.backends("native", "triton")
def test_gradient_of_the_raw_op(backend, reduction, with_grad):
    """The gradient is right also if the op was called with with_grad=False."""
    call = raw_fdiv(reduction=reduction, update=False)
    op = getattr(torch.ops.fdkernels, f"fdiv_{backend}").default
    _, gradient, *_ = op(*FDIV.operands(call))
    upstream = torch.linspace(0.5, 2, 4) if reduction == "none" else torch.tensor(3.0)
    student = call.student.clone().requires_grad_()
    loss, alone, *_, stats = op(*FDIV.operands(call._replace(student=student, with_grad=with_grad)))
    assert not alone.requires_grad and not stats.requires_grad
    for _ in range(2):
        (found,) = torch.autograd.grad(loss, student, upstream, retain_graph=True)
        torch.testing.assert_close(found, upstream.view(-1, 1, 1, 1) * gradient, rtol=1e-6, atol=0)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss, student, upstream, create_graph=True)
