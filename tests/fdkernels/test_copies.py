"""Copies and pickles of losses: copies share the process group, pickles leave it out."""

import copy
import functools
import io
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist

import fdkernels as fdk
from tests.cases import make

pytestmark = [pytest.mark.contract("state"), pytest.mark.cpu_only("gloo")]


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def averaged(loss):
    return torch.optim.swa_utils.AveragedModel(torch.nn.ModuleDict({"loss": loss})).module["loss"]


@pytest.mark.parametrize("copied", (copy.deepcopy, copy.copy, averaged), ids=("deepcopy", "copy", "AveragedModel"))
def test_copies_share_the_group(backend, group, copied):
    case = make((8, 3, 4, 4))
    loss = fdk.FDivLoss("kl", bins=4, group=group, reduction="sum", backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        other = copied(loss)
    assert other.options["group"] is group and other.options == loss.options
    before = loss.normalizer.mean.clone()
    other(case.student, case.teacher, case.fake, case.logits, case.t)
    assert not torch.equal(other.normalizer.mean, before)
    assert torch.equal(loss.normalizer.mean, before) == (copied is not copy.copy)


def test_two_losses_in_one_deepcopy(group):
    losses = torch.nn.ModuleList([fdk.FDivLoss("kl", group=group), fdk.FDivLoss("js", group=group), fdk.FDivLoss()])
    shared = torch.nn.ModuleList([losses[0], losses[0]])
    assert [loss.options["group"] for loss in copy.deepcopy(losses)] == [group, group, None]
    first, second = copy.deepcopy(shared)
    assert first is second and first is not losses[0]


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "there_and_back", (lambda v: pickle.loads(pickle.dumps(v)), saved), ids=("pickle", "torch.save")
)
def test_pickles_drop_the_group_and_say_so(group, there_and_back):
    loss = fdk.FDivLoss("kl", bins=4, group=group, scale=fdk.DmdScale(0.5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = there_and_back(torch.nn.ModuleDict({"loss": loss}))["loss"]
        there_and_back(fdk.FDivLoss("kl"))
    told = [str(w.message) for w in caught if "process group" in str(w.message)]
    assert len(told) == 1
    assert loaded.options == {**loss.options, "group": None} and loss.options["group"] is group


def test_a_compiled_loss_is_copied_uncompiled():
    loss = fdk.FDivLoss("kl")
    loss.compile(backend="eager")
    for copied in (copy.copy(loss), copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert copied._compiled_call_impl is None


def tempered(log_ratio):
    return 0.5 * log_ratio


def powered(power, log_ratio):
    return power * log_ratio


class Learned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.power = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, log_ratio):
        return self.power * log_ratio


OWN = {"function": tempered, "partial": functools.partial(powered, 0.5), "module": Learned()}


@pytest.mark.parametrize("how", OWN)
@pytest.mark.parametrize("there_and_back", (copy.deepcopy, saved), ids=("deepcopy", "torch.save"))
def test_divergences_of_ones_own(how, there_and_back):
    loss = there_and_back(fdk.FDivLoss(fdk.Divergence("test_own", OWN[how])))
    logits = torch.linspace(-1, 1, 9)
    torch.testing.assert_close(
        fdk.fdiv_weight(logits, divergence=loss.divergence), fdk.fdiv_weight(logits, divergence="alpha(0.5)")
    )


@pytest.mark.parametrize("wrap", (lambda f: f, functools.partial), ids=("lambda", "partial"))
def test_a_registered_lambda_is_pickled_by_name(wrap):
    """README registers a lambda this way. Where it is not registered, loading raises an error that names it."""
    own = fdk.register_divergence(fdk.Divergence("test_pickled_lambda", wrap(lambda log_ratio: 0.5 * log_ratio)))
    loss = fdk.FDivLoss("test_pickled_lambda")
    assert pickle.loads(pickle.dumps(loss)).divergence is own
    elsewhere = pickle.dumps(loss).replace(b"test_pickled_lambda", b"test_pickled_absent")
    with pytest.raises(ValueError, match="^divergence: unknown name 'test_pickled_absent'"):
        pickle.loads(elsewhere)


def in_a_new_process(loss, queue):
    weight = fdk.fdiv_weight(torch.linspace(-1, 1, 9), divergence=loss.divergence)
    queue.put((loss.options["group"], weight.tolist(), loss.normalizer.mean.tolist()))


def test_spawn(group):
    """A spawned worker gets the loss by pickle."""
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    loss = fdk.FDivLoss(fdk.Divergence("test_own", tempered), bins=2, group=group)
    with pytest.warns(UserWarning, match="process group"):
        process = context.Process(target=in_a_new_process, args=(loss, queue))
        process.start()
    process.join(60)
    assert process.exitcode == 0
    expected = fdk.fdiv_weight(torch.linspace(-1, 1, 9), divergence="alpha(0.5)")
    found, weight, mean = queue.get()
    assert found is None and mean == [1.0, 1.0]
    torch.testing.assert_close(torch.tensor(weight), expected)
