"""The claims of `make check-kernels` about the CUDA library hold for the built one, and fail for broken kernels."""

import re
import sys
from collections import Counter
from dataclasses import replace

import pytest

from tests.gpu.test_plans import STATIC_SHARED
from tools.machine_code import __main__ as command
from tools.machine_code import cuda_library
from tools.machine_code.broken_cuda import BROKEN, UNBROKEN, compile_broken, find_nvcc
from tools.machine_code.cuda_claims import failures, library_failures, planned
from tools.machine_code.cuda_library import LIBRARY, CudaKernel, Types, architectures, kernels
from tools.machine_code.instructions import SYSTEM_SHARED, functions, in_flight, stretches

NVCC = find_nvcc()
PLAIN, GENERALS = planned("kRegistersAThread"), planned("kRegistersAThreadGeneral")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc")

GOOD = CudaKernel(
    kernel="fdiv_cluster_kernel", types=Types("bf16", "bf16", "f32"), general=False, arch=90, registers=PLAIN,
    spilled=0, shared=2192, loads=Counter({128: 11}), in_flight=6, doubles=0, stores=Counter({128: 1, 16: 1}),
    kept=Counter({128: 6, 32: 1}), recalled=Counter({128: 2, 32: 1}), barriers=3, distributed=1, prefetches=2,
    sleeps=0, integer_atomics=1, float_atomics=0, calls=(), instructions=5_000,
)  # fmt: skip
GENERAL = replace(
    GOOD, general=True, registers=GENERALS, loads=Counter({64: 10}), instructions=8_000, doubles=4,
    stores=Counter({128: 1, 64: 1, 16: 2}), kept=Counter({128: 1, 32: 1}),
)  # fmt: skip
MIXED = replace(
    GOOD, types=Types("f16", "f32", "f32"), loads=Counter({128: 8, 64: 3}), stores=Counter({64: 1, 16: 1}),
    kept=Counter({128: 3}), recalled=Counter({128: 1}),
)  # fmt: skip
ANY = replace(
    GENERAL, types=Types("any", "any", "f32"), loads=Counter({128: 10, 64: 20}), recalled=Counter({128: 1}),
    stores=Counter({128: 1, 64: 3, 32: 1, 16: 2}),
)  # fmt: skip
AMPERE = replace(GOOD, arch=80, barriers=0, distributed=0, prefetches=0)
GRID = replace(GOOD, kernel="fdiv_grid_kernel", barriers=0, distributed=0, sleeps=1, integer_atomics=2)
IMPLICIT = replace(
    GOOD, kernel="implicit_cluster_kernel", loads=Counter({128: 12}), in_flight=5, stores=Counter({128: 6, 16: 3}),
    kept=Counter({128: 12, 32: 2}), recalled=Counter({128: 5, 32: 2}), barriers=2, instructions=3_200,
)  # fmt: skip
IMPLICIT_GRID = replace(
    IMPLICIT, kernel="implicit_grid_kernel", registers=GENERALS, barriers=0, distributed=0, sleeps=1, integer_atomics=2
)
IMPLICIT_ANY = replace(
    IMPLICIT, types=Types("any", "any", "f32"), general=True, registers=100, loads=Counter({128: 6, 64: 12}),
    in_flight=1, doubles=0, stores=Counter({128: 6, 64: 15, 32: 3, 16: 6}), kept=Counter({128: 2, 32: 2}),
    recalled=Counter({128: 3, 64: 1, 32: 2}), instructions=4_300,
)  # fmt: skip
SCALE = replace(
    AMPERE, kernel="scale_kernel", types=None, shared=0, loads=Counter({128: 4, 16: 10}), in_flight=0, kept=Counter(),
    stores=Counter({128: 4, 16: 2}), recalled=Counter(), integer_atomics=0, instructions=1_100,
)  # fmt: skip
COUNT = replace(SCALE, kernel="fdiv_count_kernel", loads=Counter(), stores=Counter())


@pytest.mark.parametrize(
    "kernel",
    (GOOD, GENERAL, MIXED, ANY, AMPERE, GRID, IMPLICIT, IMPLICIT_GRID, IMPLICIT_ANY, SCALE, COUNT),
    ids=lambda k: k.title,
)
def test_a_good_kernel_breaks_no_claim(kernel):
    assert failures(kernel) == []


@pytest.mark.parametrize(
    ("kernel", "change", "words"),
    [
        (GOOD, {"registers": PLAIN + 1}, f"{PLAIN + 1} registers, at most {PLAIN} wanted"),
        (GENERAL, {"registers": GENERALS + 1}, f"registers, at most {GENERALS} wanted"),
        (GRID, {"registers": GENERALS + 1}, f"registers, at most {GENERALS} wanted"),
        (COUNT, {"registers": 129}, "129 registers, at most 128 wanted"),
        (GOOD, {"instructions": 5_889}, "92 KB of code, at most 92 wanted"),
        (replace(GOOD, arch=120), {"instructions": 7_700}, "120 KB of code, at most 120 wanted"),
        (GENERAL, {"instructions": 9_150}, "143 KB of code, at most 142 wanted"),
        (ANY, {"instructions": 11_300}, "177 KB of code, at most 176 wanted"),
        (COUNT, {"instructions": 2_600}, "41 KB of code, at most 40 wanted"),
        (GOOD, {"spilled": 8}, "spills 8 bytes"),
        (ANY, {"spilled": 44}, "spills 44 bytes"),
        (GOOD, {"shared": 3073}, "3073 bytes of static shared memory, at most 3072 wanted"),
        (GOOD, {"loads": Counter({128: 10})}, "10 loads of elements of 128 bits, 11 wanted"),
        (GOOD, {"loads": Counter({128: 11, 32: 4})}, "4 loads of elements of 32 bits"),
        (GENERAL, {"loads": Counter({64: 9})}, "9 loads of elements of 64 bits, 10 wanted"),
        (MIXED, {"loads": Counter({128: 8, 64: 2})}, "2 loads of elements of 64 bits, 3 wanted"),
        (ANY, {"loads": Counter({128: 9, 64: 20})}, "9 loads of elements of 128 bits, 10 wanted"),
        (SCALE, {"loads": Counter({128: 3, 32: 4})}, "3 loads of elements of 128 bits, 4 wanted"),
        (GOOD, {"in_flight": 3}, "3 loads before the first use, 6 wanted"),
        (GENERAL, {"in_flight": 4}, "4 loads before the first use, 6 wanted"),
        (GRID, {"in_flight": 5}, "5 loads before the first use, 6 wanted"),
        (IMPLICIT, {"registers": PLAIN + 1}, f"{PLAIN + 1} registers, at most {PLAIN} wanted"),
        (IMPLICIT, {"in_flight": 4}, "4 loads before the first use, 5 wanted"),
        (IMPLICIT, {"loads": Counter({128: 11})}, "11 loads of elements of 128 bits, 12 wanted"),
        (IMPLICIT, {"stores": Counter({128: 2, 16: 3})}, "2 stores of the gradient of 128 bits, 3 wanted"),
        (IMPLICIT, {"kept": Counter({128: 11})}, "11 stores on chip of 128 bits, 12 wanted"),
        (IMPLICIT, {"recalled": Counter({128: 3})}, "3 loads on chip of 128 bits, 4 wanted"),
        (IMPLICIT, {"barriers": 1}, "1 cluster barriers, 2 wanted"),
        (IMPLICIT_ANY, {"loads": Counter({128: 5, 64: 12})}, "5 loads of elements of 128 bits, 6 wanted"),
        (IMPLICIT_ANY, {"kept": Counter({128: 1})}, "1 stores on chip of 128 bits, 2 wanted"),
        (IMPLICIT_GRID, {"integer_atomics": 1}, "1 integer atomics, 2 wanted"),
        (IMPLICIT_GRID, {"sleeps": 0}, "no sleep"),
        (GOOD, {"doubles": 2}, "2 instructions of double arithmetic"),
        (GOOD, {"stores": Counter({16: 1})}, "0 stores of the gradient of 128 bits, 1 wanted"),
        (GOOD, {"stores": Counter({128: 1, 32: 4})}, "4 stores of the gradient of 32 bits"),
        (MIXED, {"stores": Counter({16: 1})}, "0 stores of the gradient of 64 bits, 1 wanted"),
        (SCALE, {"stores": Counter({16: 1})}, "0 stores of the gradient of 128 bits, 4 wanted"),
        (GOOD, {"kept": Counter({128: 5})}, "5 stores on chip of 128 bits, 6 wanted"),
        (GOOD, {"kept": Counter({128: 6, 16: 1})}, "1 stores on chip of 16 bits"),
        (GOOD, {"recalled": Counter({32: 8})}, "0 loads on chip of 128 bits, 2 wanted"),
        (GOOD, {"barriers": 2}, "2 cluster barriers, 3 wanted"),
        (GOOD, {"distributed": 0}, "no store to distributed shared memory"),
        (AMPERE, {"barriers": 1}, "1 cluster barriers, 0 stores to distributed shared memory, none wanted"),
        (GRID, {"distributed": 1}, "0 cluster barriers, 1 stores to distributed shared memory, none wanted"),
        (GOOD, {"prefetches": 1}, "1 bulk prefetches, 2 wanted"),
        (AMPERE, {"prefetches": 2}, "2 bulk prefetches, 0 wanted"),
        (GRID, {"sleeps": 0}, "no sleep"),
        (GOOD, {"float_atomics": 1}, "1 float atomics"),
        (GOOD, {"integer_atomics": 2}, "2 integer atomics, 1 wanted"),
        (GRID, {"integer_atomics": 1}, "1 integer atomics, 2 wanted"),
        (SCALE, {"integer_atomics": 1}, "1 integer atomics, 0 wanted"),
        (GOOD, {"calls": ("vprintf",)}, "calls vprintf"),
    ],
)
def test_each_claim_can_fail(kernel, change, words):
    (failure,) = failures(replace(kernel, **change))
    assert words in failure


def test_the_claims_of_a_whole_library_can_fail():
    complete = (
        [GOOD] * 12
        + [GRID] * 12
        + [IMPLICIT] * 4
        + [IMPLICIT_GRID] * 4
        + [replace(SCALE, arch=90)]
        + [replace(COUNT, arch=90)] * 3
    )
    assert library_failures(complete) == []
    assert library_failures(complete[1:]) == ["sm_90: fdiv_cluster_kernel in 11 combinations, 12 wanted"]
    assert library_failures(complete[:-5]) == ["sm_90: implicit_grid_kernel in 3 combinations, 4 wanted"]
    assert library_failures([*complete, *complete[-1:] * 29]) == ["sm_90: 65 kernels, at most 64 wanted"]


@needs_nvcc
@pytest.mark.parametrize("name", UNBROKEN)
def test_a_kernel_of_these_sources_breaks_no_claim(name, tmp_path):
    assert failures(compile_broken(UNBROKEN[name], NVCC, tmp_path)) == []


@needs_nvcc
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_kernel_is_caught(name, tmp_path):
    found = failures(compile_broken(BROKEN[name], NVCC, tmp_path))
    assert all(any(words in failure for failure in found) for words in BROKEN[name].caught), found


@pytest.mark.skipif(not LIBRARY.exists(), reason="no CUDA library was built")
@pytest.mark.parametrize("arch", (80, 90, 100, 120))
def test_every_kernel_that_is_built_is_as_claimed(arch):
    if arch not in architectures():
        pytest.skip(f"the library holds no machine code for sm_{arch}")
    found = kernels(LIBRARY, [arch])
    broken = {kernel.title: failures(kernel) for kernel in found if failures(kernel)}
    assert broken == {}
    assert library_failures(found) == []


def test_a_missing_library_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "LIBRARY", cuda_library.ROOT / "fdkernels/libfdkernels_cuda_not_there.so")
    monkeypatch.setattr(sys, "argv", ["machine_code", "--only", "cuda"])
    assert command.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "built without nvcc" in line


def test_the_table_names_what_fails(monkeypatch, capsys):
    monkeypatch.setattr(command, "LIBRARY", cuda_library.ROOT / "setup.py")
    monkeypatch.setattr(command, "architectures", lambda: [90])
    monkeypatch.setattr(command, "kernels", lambda library, archs: [GOOD, replace(GOOD, spilled=8)])
    monkeypatch.setattr(sys, "argv", ["machine_code", "--only", "cuda"])
    assert command.main() == 1
    header, good, broken, *rest = capsys.readouterr().out.splitlines()
    assert good.startswith("fdiv_cluster_kernel<bf16, bf16, f32> ") and good.endswith("ok")
    assert re.search(r"\b8 .*spills 8 bytes$", broken)
    assert rest[-1] == "2 kernels of setup.py for sm_90: 1 as claimed, 1 not"


def test_the_test_of_launches_allows_what_cuda_takes_of_each_block():
    """A profiler may count it as the kernel's: 3,216 bytes for a flagship that declares 2,192."""
    assert planned("kStaticShared") + SYSTEM_SHARED <= STATIC_SHARED


@pytest.mark.parametrize(
    ("mangled", "title"),
    [
        ("_ZN9fdkernels4cuda19fdiv_cluster_kernelINS_5TypesINS_4Bf16ES3_fEELb0EEEvNS0_4CallE",
         "fdiv_cluster_kernel<bf16, bf16, f32>"),
        ("_ZN9fdkernels4cuda16fdiv_grid_kernelINS_5TypesINS_4HalfEffEELb1EEEvNS0_4CallE",
         "fdiv_grid_kernel<f16, f32, f32> general"),
        ("_ZN9fdkernels4cuda16fdiv_grid_kernelINS_5TypesINS_7AnyTypeES3_dEELb1EEEvNS0_4CallE",
         "fdiv_grid_kernel<any, any, f64> general"),
        ("_ZN9fdkernels4cuda19fdiv_cluster_kernelINS_5TypesIfffEELb0EEEvNS0_4CallE",
         "fdiv_cluster_kernel<f32, f32, f32>"),
        ("_ZN9fdkernels4cuda50_GLOBAL__N__9bd_11_implicit_cu_b23implicit_cluster_kernelINS_5TypesINS_4Bf16ES4_fEEEEvNS0_12"
         "ImplicitCallE", "implicit_cluster_kernel<bf16, bf16, f32>"),
        ("_ZN9fdkernels4cuda50_GLOBAL__N__9bd_11_implicit_cu_b20implicit_grid_kernelINS_5TypesINS_7AnyTypeES4_dEEEEvNS0_12"
         "ImplicitCallE", "implicit_grid_kernel<any, any, f64> general"),
        ("_ZN9fdkernels4cuda44_GLOBAL__N__9bd_10_noising_cu_b14noising_kernelINS_5TypesINS_4HalfES4_fEEEEvNS0_11NoisingCall"
         "ENS0_4RunsE", "noising_kernel<f16, f32>"),
        ("_ZN9fdkernels4cuda41_GLOBAL__N__9bd_8_scale_cu_b12scale_kernelENS1_6ScalesE", "scale_kernel"),
        ("_ZN9fdkernels4cuda46_GLOBAL__N__9bd_13_fdiv_small_cu_b17fdiv_count_kernelENS_5TableElPd",
         "fdiv_count_kernel"),
    ],
)  # fmt: skip
def test_names(mangled, title):
    kernel, types, general = cuda_library.named(mangled)
    assert replace(GOOD, kernel=kernel, types=types, general=general).title == title


def test_a_type_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="Fp8"):
        cuda_library.named("_ZN9fdkernels4cuda19fdiv_cluster_kernelINS_5TypesINS_3Fp8ES3_fEELb0EEEvNS0_4CallE")


CODE = """
.text.two_loads:
        /*0000*/                   LDG.E.128.CONSTANT R12, desc[UR10][R2.64] ;
        /*0010*/              @!P0 LDG.E.64.CONSTANT R20, desc[UR10][R4.64] ;
        /*0020*/                   CS2R R30, SRZ ;
.L_x_1:
        /*0030*/                   LDG.E.128.CONSTANT R12, desc[UR10][R2.64+0x10] ;
        /*0040*/                   FADD R1, R15, R20 ;
        /*0050*/                   LDG.E.64.CONSTANT R20, desc[UR10][R4.64] ;
        /*0060*/                   EXIT ;
.text.another:
        /*0000*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0010*/                   BRA `(.L_x_2) ;
"""


def test_machine_code_is_read():
    found = functions(CODE)
    first, second = found["two_loads"]
    assert [i.opcode for i in first] == ["LDG.E.128.CONSTANT", "LDG.E.64.CONSTANT", "CS2R"]
    assert [i.bits for i in first[:2]] == [128, 64]
    assert second[-1].opcode == "EXIT" and second[-1].operands == ""
    (another,) = found["another"]
    assert [i.operands for i in another] == ["0x0", "`(.L_x_2)"]
    assert list(stretches(another)) == [[], another[1:]]


def test_loads_in_flight_end_at_the_first_use():
    def is_load(instruction):
        return instruction.kind == "LDG"

    first, second = functions(CODE)["two_loads"]
    assert in_flight(first, is_load) == 2
    assert in_flight(second, is_load) == 1  # R15 is one of the first load's four registers
