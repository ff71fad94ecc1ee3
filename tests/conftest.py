"""Parametrizes contract tests by op and backend, and registers the table that counts what each backend has shown."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from fdkernels.fdiv.triton_plan import Limits
from fdkernels.implicit import triton_plan as implicit_plan
from tests import contracts, device, ops
from tests.contracts import ContractTable

INTERPRETED = Limits(
    whole_elements=128, whole_elements_general=128, weighed=4, busy_programs=12,
    tiles=(131_072, 16_384, 4_096, 1_024, 256, 64), most_programs=16, most_tiles=2,
)  # fmt: skip

IMPLICIT_INTERPRETED = implicit_plan.Limits(
    whole_elements=128, tiles=(64,), busy_programs=12, most_programs=16, samples=4
)

SETTINGS = pytest.StashKey()
NOTHING_RUNS = ("bad input", "raw operands")  # contracts whose calls are refused before a kernel launches

# Not collected on a GPU: ELSEWHERE, which does not test the GPU and may need packages that its machine lacks.
# Not collected without hypothesis, on any device: the files that import it.
collect_ignore: list[str] = []
ELSEWHERE = ("examples", "packaging", "fdistill", "benchmarks", "software_device", "tools")
NEED_HYPOTHESIS = tuple(
    str(file.relative_to(Path(__file__).parent))
    for file in sorted(Path(__file__).parent.glob("fdkernels/test_*.py"))
    if re.search(r"^(?:import|from) hypothesis\b", file.read_text(), re.MULTILINE)
)


def _round_like_a_gpu():
    """Correct Triton's interpreter, which truncates float32 to bfloat16 and rounds a fused multiply-add twice. Compiled
    code rounds the cast to nearest even, and the multiply-add once."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def rounding(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.array(src.data)).to(torch.bfloat16).view(torch.uint16)
            return TensorHandle(rounded.numpy(), dst_type.scalar)
        return cast(self, src, dst_type)

    def fused(self, x, y, z):
        wide = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data
        return TensorHandle(np.asarray(wide).astype(z.data.dtype), z.dtype.scalar)

    InterpreterBuilder.cast_impl = rounding
    InterpreterBuilder.create_fma = fused


def _interpret_faster():
    """Make Triton's interpreter faster. It patches its language in each call of a helper, although the launch did so: a
    launch of ours is 3 times as fast without. It builds its table of types for every value: a sixth of what is left."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch, type_of, types = interpreter._patch_lang, interpreter._get_np_dtype, {}

    def known_type_of(dtype):
        name = dtype.scalar.name
        if name not in types:
            types[name] = type_of(dtype)
        return types[name]

    def patch_what_is_not(function):
        languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(language.load) for language in languages):
            return patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_what_is_not
    interpreter._get_np_dtype = known_type_of


def pytest_addoption(parser):
    parser.addoption("--backend", action="append", help="only these backends (then no cell is demanded of the table)")
    parser.addoption("--device", choices=("cpu", "cuda"), help="where the contract tests run; -m gpu implies cuda")


def pytest_configure(config):
    # A shell's background jobs ignore Ctrl-C, and so would the processes that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "contract(name, op): the contract that a test shows; the op, if it is not fdiv")
    config.addinivalue_line("markers", "backends(*names): the backends that can show it, where not every one can")
    config.addinivalue_line("markers", "needs(*fields): of ops whose entry in tests/ops.py has these")
    config.addinivalue_line("markers", "cpu_only(reason): says nothing about another device: skipped there")
    config.addinivalue_line("markers", "host_code(what): shows what Python and PyTorch do: not on the software device")
    config.addinivalue_line("markers", "pairwise: interpreted, not every combination of its parameters, but every pair")
    config.addinivalue_line("markers", "gpu: needs a GPU and compiled kernels: -m gpu, or --device cuda")
    _choose_device(config)
    has_hypothesis = importlib.util.find_spec("hypothesis") is not None
    table = ContractTable(ops.contracts())
    if device.name() == "cuda":
        collect_ignore.extend(ELSEWHERE)
        table.excused.update(("distributed", backend) for backend in contracts.backends())
    if not has_hypothesis:
        collect_ignore.extend(NEED_HYPOTHESIS)
        table.excused.update(("properties", backend) for backend in contracts.backends())
    config.pluginmanager.register(table, "contract-table")
    if has_hypothesis:
        _register_profiles()
    if _is_interpreted():
        _round_like_a_gpu()
        _interpret_faster()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Workers share the cores.
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _choose_device(config):
    """Call this before anything imports Triton: Triton then decides whether it interprets kernels."""
    asked = config.getoption("device")
    chosen = asked or ("cuda" if config.getoption("markexpr") == "gpu" else "cpu")
    if asked == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no such device")
    os.environ[device.VARIABLE] = chosen
    if chosen == "cuda":
        os.environ["TRITON_INTERPRET"] = "0"
    else:
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _is_interpreted():
    return os.environ["TRITON_INTERPRET"] == "1"


def _register_profiles():
    import hypothesis

    hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
    hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_report_header():
    lines = [f"not collected: {', '.join(collect_ignore)}"] if collect_ignore else []
    if device.name() == "cpu":
        if not contracts.HAS_SOFTWARE:
            lines.append("no software device: Linux x86-64 and GCC 12 or newer have it")
        return lines
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none here"
    return [f"device: {card}", *lines]


def _adds_no_pair(item):
    """Whether to drop an interpreted test marked pairwise. It is kept if its places (the indices of its values in their
    parameters' lists) add up to a multiple of the shortest list's length. Any two values still meet in a kept test."""
    if not item.get_closest_marker("pairwise") or not device.is_slow(item.callspec.params["backend"]):
        return False
    params = item.callspec.params
    given = [(mark.args[0], list(mark.args[1])) for mark in item.iter_markers("parametrize")]
    given += [(axis, list(of(ops.OPS[params["op"]]))) for axis, of in ops.AXES.items() if axis in params]
    if len(given) < 3:
        raise pytest.UsageError(f"{item.nodeid}: pairwise takes three parameters, or pairs would be lost")
    places = (values.index(params[name]) for name, values in given)
    return sum(places) % min(len(values) for _, values in given) > 0


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if not _adds_no_pair(item)]
    for item in items:
        only_cpu = item.get_closest_marker("cpu_only")
        if only_cpu and device.name() != "cpu":
            item.add_marker(pytest.mark.skip(reason=f"shown on the CPU: {only_cpu.args[0]}"))
        if item.get_closest_marker("gpu") and not (device.name() == "cuda" and torch.cuda.is_available()):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and -m gpu or --device cuda"))


def _settings():
    """The settings of fdkernels and Triton. A test that leaves them changed would change the tests after it.

    Inductor sets two of Triton's for a process; they name its own cache and assembler.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("FDKERNELS_", "TRITON_")) and name not in ("TRITON_CACHE_DIR", "TRITON_PTXAS_PATH")
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[SETTINGS] = _settings()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    try:
        return (yield)
    finally:
        before, after = item.stash[SETTINGS], _settings()
        for name in after:
            del os.environ[name]
        os.environ.update(before)
        if before != after and sys.exc_info()[0] is None:
            pytest.fail(f"left in the environment: {dict(after.items() ^ before.items())}", pytrace=False)


def pytest_generate_tests(metafunc):
    if "op" in metafunc.fixturenames:
        contract, needs = (metafunc.definition.get_closest_marker(name) for name in ("contract", "needs"))
        having = [name for name in ops.OPS if contract is None or (name, contract.args[0]) in ops.contracts()]
        having = [
            name for name in having if all(getattr(ops.OPS[name], what) for what in (needs.args if needs else ()))
        ]
        axes = [axis for axis in ops.AXES if axis in metafunc.fixturenames]
        if axes:
            pairs = [(name, value) for name in having for value in ops.AXES[axes[0]](ops.OPS[name])]
            metafunc.parametrize(("op", axes[0]), pairs, indirect=["op"])
        else:
            metafunc.parametrize("op", having, indirect=True)
    if "backend" in metafunc.fixturenames:
        # A test that only some backends can show names them: @pytest.mark.backends("native").
        mark = metafunc.definition.get_closest_marker("backends")
        available = contracts.backends()
        named = list(mark.args if mark else available)
        says_nothing = any(metafunc.definition.get_closest_marker(name) for name in ("cpu_only", "host_code"))
        if contracts.SOFTWARE in named and says_nothing:
            named.remove(contracts.SOFTWARE)
        elif mark and "native" in named and not says_nothing:
            named.append(contracts.SOFTWARE)
        chosen = metafunc.config.getoption("backend") or available
        names = [name for name in named if name in chosen and name in available]
        none = pytest.param("none", marks=pytest.mark.skip(f"asked for {chosen}, shown on {named}"))
        more = os.environ.get("FDKERNELS_SOFTWARE_DEVICE")
        if contracts.SOFTWARE in names and more is not None:
            from tests.software_device.settings import WAYS

            if more not in map(str, range(1, len(WAYS))):
                raise pytest.UsageError(f"FDKERNELS_SOFTWARE_DEVICE: expected 1 to {len(WAYS) - 1} ways, got {more!r}")
            names = [name for name in names if name != contracts.SOFTWARE]
            names += [f"{contracts.SOFTWARE}: {way}" for way in range(1, 1 + int(more))]
        metafunc.parametrize("backend", names or [none], scope="session", indirect=True)


@pytest.fixture
def op(request):
    """An entry of `tests/ops.py`."""
    return ops.OPS[request.param]


@pytest.fixture(scope="session")
def backend(request):
    """The backend that a test asks fdkernels for: native, in the software device's column."""
    return "native" if contracts.column(request.param) == contracts.SOFTWARE else request.param


@pytest.fixture(autouse=True)
def _software(request):
    """Run a test of the software device's column on that device, in one of its settings."""
    values = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if contracts.column(values.get("backend", "")) != contracts.SOFTWARE:
        yield
        return
    from tests.software_device.settings import setting_of

    setting = setting_of(request.node.nodeid, values["backend"])
    contract = request.node.get_closest_marker("contract")
    with pytest.MonkeyPatch.context() as patch, setting.in_force() as software:
        patch.setattr(device, "on_software", True)
        software.begin()
        yield
        setting.check(software, may_launch_none=contract is not None and contract.args[0] in NOTHING_RUNS)
    way = f"sm_{setting.architecture} {'any plan, as none asked for holds' if software.fallbacks else setting.plan}"
    request.node.user_properties.append(("setting", (way, setting.scheduler)))


@pytest.fixture(autouse=True)
def _usable(request):
    """A backend that cannot run fails its tests; they are not skipped."""
    if "backend" in request.fixturenames:
        from fdkernels.backends import available

        backend = request.node.callspec.params["backend"]
        if contracts.column(backend) in ("none", contracts.SOFTWARE):
            return
        reason = available(device.name())[backend]
        if reason is not None:
            pytest.fail(f"backend {backend} is unavailable: {reason}")


@pytest.fixture(autouse=True)
def _small_programs(monkeypatch):
    """Interpreted, a program costs milliseconds: use few, but several per sample, with tails and loops over tiles.
    Only small batches are weighed in each program: test_triton_schedules.py has every option in both ways."""
    if _is_interpreted():
        from fdkernels._triton import plan
        from fdkernels.fdiv import triton_plan

        monkeypatch.setattr(triton_plan, "LIMITS", INTERPRETED)
        monkeypatch.setattr(implicit_plan, "LIMITS", IMPLICIT_INTERPRETED)
        monkeypatch.setattr(plan, "SCALE_TILE", 64)
        monkeypatch.setattr(plan, "SCALE_PROGRAMS", 16)


@pytest.fixture
def fresh_compiler():
    """torch.compile without the graphs of other tests."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def world(tmp_path):
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()
