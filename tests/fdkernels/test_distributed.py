"""group=: statistics of one batch spread over processes, with gloo. Local batches may be uneven or empty."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import oracle
from tests.cases import make
from tests.fdkernels import distributed_rank

pytestmark = [pytest.mark.contract("distributed"), pytest.mark.cpu_only("gloo")]

RANKS = 3


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """The results of all ranks, each in its own process. Python and torch start once for all tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # once for all of pytest's workers
        if not (folder / "rendezvous").exists():
            run_ranks(folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def run_ranks(folder):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.fdkernels.distributed_rank", str(folder), str(RANKS)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    # If a rank fails, the ranks that wait for it end after two minutes.
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr


def whole(splits, **options):
    """The whole batch, and the oracle's weights for it."""
    case = distributed_rank.global_case(splits)
    return case, oracle.weights(case.logits, case.t, **options)


@pytest.mark.parametrize("splits", distributed_rank.SPLITS, ids=str)
@pytest.mark.parametrize("divergence", distributed_rank.DIVERGENCES)
def test_weights_are_global(backend, ranks, splits, divergence):
    found = [rank[backend, "weight", splits, divergence] for rank in ranks]
    state = distributed_rank.state()
    _, expected = whole(splits, divergence=divergence, normalizer=state)
    weight = torch.cat([rank["weight"] for rank in found])
    torch.testing.assert_close(weight.double(), torch.from_numpy(expected.weight), rtol=1e-6, atol=0)
    for rank in found:
        torch.testing.assert_close(rank["mean"].double(), torch.from_numpy(expected.mean), rtol=1e-6, atol=0)
        assert torch.equal(rank["mean"], found[0]["mean"]), "ranks drift apart"
        # Two collectives of fixed size: (count, sum of r) per bin, then (sum of h, count).
        assert rank["all_reduces"] == [2 * len(state.mean), 2]


@pytest.mark.parametrize("splits", distributed_rank.SPLITS, ids=str)
def test_loss_and_divisor_are_local(backend, ranks, splits):
    """Loss and 1/N stay local, as DDP expects of each rank; only h is computed over the whole batch."""
    case, expected = whole(splits, normalizer=distributed_rank.state())
    start = 0
    for rank, size in zip(ranks, splits, strict=True):
        found = rank[backend, "loss", splits]
        part = slice(start, start + size)
        start += size
        if size == 0:
            assert found["grad"].shape[0] == 0 and found["loss"] == 0
            continue
        local = oracle.score_difference(
            case.student[part], case.teacher[part], case.fake[part], weight=expected.weight[part]
        )
        torch.testing.assert_close(found["grad"].double(), torch.from_numpy(local.grad), rtol=3e-6, atol=1e-12)
        torch.testing.assert_close(found["loss"].double(), torch.as_tensor(local.loss), rtol=3e-6, atol=0)


def test_what_is_unused_is_not_reduced(backend, ranks):
    for rank in ranks:
        assert rank[backend, "collectives"] == {"neither": [], "batch mean": [2], "normalizer": [8], "eval": [2]}


def test_a_bad_sample_on_one_rank(backend, ranks):
    """A bad sample takes part in no rank's statistics."""
    splits = distributed_rank.SPLITS[0]
    case = distributed_rank.global_case(splits)
    logits = case.logits.clone()
    logits[0] = torch.nan
    expected = oracle.weights(logits, case.t, divergence="kl", normalizer=distributed_rank.state())
    weight = torch.cat([rank[backend, "bad sample"] for rank in ranks])
    torch.testing.assert_close(weight.double(), torch.from_numpy(expected.weight), rtol=1e-6, atol=0, equal_nan=True)


def test_without_group_it_warns_once(backend, ranks):
    for rank in ranks:
        messages = rank[backend, "warnings"]
        assert len(messages) == 1 and "group" in messages[0] and "3" in messages[0]


def test_a_group_of_some_ranks(backend, ranks):
    """Statistics over ranks 0 and 1 only."""
    splits = distributed_rank.SPLITS[0]
    case = distributed_rank.global_case(splits)
    size = splits[0] + splits[1]
    expected = oracle.weights(case.logits[:size], case.t[:size], divergence="kl")
    weight = torch.cat([ranks[rank][backend, "subgroup"] for rank in (0, 1)])
    torch.testing.assert_close(weight.double(), torch.from_numpy(expected.weight), rtol=1e-6, atol=0)


def test_bucketed_ddp_gradients(backend, ranks):
    """A student under DistributedDataParallel: every rank gets the mean of the ranks' local gradients."""
    grads = [rank[backend, "ddp"] for rank in ranks]
    assert all(torch.equal(found["averaged"], grads[0]["averaged"]) for found in grads)
    mean = torch.stack([found["local"] for found in grads]).mean(0)
    torch.testing.assert_close(grads[0]["averaged"], mean, rtol=1e-5, atol=1e-7)


def test_empty_local_batches_need_a_group(backend):
    case = make((2, 3))
    empty = case.but(student=case.student[:0], teacher=case.teacher[:0], fake=case.fake[:0], logits=None, t=None)
    with pytest.raises(ValueError, match="^student: expected at least one sample.*group="):
        empty.but(divergence="rkl").call(backend, empty.student)
