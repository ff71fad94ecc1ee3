"""Activation checkpointing runs a forward twice: the normalizer moves once, and the gradient stays right."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fdkernels as fdk
from tests.cases import make, normalizer
from tests.device import place

pytestmark = [
    pytest.mark.contract("state"),
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.host_code("which forward updates the state"),
]

CASE = make((16, 3, 4, 4)).on()


def checkpointed(step, reentrant):
    return lambda student: checkpoint(step, student, use_reentrant=reentrant)


def compiled(step):
    return torch.compile(step, backend="aot_eager")


WAYS = {
    "reentrant": lambda step: checkpointed(step, True),
    "not reentrant": lambda step: checkpointed(step, False),
    "reentrant, of a compiled step": lambda step: checkpointed(compiled(step), True),
    "of a compiled step": lambda step: checkpointed(compiled(step), False),
    "inside a compiled step": lambda step: compiled(checkpointed(step, False)),
}
OWN = fdk.Divergence("test_checkpoint", lambda log_ratio: log_ratio)


@pytest.mark.parametrize("way", WAYS)
def test_checkpointed_loss(backend, way):
    hold(backend, way, "kl")


@pytest.mark.backends("native")  # this divergence is computed in PyTorch, as the reference always does
@pytest.mark.parametrize("way", WAYS)
def test_checkpointed_loss_that_is_weighed_ahead_of_the_kernel(backend, way):
    hold(backend, way, OWN)


def hold(backend, way, divergence):
    def outcome(wrap):
        state = place(normalizer(4))

        def step(student):
            return fdk.fused_fdiv_loss(
                student, CASE.teacher, CASE.fake, CASE.logits, CASE.t, normalizer=state, backend=backend,
                divergence=divergence,
            )  # fmt: skip

        student = CASE.student.clone().requires_grad_()
        loss = wrap(step)(student)
        loss.backward()
        return loss.detach(), student.grad, state.mean

    for plain, twice in zip(outcome(lambda step: step), outcome(WAYS[way]), strict=True):
        torch.testing.assert_close(twice, plain, rtol=1e-6, atol=1e-9)


def test_two_calls_before_one_backward(backend):
    """The second forwards read the state after both calls. Weights from outside are exact, as the docs say."""

    def step(student, weight):
        return fdk.fused_fdiv_loss(student, CASE.teacher, CASE.fake, weight=weight, backend=backend)

    def outcome(wrap):
        state, student = place(normalizer(4)), CASE.student.clone().requires_grad_()
        losses = []
        for scale in (1.0, 2.0):
            weight = fdk.fdiv_weight(CASE.logits * scale, CASE.t, normalizer=state, backend=backend)
            losses.append(wrap(lambda x, weight=weight: step(x, weight))(student * scale))
        sum(losses).backward()
        return student.grad, state.mean

    for plain, twice in zip(outcome(lambda step: step), outcome(WAYS["not reentrant"]), strict=True):
        assert torch.equal(plain, twice)


def test_fdiv_weight_in_a_backward(backend):
    """A hook stands for any forward that autograd runs: it uses the state and does not update it."""
    state = place(normalizer(4))
    before, version, found = state.mean.clone(), state.mean._version, []
    eager = fdk.fdiv_weight(CASE.logits, CASE.t, normalizer=place(normalizer(4)).eval(), backend=backend)
    leaf = torch.ones((), requires_grad=True)
    leaf.register_hook(lambda _: found.append(fdk.fdiv_weight(CASE.logits, CASE.t, normalizer=state, backend=backend)))
    (leaf * 2).backward()
    assert torch.equal(state.mean, before) and (backend == "reference" or state.mean._version == version)
    assert torch.equal(found[0], eager)
