"""`python -m fdkernels`: versions, compiled parts, devices, and what backend="auto" picks for each device and why.
`python -m fdkernels plan`: how the CUDA backend would spread a call over a GPU (`plans.py`).

The checks run in a child process, because a damaged library can kill the process that loads it: the report survives.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys

import fdkernels
from fdkernels import binaries, printing


def main() -> None:
    printing.accept_any_text()
    if sys.argv[1:2] == ["plan"]:
        from fdkernels import plans

        plans.main(sys.argv[2:])
        return
    if sys.argv[1:] == ["--probe"]:
        probe_compiled()
        probe_backends()
        probe_trainers()
        return
    if sys.argv[1:]:
        sys.exit("usage: python -m fdkernels [plan ...]; python -m fdkernels plan --help lists its options")
    print(f"fdkernels {fdkernels.__version__} at {os.path.dirname(fdkernels.__file__)}")
    print(f"python    {platform.python_version()} at {sys.executable}, {platform.platform()}")
    for package in ("torch", "numpy", "triton", "diffusers"):
        print(f"{package:9} {version(package)}")
    sys.stdout.flush()
    run_probe()


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def run_probe() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "fdkernels", "--probe"], stderr=subprocess.PIPE, text=True, errors="replace"
    )
    if process.returncode == 0:
        return
    if process.returncode < 0:
        what = f"killed by {signal.Signals(-process.returncode).name}: a library is damaged; reinstall fdkernels"
    else:
        what = (process.stderr.strip().splitlines() or ["no message"])[-1]
    print(f"  the check failed: {what}", flush=True)


def probe_compiled() -> None:
    print("\nCompiled parts", flush=True)
    file, reason = binaries.locate(binaries.CORE)
    if file.parent != binaries.PACKAGE and reason is None:
        say("", f"{file.parent} has them, built from the same csrc/ as here")
    try:
        import fdkernels._core as core
    except ImportError as error:
        say("_core", f"missing or broken: {error}")
    else:
        info = core.build_info()
        say("_core", f"version {info['version']}, {info['compiler']}, {info['flags']}")
        say("", f"instruction sets {', '.join(info['isa'])}; CUDA {info['cuda']}")
        if info["cuda_archs"]:
            say("", f"compiled for GPUs of {', '.join(info['cuda_archs'])}")
        if info["version"] != fdkernels.__version__:
            say("", f"stale: built from version {info['version']}; rebuild with `pip install .` or `make build`")
    if torch_works():
        from fdkernels import backends

        for device_type in ("cpu", "cuda"):
            say(f"libfdkernels_{device_type}", backends.load_native(device_type) or "loads")


def probe_backends() -> None:
    print("\nBackends", flush=True)
    if not torch_works():
        return
    import torch

    from fdkernels import backends

    threads = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    devices = [("cpu", f"{platform.machine()}, {threads}")]
    try:
        devices += [(f"cuda:{i}", describe_gpu(i)) for i in range(torch.cuda.device_count())]
    except RuntimeError as error:
        say("cuda", f"broken: {error}")
    for device, description in devices:
        kind = device.split(":")[0]
        with contextlib.nullcontext() if kind == "cpu" else torch.cuda.device(device):
            reasons = backends.available(kind)
            order, why = backends.preference(kind)
        picked = next(backend for backend in order if reasons[backend] is None)
        print(f"  {device} ({description})")
        print(f"    auto picks {picked}, the first usable of {', '.join(order)}")
        print(f"    in this order because {why}")
        for backend, reason in reasons.items():
            print(f"    {backend:10} {reason or 'usable'}")
    checked = ", ".join(f"{major}.{minor} ({results})" for (major, minor), results in backends.CHECKED.items())
    print(f"  native has been checked on compute capability {checked or 'none'}; auto picks triton first on other GPUs")


def probe_trainers() -> None:
    print("\nTrainers, for fdkernels.integrations", flush=True)
    if torch_works():
        from fdkernels import integrations

        for name, integration in integrations.adapters().items():
            say(name, integration.describe())


def describe_gpu(index: int) -> str:
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"


def torch_works() -> bool:
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        say("torch", f"missing or broken, so nothing can run: {error}")
        return False
    return True


def say(what: str, text: str) -> None:
    print(f"  {what:17} {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `python -m fdkernels | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
