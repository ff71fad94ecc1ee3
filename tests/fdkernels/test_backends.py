"""Which backend serves a call, and why the others do not."""

import importlib.metadata
import importlib.util
import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fdkernels as fdk
from fdkernels import _core, backends, binaries
from fdkernels.backends import NATIVE_FIRST, TRITON_FIRST
from tools.gpu_check.sanitize import TOOLS

pytestmark = pytest.mark.cpu_only("what a device offers is made up here")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fresh():
    backends._chosen.clear()
    backends._installed_triton.cache_clear()
    yield
    backends._chosen.clear()
    backends._installed_triton.cache_clear()


@pytest.fixture
def pretend(monkeypatch, fresh):
    """Simulate a machine: its GPU, CUDA library and driver. Native counts as checked on 9.0."""
    monkeypatch.setattr(backends, "CHECKED", {(9, 0): "checked.json"})

    def machine(capability=(9, 0), *, library=None, archs=("90",), cuda="13.0", driver=(13, 0), hip=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(backends, "load_native", lambda device_type: library)
        monkeypatch.setattr(backends, "_driver_version", lambda: driver)
        monkeypatch.setattr(_core, "build_info", lambda: {"cuda": cuda, "cuda_archs": list(archs)})

    return machine


def test_triton_on_cpu_is_for_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "TRITON_INTERPRET=1" in backends.unavailable("triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.unavailable("triton", "cpu") is None


def test_without_triton(monkeypatch, pretend):
    pretend(library="not built")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in backends.unavailable("triton", "cuda")
    with pytest.raises(
        RuntimeError, match="^backend 'triton' is not available for cuda tensors: triton is not installed"
    ):
        backends.choose("triton", "cuda")
    assert backends.choose("auto", "cuda") == "reference"


@pytest.mark.parametrize(
    ("version", "usable"), [("3.5.1", False), ("3.6.0", True), ("3.10.0+git1", True), ("4.0", True)]
)
def test_versions(monkeypatch, fresh, version, usable):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reason = backends.unavailable("triton", "cpu")
    assert reason is None if usable else version in reason and "3.6 or later" in reason


def test_rocms_own_package(monkeypatch, fresh):
    def version(name):
        if name != "pytorch-triton-rocm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "3.6.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.unavailable("triton", "cpu") is None


@pytest.mark.parametrize(("capability", "usable"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_compute_capability(pretend, capability, usable):
    pretend(capability, library="not built")
    reason = backends.unavailable("triton", "cuda")
    assert reason is None if usable else "(7, 5)" in reason and "(8, 0) or later" in reason
    assert backends.choose("auto", "cuda") == ("triton" if usable else "reference")


def test_no_device(pretend):
    pretend(capability=None)
    reasons = backends.available("cuda")
    assert reasons == {"reference": None, **dict.fromkeys(("native", "triton"), "torch finds no CUDA or ROCm device")}


@pytest.mark.parametrize(
    ("machine", "order", "why"),
    [
        ({}, NATIVE_FIRST, "native passed its checks on compute capability 9.0 (checked.json)"),
        (
            {"capability": (9, 9)},
            TRITON_FIRST,
            "native has not been checked on compute capability 9.9 since its blocks wait in another way",
        ),
        ({"capability": (8, 0)}, TRITON_FIRST, "native has not been checked on compute capability 8.0"),
        ({"capability": (8, 9)}, TRITON_FIRST, "native has not been checked on compute capability 8.9"),
        ({"capability": (10, 0)}, TRITON_FIRST, "native has not been checked on compute capability 10.0"),
        ({"capability": (12, 0)}, TRITON_FIRST, "native has not been checked on compute capability 12.0"),
        ({"hip": "7.0"}, TRITON_FIRST, "native is for NVIDIA's GPUs"),  # an MI200, which is (9, 0) to PyTorch
        ({"capability": None}, TRITON_FIRST, "no GPU is here"),
    ],
)
def test_auto_prefers_native_on_the_gpus_that_passed_a_check(pretend, monkeypatch, machine, order, why):
    monkeypatch.setattr(backends, "CHECKED_BEFORE", {(9, 9): "checked.json"})
    pretend(**machine, archs=("80", "90", "100", "120"))
    assert backends.preference("cuda") == (order, why)
    if machine.get("capability", (9, 0)) is not None:
        assert backends.choose("auto", "cuda") == order[0]


def passed(results: dict) -> bool:
    """Whether nothing failed, native ended each file of tests in one of its runs, and the sanitizers found nothing in
    any of its schedules."""
    runs = [*results["sanitize"], *results["cases"]]
    native = [run for run in results["tests"] if run["backend"] == "native"]
    quiet = {run["name"] for run in runs if run["status"] == "ok"}
    schedules = ("native", "native cluster:1", "native cluster:16", "native grid:1", "native grid:2")
    return (
        not any(run["failed"] for run in results["tests"])
        and {run["file"] for run in native} == {run["file"] for run in native if run["status"] == "ok"}
        and {Path(run["file"]).parent.name for run in native} == {"fdkernels", "gpu"}
        and not any(run["wrong"] or run["status"] == "failed" for run in runs)
        and quiet >= {f"{each}, {schedule}" for each in ("cases", *TOOLS) for schedule in schedules}
    )


def test_the_checked_gpus_are_those_of_the_results():
    """A GPU is in the table if and only if its check passed."""
    capabilities = {}
    for file in (ROOT / "benchmarks" / "results").glob("gpu-*.json"):
        setting = json.loads(file.read_text())["setting"]
        capabilities[setting["device"]] = tuple(int(number) for number in setting["capability"].split("."))
    found = {}
    for file in (ROOT / "benchmarks" / "results").glob("*_check.json"):
        results = json.loads(file.read_text())
        if passed(results):
            found[capabilities[results["setting"]["device"]]] = str(file.relative_to(ROOT))
    assert found == {**backends.CHECKED_BEFORE, **backends.CHECKED}


@pytest.mark.parametrize(
    ("part", "which", "change"),
    [
        ("tests", "tests/gpu/.* native", {"status": "timed out"}),
        ("tests", "tests/fdkernels/.* triton", {"failed": 1}),
        ("tests", "tests/fdkernels/.* native", {"backend": "reference"}),
        ("tests", "tests/gpu/.* native", {"backend": "reference"}),
        ("sanitize", "memcheck, native grid:1", {"status": "failed"}),
        ("sanitize", "racecheck, native cluster:16", {"status": "not run"}),
        ("sanitize", "synccheck, native cluster:1", {"status": "refused"}),
        ("sanitize", "cases, native", {"wrong": 1}),
        ("cases", "cases, native grid", {"wrong": 1}),
    ],
)
def test_what_is_no_passed_check(part, which, change):
    results = json.loads((ROOT / backends.CHECKED[9, 0]).read_text())
    assert passed(results)
    for run in results[part]:
        if re.fullmatch(which, run.get("name") or f"{run['file']} {run['backend']}"):
            run |= change
    assert not passed(results)


def test_without_triton_an_unchecked_gpu_takes_native(monkeypatch, pretend, caplog):
    pretend((8, 0), archs=("80",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backends, "LOGGING", True)
    monkeypatch.setattr(backends, "_logged", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.choose("auto", "cuda") == "native"
    backends.log_choice("fdiv_weight", "native", "cuda")
    (record,) = caplog.records
    assert record.message.startswith("fdiv_weight on cuda: native (triton: triton is not installed")


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"hip": "7.0"}, "the CUDA library is for NVIDIA's GPUs; this is ROCm"),
        ({"library": "libfdkernels_cuda.so was not built"}, "libfdkernels_cuda.so was not built"),
        (
            {"archs": ("80", "100", "120+PTX")},
            "the CUDA library was compiled for 80, 100, 120+PTX; this GPU has compute capability (9, 0)",
        ),
        ({"archs": ()}, "the CUDA library was compiled for nothing; this GPU has compute capability (9, 0)"),
        ({"driver": (12, 9)}, "the CUDA library was built with CUDA 13.0; the driver is for 12.9"),
        (
            {"archs": ("80+PTX",), "cuda": "13.1"},
            "the CUDA library was built with CUDA 13.1; the driver is for 13.0",
        ),
    ],
)
def test_why_native_cannot_serve_a_gpu(pretend, machine, reason):
    pretend(**machine)
    assert backends.unavailable("native", "cuda") == reason
    with pytest.raises(RuntimeError, match="^backend 'native' is not available for cuda tensors: ") as error:
        backends.choose("native", "cuda")
    assert str(error.value).endswith(reason)
    assert backends.choose("auto", "cuda") == "triton"


def test_native_and_triton_need_the_same_capability(pretend):
    pretend((7, 5), archs=("75",))
    reasons = backends.available("cuda")
    assert reasons["native"] == reasons["triton"] == "compute capability (7, 5); (8, 0) or later is needed"


def test_core_missing_leaves_the_cuda_library_unused(monkeypatch, pretend):
    pretend()
    monkeypatch.setitem(sys.modules, "fdkernels._core", None)
    monkeypatch.delattr(fdk, "_core")
    assert backends.unavailable("native", "cuda").startswith("fdkernels._core, which knows what the CUDA library")
    assert backends.choose("auto", "cuda") == "triton"


@pytest.mark.parametrize("driver", [(13, 0), (13, 2), (14, 0)])
def test_machine_code_runs_under_every_driver_from_its_major_version_on(pretend, driver):
    pretend(cuda="13.1", driver=driver)
    assert backends.unavailable("native", "cuda") is None


@pytest.mark.parametrize(
    ("arch", "capabilities"),
    [
        ("80", {(8, 0), (8, 6), (8, 9)}),
        ("86", {(8, 6), (8, 9)}),
        ("90", {(9, 0)}),
        ("100", {(10, 0), (10, 3)}),
        ("120", {(12, 0), (12, 1)}),
        ("90+PTX", {(9, 0), (10, 0), (10, 3), (12, 0), (12, 1)}),
        ("120+PTX", {(12, 0), (12, 1)}),
    ],
)
def test_what_compiled_code_serves(arch, capabilities):
    known = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]
    assert {capability for capability in known if backends.serves(arch, capability)} == capabilities


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_a_library_that_is_not_there_or_none(monkeypatch, tmp_path, device_type):
    monkeypatch.setattr(binaries, "PACKAGE", tmp_path)
    monkeypatch.setattr(sys, "path", [])
    library = tmp_path / f"libfdkernels_{device_type}.so"
    load = backends.load_native.__wrapped__
    assert load(device_type).startswith(f"{library.name} was not built (")
    assert ("nvcc" in load(device_type)) == (device_type == "cuda")
    library.write_bytes(b"not a library" * 100)
    assert load(device_type).startswith(f"{library.name} does not load: ") and "invalid ELF header" in load(device_type)


@pytest.mark.parametrize(
    ("device_type", "machine", "chosen", "said"),
    [
        ("cpu", {}, "native", None),
        ("cpu", {"library": "it was not built"}, "reference", "eager .*native: it was not built. "),
        ("cuda", {}, "native", None),
        # A machine without nvcc has no CUDA library, and is meant to take Triton.
        ("cuda", {"library": "it was not built"}, "triton", None),
        ("cuda", {"library": "it is stale", "misfit": True}, "triton", "triton. native: it is stale. "),
        # auto does not prefer a native that was not checked, so it gives up nothing and says nothing.
        ("cuda", {"capability": (8, 0), "library": "it is stale", "misfit": True}, "triton", None),
        ("cuda", {"capability": (7, 5)}, "reference", r"eager .*triton: compute cap.*; native: compute cap"),
        ("mps", {}, "reference", None),
    ],
)
def test_what_auto_gives_up_is_said_once(monkeypatch, pretend, device_type, machine, chosen, said):
    misfit = "stale" if machine.pop("misfit", False) else None
    pretend(**machine)
    monkeypatch.setattr(binaries, "misfit", lambda name: misfit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [backends.choose("auto", device_type) for _ in range(3)] == [chosen] * 3
        assert backends.choose("reference", device_type) == "reference"  # no warning: it was asked for by name
    assert len(caught) == (said is not None)
    for warning in caught:
        assert warning.category is RuntimeWarning
        assert re.search(f"^fdkernels serves {device_type} tensors with {said}", str(warning.message))
        assert f"`python -m fdkernels` says more; backend={chosen!r} asks for it" in str(warning.message)


def test_log_names_what_is_faster_and_missing(monkeypatch, pretend, caplog):
    pretend(library="libfdkernels_cuda.so was not built")
    monkeypatch.setattr(backends, "LOGGING", True)
    monkeypatch.setattr(backends, "_logged", set())
    for op, backend in (("first", "triton"), ("second", "native"), ("third", "triton")):
        backends.log_choice(op, backend, "cpu" if op == "third" else "cuda")
    assert [record.message for record in caplog.records] == [
        "first on cuda: triton (native: libfdkernels_cuda.so was not built)",
        "second on cuda: native",
        "third on cpu: triton (native: libfdkernels_cuda.so was not built)",
    ]


def test_a_compiled_step_names_its_backend_too(monkeypatch, fresh_compiler, caplog):
    monkeypatch.setattr(backends, "LOGGING", True)
    monkeypatch.setattr(backends, "_logged", set())
    step = torch.compile(lambda logits: 2 * fdk.fdiv_weight(logits), fullgraph=True, backend="eager")
    logits = torch.linspace(-1, 1, 8)
    torch.testing.assert_close(step(logits), 2 * fdk.fdiv_weight(logits))
    said = [record.message for record in caplog.records if record.name == "fdkernels"]
    assert said == ["fdiv_weight on cpu: native"]


def test_other_devices(fresh):
    assert "mps" in backends.unavailable("triton", "mps") and "mps" in backends.unavailable("native", "mps")
    assert backends.choose("auto", "mps") == "reference"


def test_a_backend_asked_for_by_name_never_falls_back(monkeypatch, fresh):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x = torch.zeros(8, 4)
    with pytest.raises(RuntimeError, match="^backend 'triton' is not available for cpu tensors"):
        fdk.fused_fdiv_loss(x, x, x, divergence="rkl", backend="triton")
