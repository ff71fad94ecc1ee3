"""Threads, and the message about a machine that has no free CPUs for them."""

import itertools
import os

import pytest
import torch

from fdistill import cli, config, cpus, run


def machine(root, *looks, quota=None, version=2):
    """The files of a system with two CPUs. Each look is (idle ticks, busy ticks, CPU seconds of the container), and is
    written before the next sleep ends."""
    (root / "proc").mkdir()
    (root / "sys/fs/cgroup/cpu").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpuacct").mkdir()
    states = itertools.chain([(0, 0, 0.0)], looks)

    def advance(_=None):
        idle, busy, used = next(states)
        rows = [f"cpu{i} {busy} 0 0 {idle} 0 0 0 0 0 0" for i in (0, 1)]
        rows.append(f"cpu7 {idle} 0 0 {busy} 0 0 0 0 0 0")  # not one of ours
        (root / "proc/stat").write_text("\n".join(["cpu  9 9 9 9 9 9 9 9 0 0", *rows, "intr 5"]))
        if version == 2:
            (root / "sys/fs/cgroup/cpu.stat").write_text(f"usage_usec {int(used * 1e6)}\nuser_usec 0\n")
        else:
            (root / "sys/fs/cgroup/cpuacct/cpuacct.usage").write_text(f"{int(used * 1e9)}\n")

    if version == 2:
        (root / "sys/fs/cgroup/cpu.max").write_text(f"{int(quota * 100_000)} 100000\n" if quota else "max 100000\n")
    else:
        (root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text(f"{int(quota * 100_000)}\n" if quota else "-1\n")
        (root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").write_text("100000\n")
    advance()
    return advance


@pytest.fixture
def two_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    clock = itertools.count()
    monkeypatch.setattr(cpus.time, "perf_counter", lambda: float(next(clock)))  # one second passes between two readings


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("look", "quota", "free"),
    [
        ((100, 0, 0.0), None, 2.0),  # idle
        ((25, 75, 0.0), None, 0.5),
        ((0, 100, 0.0), None, 0.0),
        ((100, 0, 0.0), 1, 1.0),  # a container with one CPU
        ((75, 25, 0.75), 1, 0.25),  # with a neighbor in it
        ((100, 0, 3.0), 1, 0.0),
        ((10, 90, 0.0), 8, 0.2),
    ],
)
def test_what_is_free(look, quota, free, version, tmp_path, two_cpus, monkeypatch):
    monkeypatch.setattr(cpus.time, "sleep", machine(tmp_path, look, quota=quota, version=version))
    assert cpus.free_cpus(tmp_path) == pytest.approx(free)


def test_a_system_that_does_not_tell(tmp_path, two_cpus):
    assert cpus.free_cpus(tmp_path, seconds=0) is None
    machine(tmp_path)  # its clocks stand still
    assert cpus.free_cpus(tmp_path, seconds=0) is None


@pytest.mark.parametrize(
    ("threads", "looks", "told"),
    [
        (2, [1.9], ""),
        (2, [1.5], ""),
        (2, [0.2, 0.3, 1.8], ""),  # other work that has just ended
        (2, [None], ""),
        (1, [0.6], ""),
        (2, [0.2, 0.9, 0.1], "fdistill: 2 threads, but about 0.9 free CPUs, since other work runs or the container has "
         "fewer: expect a slow run; threads=1 may be faster\n"),
        (1, [0.1, 0.2, 0.1], "fdistill: 1 thread, but about 0.2 free CPUs, since other work runs or the container has "
         "fewer: expect a slow run\n"),
        (64, [2.0, 2.0, 2.0], "fdistill: 64 threads, but about 2.0 free CPUs, since other work runs or the container "
         "has fewer: expect a slow run; threads=2 may be faster\n"),
    ],
)  # fmt: skip
def test_the_word(threads, looks, told, monkeypatch, capsys):
    found = iter(looks)
    monkeypatch.setattr(cpus, "free_cpus", lambda: next(found))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    cpus.tell_if_oversubscribed()
    assert capsys.readouterr().err == told and list(found) == []


def test_threads_are_set_before_anything_is_computed(tiny_gmm, monkeypatch):
    threads, told = 2, []
    monkeypatch.setattr(cpus, "tell_if_oversubscribed", lambda: told.append(torch.get_num_threads()))
    assert cli.main(["train", "gmm", *tiny_gmm, f"threads={threads}"]) == 0
    cfg = config.load("gmm", [*tiny_gmm])
    assert run.result_of(run.folder_of(cfg))["threads"] == threads and told == [threads]


def test_0_threads_leave_torch_its_own(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_num_threads", None)
        cpus.take_threads(0)
