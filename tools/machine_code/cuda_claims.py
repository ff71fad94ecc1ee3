"""Claims about every kernel of the CUDA library, which can fail."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

from tools.machine_code.cuda_library import FLAGSHIPS, ROOT, CudaKernel, Types

MOST_KERNELS = 64  # for one architecture, of all ops
MOST_REGISTERS = 128  # per thread, with 512 threads a block
MOST_CODE = {
    "plain": 92,
    "general": 142,
    "any type": 176,
    "small": 40,
    "elementwise": 56,
}  # KB, which each training step fetches anew
LONGER_FROM, LONGER = 100, 1.3  # newer architectures need more instructions for the same code
COMBINATIONS = {"fdiv": 12, "implicit": 4}  # of types, per schedule
HELD = {"fdiv": 1, "implicit": 2}  # values of each element that stay on chip
GRADIENTS = {"implicit": 3}  # 1 of any other op
SCALED_TYPES = 4  # of gradients, between which a block of scale_kernel chooses
MOST_GENERAL_WIDTH = 4  # elements
TOGETHER = {"fdiv": 6, "implicit": 5}  # element loads in flight
CLUSTERS_FROM = 90

Claim = Callable[[CudaKernel], Iterator[str]]


def planned(name: str) -> int:
    """The value of a constant of csrc/core/plan.h."""
    found = re.search(rf"\b{name} = ([\d* ]+)[,;]", (ROOT / "csrc/core/plan.h").read_text())
    if found is None:
        raise LookupError(f"csrc/core/plan.h: no constant {name}")
    product = 1
    for factor in found[1].split("*"):
        product *= int(factor)
    return product


def registers(k: CudaKernel) -> Iterator[str]:
    """The plan derives a block's threads, and the blocks that fit on a multiprocessor, from these limits."""
    most = MOST_REGISTERS
    if k.kernel in FLAGSHIPS:
        has_many = k.general or k.kernel.endswith("_grid_kernel")
        most = planned("kRegistersAThreadGeneral" if has_many else "kRegistersAThread")
    if k.registers > most:
        yield f"{k.registers} registers, at most {most} wanted"


def no_spills(k: CudaKernel) -> Iterator[str]:
    """Only kernels for any mix of types may spill, a few words: they have a switch for every load."""
    most = 40 if k.types is not None and k.types.student == "any" else 0
    if k.spilled > most:
        yield f"spills {k.spilled} bytes"


def code_size(k: CudaKernel) -> Iterator[str]:
    kind = "small" if k.kernel not in FLAGSHIPS else "general" if k.general else "plain"
    if k.kernel in ("noising_kernel", "denoising_kernel", "adversarial_kernel"):
        kind = "elementwise"
    if k.kernel in FLAGSHIPS and k.types is not None and k.types.student == "any":
        kind = "any type"
    most = MOST_CODE[kind] * (LONGER if k.arch >= LONGER_FROM else 1)
    if k.code > most:
        yield f"{k.code:.0f} KB of code, at most {most:.0f} wanted"


def shared_memory(k: CudaKernel) -> Iterator[str]:
    if k.shared > planned("kStaticShared"):
        yield f"{k.shared} bytes of static shared memory, at most {planned('kStaticShared')} wanted"


def _accesses(what: str, found: Counter[int], wanted: dict[int, int], also: tuple[int, ...]) -> Iterator[str]:
    """At least the wanted number of each width, and none of a width that is neither wanted nor in `also`."""
    for bits, count in wanted.items():
        if found[bits] < count:
            yield f"{found[bits]} {what} of {bits} bits, {count} wanted"
    for bits in sorted(set(found) - set(wanted) - set(also)):
        yield f"{found[bits]} {what} of {bits} bits"


def element_loads(k: CudaKernel) -> Iterator[str]:
    """Plain kernels load vectors of x, tau and f, in a loop over two at a time and in a loop over one. General kernels
    load one vector at a time, of four elements at most, fdiv's also of x_t and of the unconditional predictions. All
    load the predictions again where what they need of them is not on chip; implicit's also x."""
    if k.kernel == "scale_kernel":
        yield from _accesses("loads of elements", k.loads, {128: SCALED_TYPES}, tuple(k.loads))
    if k.types is None or _goes_by_elements(k):
        return
    if k.kernel not in FLAGSHIPS:
        yield from _accesses("loads of elements", k.loads, {128: 1}, tuple(k.loads))
        return
    if _op(k) == "implicit":
        predictions, others = (2 + 2, 1 + 1) if k.general else (3 * 2 + 2, 3 + 1)
    else:
        predictions, others = (4 + 4, 2) if k.general else (3 * 2 + 2, 3)
    wanted = Counter[int]()
    wanted[_bits(k, k.types.prediction)] += predictions
    wanted[_bits(k, k.types.student)] += others
    yield from _accesses("loads of elements", k.loads, wanted, _narrower(k.types))


def loads_before_use(k: CudaKernel) -> Iterator[str]:
    """Six loads start before the first result is needed: two vectors each of x, tau and f; in general kernels one each
    of x, x_t, tau, f and the two unconditional predictions. For want of registers, implicit's may start with five."""
    typed = k.types is not None and k.types.student != "any"
    if k.kernel in FLAGSHIPS and typed and k.in_flight < TOGETHER[_op(k)]:
        yield f"{k.in_flight} loads before the first use, {TOGETHER[_op(k)]} wanted"


def no_doubles(k: CudaKernel) -> Iterator[str]:
    """The loop over whole vectors adds up in float."""
    if k.kernel in FLAGSHIPS and not k.general and k.doubles:
        yield f"{k.doubles} instructions of double arithmetic where elements are loaded"


def gradient_stores(k: CudaKernel) -> Iterator[str]:
    """Stores are as wide as loads; they are single elements at a sample's end and where it is not aligned."""
    if k.kernel == "scale_kernel":
        yield from _accesses("stores of the gradient", k.stores, {128: SCALED_TYPES}, tuple(k.stores))
    if k.types is None or _goes_by_elements(k):
        return
    each, gradients = k.types.bytes(k.types.student), GRADIENTS.get(_op(k), 1)
    wanted = {8 * each * k.types.vector: gradients, _bits(k, k.types.student): gradients}
    others = (32, 64) if k.kernel == "denoising_kernel" else ()  # sums and losses
    yield from _accesses("stores of the gradient", k.stores, wanted, (8 * each, *others, *_narrower(k.types)))


def on_chip(k: CudaKernel) -> Iterator[str]:
    """What a gradient needs goes to shared memory and comes back 16 bytes at a time."""
    if k.types is None or k.kernel not in FLAGSHIPS or _goes_by_elements(k):
        return
    each = k.types.bytes(k.types.arithmetic)
    of_vector, of_width = (HELD[_op(k)] * elements * each // 16 for elements in (k.types.vector, _width(k)))
    yield from _accesses("stores on chip", k.kept, {128: of_width if k.general else 3 * of_vector}, (8 * each, 64))
    yield from _accesses("loads on chip", k.recalled, {128: of_vector}, (8, 8 * each, 64))


def cluster_instructions(k: CudaKernel) -> Iterator[str]:
    """Cluster barriers before the first sample and at each sample, and of fdiv one by the warps that weigh. Sums go
    through distributed shared memory."""
    clusters = k.kernel.endswith("_cluster_kernel") and k.arch >= CLUSTERS_FROM
    wanted = 3 if _op(k) == "fdiv" else 2
    if clusters and k.barriers < wanted:
        yield f"{k.barriers} cluster barriers, {wanted} wanted"
    if clusters and not k.distributed:
        yield "no store to distributed shared memory"
    if not clusters and (k.barriers or k.distributed):
        yield f"{k.barriers} cluster barriers, {k.distributed} stores to distributed shared memory, none wanted"


def bulk_copies(k: CudaKernel) -> Iterator[str]:
    """Two bulk prefetches: the first sample's share, and the next one's."""
    wanted = 2 if k.kernel in FLAGSHIPS and k.arch >= CLUSTERS_FROM else 0
    if k.prefetches < wanted or (k.prefetches and not wanted):
        yield f"{k.prefetches} bulk prefetches, {wanted} wanted"


def waits_asleep(k: CudaKernel) -> Iterator[str]:
    if k.kernel.endswith("_grid_kernel") and not k.sleeps:
        yield "no sleep while other blocks are waited for"


def atomics(k: CudaKernel) -> Iterator[str]:
    """One ticket; a grid kernel also counts arrivals at its team."""
    if k.float_atomics:
        yield f"{k.float_atomics} float atomics"
    wanted = {"cluster": 1, "grid": 2, "denoising": 1, "adversarial": 1}.get(k.kernel.split("_")[-2], 0)
    if k.integer_atomics != wanted:
        yield f"{k.integer_atomics} integer atomics, {wanted} wanted"


def no_calls(k: CudaKernel) -> Iterator[str]:
    if k.calls:
        yield f"calls {', '.join(k.calls)}"


CLAIMS: tuple[Claim, ...] = (
    registers, no_spills, code_size, shared_memory, element_loads, loads_before_use, no_doubles,
    gradient_stores, on_chip, cluster_instructions, bulk_copies, waits_asleep, atomics, no_calls,
)  # fmt: skip


def failures(kernel: CudaKernel) -> list[str]:
    """The claims that a kernel breaks, in words."""
    return [broken for claim in CLAIMS for broken in claim(kernel)]


def library_failures(kernels: list[CudaKernel]) -> list[str]:
    """The claims that a whole library breaks."""
    found = []
    for arch in sorted({k.arch for k in kernels}):
        here = [k for k in kernels if k.arch == arch]
        if len(here) > MOST_KERNELS:
            found.append(f"sm_{arch}: {len(here)} kernels, at most {MOST_KERNELS} wanted")
        for name in FLAGSHIPS:
            count = sum(k.kernel == name for k in here)
            wanted = COMBINATIONS[name.partition("_")[0]]
            if count != wanted:
                found.append(f"sm_{arch}: {name} in {count} combinations, {wanted} wanted")
    return found


def _op(k: CudaKernel) -> str:
    return k.kernel.partition("_")[0]


def _goes_by_elements(k: CudaKernel) -> bool:
    """Whether this is a flagship in double. Its registers have no room for vectors: no claim is made about accesses."""
    assert k.types is not None
    return k.kernel in FLAGSHIPS and k.types.bytes(k.types.arithmetic) == 8


def _width(k: CudaKernel) -> int:
    """Elements that a thread loads at a time."""
    assert k.types is not None
    return min(MOST_GENERAL_WIDTH, k.types.vector) if k.general else k.types.vector


def _bits(k: CudaKernel, name: str) -> int:
    """Bits that a thread loads at a time of elements stored as `name`."""
    assert k.types is not None
    return 8 * _width(k) * k.types.bytes(name)


def _narrower(types: Types) -> tuple[int, ...]:
    """Widths of accesses for other types, in kernels that look types up at run time."""
    return (16, 32, 64) if types.student == "any" else ()
