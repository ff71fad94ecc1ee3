"""Threads, and whether the machine has CPUs free for them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

LOOKS, LOOK_SECONDS = 3, 0.2  # the machine counts as busy only if all looks find it busy
SLACK = 0.5  # CPUs that may be missing, because other work comes and goes


def take_threads(count: int) -> None:
    """Compute on `count` CPU threads; 0: on as many as torch takes."""
    if count:
        torch.set_num_threads(count)


def tell_if_oversubscribed() -> None:
    """Print one line to stderr if there are fewer free CPUs than threads: the threads then wait for each other.

    Free CPUs are measured while this process sleeps. Do not use a load average: it counts this process's own work of
    the last minute, and that of the run before.
    """
    threads, free = torch.get_num_threads(), 0.0
    for _ in range(LOOKS):
        look = free_cpus()
        if look is None or look + SLACK >= threads:
            return
        free = max(free, look)
    few = max(1, int(free + SLACK))
    noun = "thread" if threads == 1 else "threads"
    advice = f"; threads={few} may be faster" if few < threads else ""
    print(
        f"fdistill: {threads} {noun}, but about {free:.1f} free CPUs, since other work runs or the container has "
        f"fewer: expect a slow run{advice}",
        file=sys.stderr,
    )


def free_cpus(root: Path = Path("/"), seconds: float = LOOK_SECONDS) -> float | None:
    """CPUs that this process may use and that are free now; None if the system does not tell.

    Args:
        root: the folder of `proc` and `sys`.
        seconds: how long to measure.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    before, start = _ticks(root, allowed), time.perf_counter()
    used_before = _used_seconds(root)
    time.sleep(seconds)
    after, used_after = _ticks(root, allowed), _used_seconds(root)
    elapsed = time.perf_counter() - start
    total = after[1] - before[1]
    if total <= 0:
        return None
    free = len(allowed) * (after[0] - before[0]) / total
    quota = _quota(root)
    if quota is None:
        return free
    return min(free, max(0.0, quota - (used_after - used_before) / elapsed))


def _ticks(root: Path, cpus: set[int]) -> tuple[int, int]:
    """(idle, all) clock ticks of these CPUs since the machine started, from proc/stat; (0, 0) without proc/stat."""
    idle = total = 0
    for line in _text(root / "proc/stat").splitlines():
        name, *values = line.split()
        if name.removeprefix("cpu").isdigit() and name.startswith("cpu") and int(name[3:]) in cpus:
            ticks = [int(value) for value in values[:8]]  # user time already includes the guests, columns 9 and 10
            idle, total = idle + ticks[3] + ticks[4], total + sum(ticks)
    return idle, total


def _quota(root: Path) -> float | None:
    """CPUs that the container may use at a time, from its control group, version 2 or 1; None without a limit."""
    limit = _text(root / "sys/fs/cgroup/cpu.max").split()
    if not limit:
        folder = root / "sys/fs/cgroup/cpu"
        limit = [*_text(folder / "cpu.cfs_quota_us").split(), *_text(folder / "cpu.cfs_period_us").split()]
    try:
        quota, period = (float(value) for value in limit)
    except ValueError:  # "max", or nothing
        return None
    return quota / period if quota > 0 and period > 0 else None


def _used_seconds(root: Path) -> float:
    """CPU seconds of all processes of the container; 0 if the system does not tell."""
    for line in _text(root / "sys/fs/cgroup/cpu.stat").splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    used = _text(root / "sys/fs/cgroup/cpuacct/cpuacct.usage").strip()
    return int(used) / 1e9 if used.isdigit() else 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
