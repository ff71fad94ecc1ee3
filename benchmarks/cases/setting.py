"""The machine, versions and commit that a report's figures belong to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import fdkernels

ROOT = Path(__file__).parents[2]
CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem")
QUERIED = ("driver_version", *CLOCKS, "temperature.gpu", "power.draw")


def setting(device: str) -> dict[str, Any]:
    nvcc = re.search(r"release [\d.]+, V([\d.]+)", output("nvcc", "--version") or "")
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "cpu": cpu_name(),
        "virtual_machine": "hypervisor" in cpuinfo() if cpuinfo() else None,
        "cores": os.cpu_count(),
        "cpu_cache_mib": last_level_cache() >> 20 or None,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "triton": version("triton"),
        "numpy": version("numpy"),
        "fdkernels": fdkernels.__version__,
        "nvcc": nvcc[1] if nvcc else None,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return found | gpu() if device == "cuda" else found


def setting_of_run(device: str, command: str, compile_modes: list[str]) -> dict[str, Any]:
    """The setting that a report records for its run."""
    return {
        "driver": None, "cuda": None, **setting(device), "kind": device, "threads": torch.get_num_threads(),
        "clocks": clocks(device), "command": command, "load_average": round(os.getloadavg()[0], 2),
        "compile_modes": compile_modes,
    }  # fmt: skip


def clocks(device: str) -> str | None:
    """A GPU's clocks at this moment."""
    asked = (gpu()["nvidia_smi"] if device == "cuda" else None) or {}
    now = [f"{asked[f'clocks.{name}']} of {asked[f'clocks.max.{name}']}" for name in ("sm", "mem") if asked]
    return f"sm {now[0]}, memory {now[1]}" if now else None


def gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties()
    query = ("nvidia-smi", f"--query-gpu={','.join(QUERIED)}", "--format=csv,noheader")
    answered = output(*query, f"--id=GPU-{getattr(properties, 'uuid', '')}") or output(*query) or ""
    values = [value.strip() for value in answered.split("\n")[0].split(",")]
    asked = dict(zip(QUERIED, values, strict=True)) if len(values) == len(QUERIED) else {}
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda or torch.version.hip,
        "driver": asked.pop("driver_version", None),
        "nvidia_smi": asked or None,
    }


def cpu_name() -> str:
    name = re.search(r"^model name\s*: (.*)$", cpuinfo(), re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def last_level_cache() -> int:
    """Bytes of the cache, as Linux reports them for the first core; 0 if it does not."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [file.read_text(encoding="utf-8").strip() for file in files]
    units = {"K": 10, "M": 20, "G": 30}
    return max((int(size[:-1]) << units[size[-1]] for size in sizes if size[-1:] in units), default=0)


def cpuinfo() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.exists() else ""


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """FDKERNELS_COMMIT, else git's, with "-dirty" where files differ from it, else "unknown"."""
    named = os.environ.get("FDKERNELS_COMMIT")
    return named or output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "unknown"


def output(*command: str) -> str | None:
    """What a command prints, or None where it is missing, fails, or hangs."""
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
