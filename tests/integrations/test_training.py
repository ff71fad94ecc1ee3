"""Each adapter as people train: autocast, scaled float16, mixed dtypes, bad samples, ranks, wrappers, a compiler.

`python -m tests.integrations.test_training FOLDER KIND` forks the ranks of this file.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from fdkernels import testing
from tests.integrations import test_fastgen, video
from tests.integrations.losses import COMMON, VSD, every, given, kinds, opened
from tests.integrations.parity import FP32, Outcome, normal

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(scope="module")
def peer(request):
    with opened(*request.param) as found:
        yield found


def value(peer, call, v, autocast=None):
    """The loss. Noise is drawn in float64, so that it is the same in each dtype."""
    draw = torch.randn

    def randn(*size, dtype=None, **rest):
        return draw(*size, dtype=F64, **rest).to(dtype)

    torch.manual_seed(0)
    like = mock.patch("torch.randn_like", lambda u: randn(u.shape, dtype=u.dtype))
    with like, mock.patch("torch.randn", randn), torch.autocast("cpu", autocast or BF16, enabled=autocast is not None):
        return call(peer, v)


def outcome(peer, call, v, autocast=None, factor=1.0):
    v = v._replace(x=v.x.detach().requires_grad_())
    loss = value(peer, call, v, autocast)
    return Outcome(loss.detach(), [torch.autograd.grad(factor * loss, [v.x])[0].double() / factor])


PRECISIONS = {  # of the student, of the scores, of autocast; the gradient scaler's factor
    "autocast-bf16": (BF16, BF16, BF16, 1.0),
    "autocast-bf16-scores": (F32, BF16, BF16, 1.0),
    "autocast-fp16-scaled": (F16, F16, F16, 65536.0),
    "bf16-student": (BF16, F32, None, 1.0),
    "bf16-scores": (F32, BF16, None, 1.0),
    "fp16": (F16, F16, None, 1.0),
    "fp16-scores": (F32, F16, None, 1.0),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@every()
def test_precision(peer, call, precision):
    *dtypes, autocast, factor = PRECISIONS[precision]
    v, rest = given().to(*dtypes), (autocast, factor)
    theirs, exact = outcome(peer, call, v, *rest), outcome(peer, call, v.to(F64, F64))
    with peer.patched():
        ours = outcome(peer, call, v, *rest)
    # CUDA's autocast casts softplus and sums to float32; the CPU's leaves them.
    assert ours.loss.dtype == (torch.promote_types(theirs.loss.dtype, F32) if autocast else theirs.loss.dtype)
    assert torch.isfinite(ours.loss) and torch.isfinite(ours.gradients[0]).all()
    error, other = (testing.relative_l2(each.gradients[0], exact.gradients[0]) for each in (ours, theirs))
    assert error < 3e-3 and error < 1.02 * other + 1e-6, (error, other)


@pytest.mark.parametrize("role", ["tau", "fake"])
@every()
def test_samples_that_are_not_finite(peer, call, role):
    """The first has a NaN, the last an infinity, both in its first block of frames.

    A loss that drops them does so in either role, as the trainer's for the teacher; the trainer's nan_to_num lets
    infinities of the fake score through. A loss that passes them on does so in the samples where the trainer's does.
    """

    def bad(role):
        v = given()
        getattr(v, role)[(0, 2), (1, 0), 2, 1, 3] = torch.tensor([torch.nan, torch.inf])
        return v

    is_dropped = outcome(peer, call, bad("tau")).loss.isfinite()
    theirs = outcome(peer, call, bad("tau" if is_dropped else role))
    with peer.patched():
        ours = outcome(peer, call, bad(role))
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=FP32, atol=0, equal_nan=True)
    rows = [each.gradients[0].flatten(1) for each in (ours, theirs)]
    kept = rows[0].isfinite().all(1)
    assert torch.equal(kept, rows[1].isfinite().all(1))
    torch.testing.assert_close(rows[0][kept], rows[1][kept], rtol=FP32, atol=1e-9)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every()
def test_without_gradient(peer, call, mode):
    theirs = outcome(peer, call, given()).loss
    with peer.patched(), mode():
        torch.testing.assert_close(value(peer, call, given()), theirs, rtol=FP32, atol=0)


@every(
    ("fastgen", "vsd"), ("fastgen", "discriminator"), ("model_optimizer", "vsd"), ("model_optimizer", "r1"),
    ("model_optimizer", "denoising"), ("diffsynth", "vsd"), ("cosmos", "instances"), ("lightx2v", "dmd"),
)  # fmt: skip
def test_a_compiled_caller(peer, call):
    """One graph: fullgraph raises where it breaks."""
    loaded = SimpleNamespace(module=lambda name: sys.modules[name])  # a compiler does not import
    compiled = torch.compile(functools.partial(call, loaded), backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    with peer.patched():
        eager = outcome(peer, call, given())
        torch.testing.assert_close(outcome(peer, lambda _, v: compiled(v), given()), eager)


PARTS = {"uneven": (slice(0, 6), slice(6, 8)), "equal": (slice(0, 4), slice(4, 8))}
WHOLE = (slice(0, 8),)


def f_distill(peer, parts):
    """h, the state and the student's gradient after micro-batches, accumulated as their mean."""
    generator = torch.Generator().manual_seed(0)
    logits, t = normal(generator, 8, 2).float(), torch.tensor([0.1, 0.5, 0.9, 0.2, 0.6, 1.0, 0.3, 0.7])
    x, tau, fake = (normal(generator, 8, 3, 4, 5).float() for _ in range(3))
    model = test_fastgen.model(peer, "js", F32, torch.tensor([0.7, 1.4, 0.9]))
    x, weights = x.requires_grad_(), []
    for part in parts:
        weights.append(model.h(logits[part], t[part]))
        loss = getattr(peer.module(COMMON), VSD)(x[part], tau[part], fake[part], weights[-1])
        (loss / len(parts)).backward()
    return {"h": torch.cat(weights), "bins": model.net.bins, "gradient": x.grad}


class Network(nn.Linear):
    def forward(self, x, t, context, seq_len):
        return (1.0 if context == "cond" else 0.9) * super().forward(x.movedim(1, -1)).movedim(-1, 1)


WRAPPERS = {
    "bare": lambda network: network,
    "fully_shard": lambda network: fully_shard(network, mesh=init_device_mesh("cpu", (dist.get_world_size(),))),
    "fsdp": lambda network: FullyShardedDataParallel(network, device_id=torch.device("cpu")),
    "ddp": nn.parallel.DistributedDataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
}


def self_forcing(peer, wrap, rank):
    """(the trainer's outcome, ours, its warnings) with networks in wrappers, on the rank's own sample."""
    model = video.dmd(peer, "utils.wan_wrapper", {}, SimpleNamespace())
    torch.manual_seed(1)
    for role in ("real_score", "fake_score"):
        network = getattr(model, role)
        network.model = Network(4, 4)
        setattr(model, role, wrap(network))

    def call(_, v):
        return model.compute_distribution_matching_loss(v.x[rank : rank + 1], video.COND, video.UNCOND)[0]

    theirs = tuple(outcome(peer, call, given()))
    torch._dynamo.reset()  # or the trainer's conversion stays in the compiled networks
    with peer.patched(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = tuple(outcome(peer, call, given()))
    return theirs, ours, [str(each.message) for each in caught]


def as_rank(folder, kind, rank):
    rendezvous, timeout = f"file://{folder}/rendezvous", timedelta(seconds=60)
    with opened("fastgen", kind) as peer:
        found = {"whole": f_distill(peer, WHOLE)}
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timeout)
        with peer.patched():
            found |= {name: f_distill(peer, [parts[rank]]) for name, parts in PARTS.items()}
    with opened("self_forcing", kind) as peer:
        found |= {name: self_forcing(peer, wrap, rank) for name, wrap in WRAPPERS.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=sorted({*kinds("fastgen"), *kinds("self_forcing")}))
def ranks(request, tmp_path_factory):
    """What two ranks found, of the stand-ins or of the checkouts."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", __name__, str(folder), request.param]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", PARTS)
def test_f_distill_over_ranks(ranks, name):
    """The trainer's function on the whole batch in one process is right for uneven parts too."""
    h = torch.cat([each[name]["h"] for each in ranks])
    for each in ranks:
        torch.testing.assert_close(
            [h, each[name]["bins"]], [each["whole"][k] for k in ("h", "bins")], rtol=FP32, atol=0
        )


@every(("fastgen", "vsd"))
def test_accumulated_micro_batches(peer, call):
    """As the trainer's: the state moves twice, and the gradient is the mean of both."""
    theirs = f_distill(peer, PARTS["uneven"])
    with peer.patched():
        ours, whole = f_distill(peer, PARTS["uneven"]), f_distill(peer, WHOLE)
    torch.testing.assert_close(ours, theirs, rtol=FP32, atol=1e-7)
    assert not torch.allclose(ours["bins"], whole["bins"], rtol=1e-2)


@pytest.mark.parametrize("name", WRAPPERS)
def test_scores_in_wrappers(ranks, name):
    for each in ranks:
        theirs, ours, caught = each[name]
        torch.testing.assert_close(ours, each["bare"][1], rtol=1e-6, atol=1e-9)
        assert abs(ours[0] / theirs[0] - 1) < FP32 and testing.relative_l2(ours[1][0], theirs[1][0]) < FP32
        assert not caught


if __name__ == "__main__":
    for rank in range(2):
        if not os.fork():
            try:
                as_rank(*sys.argv[1:], rank)
            except BaseException:
                print(f"rank {rank}:", traceback.format_exc(), flush=True)
                os._exit(1)
            os._exit(0)
    sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)))
