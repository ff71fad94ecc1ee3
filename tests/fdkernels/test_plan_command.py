"""`python -m fdkernels plan` prints the plan, and says what it can't do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fdkernels import _core, backends, devices, plans
from fdkernels.call_shape import CallShape

pytestmark = pytest.mark.cpu_only("a pure function")

ROOT = Path(__file__).parents[2]
H200 = devices.PRESETS["h200"]


def printed(capsys, arguments):
    plans.main(arguments.split())
    return capsys.readouterr().out


def figures(text):
    """The plan's own lines, by their first word."""
    text = text.split("considered")[0].replace("shared memory", "shared_memory")
    rows = [line.strip().split(None, 1) for line in text.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def test_all_figures(capsys):
    text = printed(capsys, "--shape 8,4,128,128 --student bf16 --device h200")
    assert text.startswith("fused_fdiv_loss, forward: 8×4×128×128, 8 samples of 65,536 elements, bf16\n")
    assert "h200: compute capability 9.0, 132 multiprocessors, 227 KiB of shared memory a block, 50 MiB of L2" in text
    assert "resident clusters of 1, 2, 4, 8, 16: 132, 66, 30, 15, 7" in text and "an assumption" in text
    p = _core.plan(CallShape(8, 65_536), H200)
    found = figures(text)
    assert found["schedule"].startswith("cluster of 8: ")
    assert found["grid"].startswith(f"{p['blocks']} blocks of {p['threads']} threads, 8 clusters of 8")
    assert found["share"] == "8,192 elements of a sample a block, all held on chip"
    assert found["shared_memory"].startswith("32,768 bytes a block")
    assert found["vector"].startswith("8 elements")
    assert found["phases"].startswith("1: ")
    assert found["launches"] == "1"
    assert found["bytes"] == "4.19 MB, 8 an element; the minimum is 8"
    assert found["time"].startswith(f"{p['seconds'] * 1e6:.2f} µs")


def test_another_op(capsys):
    """It holds two values an element, reads three inputs and writes three gradients."""
    text = printed(capsys, "--op implicit --shape 8,4,128,128 --student bf16 --device h200")
    assert text.startswith("score_implicit_loss, forward: 8×4×128×128, 8 samples of 65,536 elements, bf16\n")
    p, found = _core.plan(CallShape(8, 65_536, op="implicit"), H200), figures(text)
    assert found["shared_memory"].startswith(f"{8 * p['share']:,} bytes a block")
    assert found["bytes"] == "6.29 MB, 12 an element; the minimum is 12"
    mixed = _core.plan(CallShape(8, 65_536, "bf16", "fp32", op="implicit"), H200)
    assert (mixed["loads"], mixed["general"], mixed["minimum_bytes"]) == ("any_fp32", True, 2 * 10 * 8 * 65_536)
    loss_alone = _core.plan(CallShape(8, 65_536, "fp32", op="implicit", with_grad=False), H200)
    assert (loss_alone["loads"], loss_alone["minimum_bytes"]) == ("fp32", 12 * 8 * 65_536)
    for option in ("--heads 3", "--no-dmd-scale", "--mask 1x4"):
        with pytest.raises(SystemExit):
            plans.main(f"--op implicit --shape 8,4,8,8 {option}".split())
        assert f"argument {option.split()[0]}: expected with --op fdiv" in capsys.readouterr().err
    with pytest.raises(ValueError, match="op: expected fdiv or implicit, got denoising"):
        _core.plan(CallShape(8, 64, op="denoising"), H200)


def test_what_was_not_taken_and_why(capsys):
    text = printed(capsys, "--shape 8,4,128,128 --device h200")
    rows = [line.split(None, 1) for line in text.split("considered")[1].splitlines()[1:]]
    every = _core.plans(CallShape(8, 65_536), H200)
    names = [plans.name_of(p) for p in every]
    assert [name for name, _ in rows] == [*names, "cluster:1"]
    times = [f"{p['seconds'] * 1e6:.2f} µs" for p in every]
    assert [what for _, what in rows] == [f"{times[0]}  taken", *times[1:], "a sample does not fit"]
    text = printed(capsys, "--shape 8,4,128,128 --device a100")
    assert "cluster:16   the device can't schedule it" in text
    text = printed(capsys, "--shape 8,4,128,128 --device h200 --allowed grid")
    assert "schedule       grid of 8: 16 blocks hold a sample together, 8 side by side" in text
    assert text.count("taken") == 1 and re.search(r"grid:8 .* taken", text)
    text = printed(capsys, "--shape 8,4,128,128 --device a100 --allowed grid:3")
    assert "schedule       grid of 3: 36 blocks" in text and re.search(r"grid:3 .* taken", text)


def test_a_sample_beyond_the_chip_and_launches_that_come_first(capsys):
    found = figures(printed(capsys, "--shape 1,2147483649 --device h200"))
    assert found["schedule"].startswith("grid")
    assert found["phases"].startswith("1.99") and found["bytes"].startswith("25.7 GB")
    text = printed(capsys, "--shape 2048,3,32,32 --heads 3 --mask 2048x1024 --device h200")
    assert figures(text)["launches"] == "5, 3 to weigh first, 1 to count first"
    assert "a mask's own not counted" in text


CALL = (
    "--shape 4,16,60,104 --student fp16 --teacher fp32 --fake bf16 --raw --teacher-uncond --fake-uncond"
    " --multiplier 16 --mask 1x6240 --heads 2 --bins 7 --counted --reduction sum --with-stats --no-grad --no-dmd-scale"
)


def test_json(capsys):
    found = json.loads(printed(capsys, f"{CALL} --device h200 --json"))
    (one,) = found["plans"]
    call = CallShape(
        4, 99_840, student="fp16", teacher="fp32", fake="bf16", teacher_uncond="fp32", fake_uncond="bf16", noisy="fp16",
        raw=True, multiplier=16, mask=(1, 6240), heads=2, bins=7, counted=True, dmd_scale=False, with_stats=True,
        with_grad=False, reduction="sum",
    )  # fmt: skip
    assert plans.call_shape(plans.command_line().parse_args(CALL.split())) == call
    assert CallShape(**found["call"]) == call._replace(mask=[1, 6240])
    assert one["plan"] == _core.plan(call, H200) and one["candidates"] == _core.plans(call, H200)
    assert one["limits"] == {**H200, "active_clusters": list(H200["active_clusters"])}


@pytest.mark.parametrize(("arguments", "noisy"), [("--raw", "bf16"), ("--raw --no-dmd-scale", None), ("", None)])
def test_x_t_is_read_where_the_call_needs_it(arguments, noisy):
    assert plans.call_shape(plans.command_line().parse_args(["--shape", "8,4", *arguments.split()])).noisy == noisy


def test_every_device(capsys):
    found = json.loads(printed(capsys, "--shape 2,16,21,60,104 --device all --json"))["plans"]
    assert [one["device"] for one in found] == list(devices.PRESETS)
    text = printed(capsys, "--shape 2,16,21,60,104 --device all")
    assert all(f"\n{name}: compute capability" in text for name in devices.PRESETS)


def test_without_a_gpu_it_plans_for_an_h200_and_says_so(capsys, monkeypatch):
    monkeypatch.setattr(backends, "unavailable", lambda *_: "torch finds no CUDA or ROCm device")
    text = printed(capsys, "--shape 8,4,64,64")
    assert "\nh200: " in text and "h200 since no GPU is at hand (torch finds no CUDA or ROCm device)" in text


def test_the_gpu_that_is_present(capsys, monkeypatch):
    """A simulated GPU of 16 multiprocessors; its values are in the order of csrc/core/plan.h."""
    asked = []
    values = torch.tensor([90, 16, 232_448, 233_472, 2**23, 6e11, 16, 8, 4, 2, 0], dtype=torch.float64)
    monkeypatch.setattr(backends, "unavailable", lambda *_: None)
    monkeypatch.setattr(backends, "load_native", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.ops.fdkernels, "cuda_limits", lambda index: asked.append(index) or values)
    for arguments, device in (("", "present"), ("--device present", "present"), ("--device cuda:1", "cuda:1")):
        text = printed(capsys, f"--shape 8,4,64,64 {arguments}")
        assert f"\n{device}: compute capability 9.0, 16 multiprocessors, 227 KiB" in text and "8 MiB of L2" in text
        assert "resident clusters of 1, 2, 4, 8, 16: 16, 8, 4, 2, 0\n    as CUDA's runtime says" in text
    assert asked == [0, 0, 1]
    with pytest.raises(SystemExit):
        plans.main(["--shape", "8,4", "--device", "cuda:2"])
    assert "argument --device: cuda:2 can't be asked: torch finds 2 GPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: --shape"),
        ("--shape 8,x", "argument --shape: expected sizes of at least 1, as in 8,4,128,128, got 8,x"),
        ("--shape 8,0", "argument --shape: expected sizes of at least 1, as in 8,4,128,128, got 8,0"),
        ("--shape 8,4 --student int8", "argument --student: invalid choice: 'int8'"),
        ("--shape 8,4 --heads -1", "argument --heads: expected a count, got -1"),
        ("--shape 8,4 --mask 4", "argument --mask: expected rows and entries, as in 8x16384, got 4"),
        ("--shape 8,4 --mask 3x4", "h100: mask: expected 1 or 8 rows of entries that divide 4 elements, got 3 of 4"),
        ("--shape 8,4 --bins 3", "h100: bins: expected 0 without logits (heads=0), got 3"),
        (
            "--shape 8,4 --allowed clusters",
            "h100: allowed: expected auto, cluster, cluster:1 to cluster:16, grid or grid:1 to grid:64, got clusters",
        ),
        (
            "--shape 8,400000 --allowed cluster:1",
            "h100: allowed: expected a schedule that this device can run and that can hold a sample of 400000",
        ),
        ("--shape 8,4 --device h300", "argument --device: expected one of a100, l40s, h100,"),
        ("--shape 8,4 --device cuda:x", "or cuda:<index>, got cuda:x"),
    ],
)
def test_what_it_refuses(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        plans.main(["--device", "h100", *arguments.split()])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def run(*arguments, **environment):
    command = [sys.executable, "-m", "fdkernels", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)


def test_as_a_command_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch today')\n")
    done = run("plan", "--shape", "8,4,64,64", PYTHONPATH=f"{tmp_path}:{ROOT}", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "h200 since no GPU is at hand (torch does not import: no torch today)" in done.stdout
    assert run("plam").returncode == 1
