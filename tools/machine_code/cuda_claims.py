"""Claims about every kernel of the CUDA library, which can fail."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

from tools.machine_code.cuda_library import FLAGSHIPS, ROOT, CudaKernel, Types

MOST_KERNELS = 48  # for one architecture
MOST_REGISTERS = 128  # per thread, with 512 threads a block
MOST_CODE = {
    "plain": 80,
    "general": 130,
    "any type": 168,
    "small": 40,
    "elementwise": 56,
}  # KB, which each training step fetches anew
LONGER_FROM, LONGER = 100, 1.3  # newer architectures need more instructions for the same code
COMBINATIONS = 12  # of types, per schedule
MOST_GENERAL_WIDTH = 4  # elements
TOGETHER = 6  # element loads in flight
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
        has_many = k.general or k.kernel == "fdiv_grid_kernel"
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
    load one vector at a time, of four elements at most, also of x_t and of the unconditional predictions. All load the
    predictions again where directions are not on chip."""
    if k.types is None or _goes_by_elements(k):
        return
    if k.kernel not in FLAGSHIPS:
        yield from _accesses("loads of elements", k.loads, {128: 1}, tuple(k.loads))
        return
    predictions, others = (4 + 4, 2) if k.general else (3 * 2 + 2, 3)
    wanted = Counter[int]()
    wanted[_bits(k, k.types.prediction)] += predictions
    wanted[_bits(k, k.types.student)] += others
    yield from _accesses("loads of elements", k.loads, wanted, _narrower(k.types))


def loads_before_use(k: CudaKernel) -> Iterator[str]:
    """Six loads start before the first result is needed: two vectors each of x, tau and f; in general kernels one each
    of x, x_t, tau, f and the two unconditional predictions."""
    typed = k.types is not None and k.types.student != "any"
    if k.kernel in FLAGSHIPS and typed and k.in_flight < TOGETHER:
        yield f"{k.in_flight} loads before the first use, {TOGETHER} wanted"


def no_doubles(k: CudaKernel) -> Iterator[str]:
    """The loop over whole vectors adds up in float."""
    if k.kernel in FLAGSHIPS and not k.general and k.doubles:
        yield f"{k.doubles} instructions of double arithmetic where elements are loaded"


def gradient_stores(k: CudaKernel) -> Iterator[str]:
    """Stores are as wide as loads; they are single elements at a sample's end and where it is not aligned."""
    if k.types is None or _goes_by_elements(k):
        return
    each = k.types.bytes(k.types.student)
    wanted = {8 * each * k.types.vector: 1, _bits(k, k.types.student): 1}
    others = (32, 64) if k.kernel == "denoising_kernel" else ()  # sums and losses
    yield from _accesses("stores of the gradient", k.stores, wanted, (8 * each, *others, *_narrower(k.types)))


def on_chip(k: CudaKernel) -> Iterator[str]:
    """Directions go to shared memory and come back 16 bytes at a time."""
    if k.types is None or k.kernel not in FLAGSHIPS or _goes_by_elements(k):
        return
    each = k.types.bytes(k.types.arithmetic)
    of_vector, of_width = k.types.vector * each // 16, _width(k) * each // 16
    yield from _accesses("stores on chip", k.kept, {128: of_width if k.general else 3 * of_vector}, (8 * each, 64))
    yield from _accesses("loads on chip", k.recalled, {128: of_vector}, (8, 8 * each, 64))


def cluster_instructions(k: CudaKernel) -> Iterator[str]:
    """Three cluster barriers: before the first sample, at each sample, and one by the warps that weigh. Sums go through
    distributed shared memory."""
    clusters = k.kernel == "fdiv_cluster_kernel" and k.arch >= CLUSTERS_FROM
    if clusters and k.barriers < 3:
        yield f"{k.barriers} cluster barriers, 3 wanted"
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
    if k.kernel == "fdiv_grid_kernel" and not k.sleeps:
        yield "no sleep while other blocks are waited for"


def atomics(k: CudaKernel) -> Iterator[str]:
    """One ticket; a grid kernel also counts arrivals at its team."""
    if k.float_atomics:
        yield f"{k.float_atomics} float atomics"
    wanted = {"fdiv_cluster_kernel": 1, "fdiv_grid_kernel": 2, "denoising_kernel": 1, "adversarial_kernel": 1}.get(
        k.kernel, 0
    )
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
            if count != COMBINATIONS:
                found.append(f"sm_{arch}: {name} in {count} combinations, {COMBINATIONS} wanted")
    return found


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
