import pytest
import torch
from torch import nn

from fdistill import checkpoint
from fdistill.checkpoint import Checkpoints
from fdistill.task import EpochSampler


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_k_are_kept(tmp_path):
    checkpoints, net = Checkpoints(tmp_path, keep=2), nn.Linear(2, 2)
    for step in (1, 9, 10, 100):
        checkpoints.save(step, {"net": net}, {"step": step})
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    assert checkpoints.latest().name == "step-00000100"


def test_weights_and_state_come_back(tmp_path):
    checkpoints, net, other = Checkpoints(tmp_path, 1), nn.Linear(2, 2), nn.Linear(2, 2)
    path = checkpoints.save(3, {"net": net}, {"step": 3, "generator": torch.Generator().get_state()})
    state = checkpoints.load(path, {"net": other})
    assert state["step"] == 3
    assert torch.equal(net.weight, other.weight)


def test_a_crash_while_saving_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoints, net = Checkpoints(tmp_path, 2), nn.Linear(2, 2)
    checkpoints.save(1, {"net": net}, {"step": 1})

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(2, {"net": net}, {"step": 2})
    assert checkpoints.latest().name == "step-00000001"
    assert checkpoints.load(checkpoints.latest(), {"net": net})["step"] == 1


def test_each_epoch_visits_everything_once_and_resumes():
    sampler = EpochSampler(10, seed=3)
    drawn = torch.cat([sampler.take(4) for _ in range(5)])
    assert drawn[:10].sort().values.tolist() == list(range(10)) == drawn[10:].sort().values.tolist()
    assert drawn[:10].tolist() != drawn[10:].tolist()
    sampler, other = EpochSampler(10, seed=3), EpochSampler(10, seed=3)
    sampler.take(13)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(sampler.take(20), other.take(20))
