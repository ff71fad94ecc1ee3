import copy
import shutil
import subprocess

import pytest
import torch
from torch import nn

from fdistill import checkpoint, config, digits
from fdistill.checkpoint import Checkpoints
from fdistill.files import cached
from fdistill.task import EpochSampler

from .conftest import TINY_TEACHER


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE = {
    "gone": (lambda newest: shutil.rmtree(newest), "is gone"),
    "empty": (lambda newest: [path.unlink() for path in newest.iterdir()], "is empty"),
    "bit": (lambda newest: flip(newest / "state.pt"), "state.pt does not match its hash"),
    "cut": (lambda newest: cut(newest / "ema.safetensors"), "ema.safetensors does not match its hash"),
    "missing": (lambda newest: (newest / "fake.safetensors").unlink(), "fake.safetensors is missing"),
    "no hashes": (lambda newest: (newest / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
    "hashes cut": (lambda newest: (newest / "SHA256SUMS").write_text("# 5 files\n"), "SHA256SUMS is not whole"),
}


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


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 4 and 8, and a trace of the last."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, trace=tmp_path / ".saved")
    nets = {name: nn.Linear(2, 2) for name in ("student", "fake", "discriminator", "ema")}
    for step in (4, 8):
        checkpoints.save(step, nets, {"step": step})
    return checkpoints, nets


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(kind, saved, capsys):
    checkpoints, nets = saved
    do, told = DAMAGE[kind]
    do(checkpoints.folder / "step-00000008")
    assert checkpoints.latest().name == "step-00000004"
    error = capsys.readouterr().err
    assert "passed over" in error and told in error and "whole checkpoint is" in error
    checkpoints.save(6, nets, {"step": 6})  # the damaged step 8 takes no place among the last `keep`
    assert [name for name in names(checkpoints.folder) if name.startswith("step")] == ["step-00000004", "step-00000006"]
    assert checkpoints.latest().name == "step-00000006"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("trace", ["step-00000004", "", "x", "step-99", "\0"])
def test_a_stale_trace_hides_nothing(trace, saved):
    checkpoints, _ = saved
    checkpoints.trace.write_text(trace)
    assert checkpoints.latest().name == "step-00000008"


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_takes_no_place_of_a_whole_one(keep, saved):
    checkpoints, nets = saved
    flip(checkpoints.folder / "step-00000008/state.pt")
    Checkpoints(checkpoints.folder, keep).save(5, nets, {"step": 5})
    assert names(checkpoints.folder) == ["step-00000004", "step-00000005"][-keep:]


def test_somebodys_files_are_neither_checkpoints_nor_deleted(saved):
    checkpoints, nets = saved
    shutil.copytree(checkpoints.folder / "step-00000008", checkpoints.folder / "step-00000099-best")
    shutil.copytree(checkpoints.folder / "step-00000008", checkpoints.folder.parent / "elsewhere")
    (checkpoints.folder / "step-00000100").symlink_to("../elsewhere")
    (checkpoints.folder / "step-00000004/notes.txt").write_text("precious")
    assert checkpoints.latest().name == "step-00000008"
    for step in (12, 16):
        checkpoints.save(step, nets, {})
    kept = ["step-00000004", "step-00000012", "step-00000016", "step-00000099-best", "step-00000100"]
    assert names(checkpoints.folder) == kept
    assert names(checkpoints.folder / "step-00000004") == ["notes.txt"]
    assert len(names(checkpoints.folder.parent / "elsewhere")) == 6


def test_what_dead_processes_left_is_deleted(saved):
    checkpoints, nets = saved
    for name in (".step-00000012.partial-0", ".partial-4711"):  # the second is an older version's
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "student.safetensors").write_bytes(b"")
    checkpoints.save(12, nets, {})
    assert names(checkpoints.folder) == ["step-00000008", "step-00000012"]


def test_hashes_are_those_of_sha256sum(saved):
    checkpoints, _ = saved
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=checkpoints.latest(), capture_output=True).returncode == 0


def test_what_is_damaged_in_the_cache_is_made_anew(tmp_path, capsys):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "weights.safetensors").write_bytes(b"weights")

    for _ in range(2):
        folder = cached(tmp_path / "teacher", "unet", make)
    assert len(made) == 1 and capsys.readouterr().err == ""
    cut(folder / "weights.safetensors")
    assert cached(tmp_path / "teacher", "unet", make) == folder
    assert len(made) == 2 and (folder / "weights.safetensors").read_bytes() == b"weights"
    error = capsys.readouterr().err
    assert f"{folder} is damaged (weights.safetensors does not match its hash" in error and "made anew" in error
    assert names(folder.parent) == [".fdistill-lock", "unet"]


def test_a_damaged_teacher_is_trained_anew(tmp_path, capsys):
    cfg = config.load("digits", [*TINY_TEACHER, f"cache={tmp_path}"])
    teacher = copy.deepcopy(digits.load_or_train_teacher(cfg))  # a copy: the weights are mapped from the file
    home = digits.teacher_folder(cfg)
    cut(home / "unet/diffusion_pytorch_model.safetensors")
    for step in (home / "checkpoints").iterdir():
        flip(step / "state.pt")
    again = digits.load_or_train_teacher(cfg)
    error = capsys.readouterr().err
    assert "unet is damaged" in error and "trained from the beginning" in error
    for first, second in zip(teacher.parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second)
    assert (home / "unet/config.json").stat().st_mode == (home / "unet/SHA256SUMS").stat().st_mode


def test_each_epoch_visits_everything_once_and_resumes():
    sampler = EpochSampler(10, seed=3)
    drawn = torch.cat([sampler.take(4) for _ in range(5)])
    assert drawn[:10].sort().values.tolist() == list(range(10)) == drawn[10:].sort().values.tolist()
    assert drawn[:10].tolist() != drawn[10:].tolist()
    sampler, other = EpochSampler(10, seed=3), EpochSampler(10, seed=3)
    sampler.take(13)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(sampler.take(20), other.take(20))
