"""The kernels of the built CUDA library, and figures from their machine code."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tools.machine_code.compiled import run, tool
from tools.machine_code.instructions import SYSTEM_SHARED, Block, Instruction, functions, in_flight, stretches

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "fdkernels/libfdkernels_cuda.so"

FLAGSHIPS = ("fdiv_cluster_kernel", "fdiv_grid_kernel", "implicit_cluster_kernel", "implicit_grid_kernel")
BYTES = {"bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_NAMES = {"Bf16": "bf16", "Half": "f16", "AnyType": "any", "f": "f32", "d": "f64"}
# fdiv_cluster_kernel<Types<Bf16, float, float>, false>, noising_kernel<Types<...>>, fdiv_count_kernel, mangled.
_MANGLED = re.compile(
    r"((?:fdiv_[a-z]+|implicit_[a-z]+|scale|adversarial|denoising|noising)_kernel)(?:I(?:NS_5TypesI)?((?:NS_\d(?:Bf16|Half|AnyType)E|S\d*_|f|d)+)E(?:ELb([01])E)?)?"
)
# Functions that a kernel may call: slow paths of 64-bit division and of double's division and square root, handling of
# diverged warps (sm_80), and the functions of csrc/ that a kernel holds only once (FDK_CALLED).
ARITHMETIC = re.compile(
    r"__cuda_sm\d+_(?:div_|rem_|dblrcp_|dsqrt_|shflsync_|warpsync)|^\.L_x_\d+$"
    r"|9fdkernels(?:4cuda|\d+_GLOBAL__N__\w+?)?\d+(?:add_lanes|exponential|logarithm|softplus|to_double|map_at|run_end"
    r"|minus_log_wide|add_generator)E"
)


class Types(NamedTuple):
    """Types that a kernel's tensors are stored in ("any": looked up at run time), and the type that it computes in."""

    student: str
    prediction: str
    arithmetic: str

    def bytes(self, name: str) -> int:
        return BYTES[self.arithmetic if name == "any" else name]

    @property
    def vector(self) -> int:
        """Elements in a 16-byte access of the wider stored type."""
        return 16 // max(self.bytes(self.student), self.bytes(self.prediction))


@dataclass
class CudaKernel:
    """Figures of one kernel for one architecture. Accesses are instructions in the code, counted by their bits.

    A flagship kernel loads elements in two stretches of code between barriers or shuffles: where it gathers sums, and
    where it scatters the gradient. Stores and accesses to shared memory are counted only there.
    """

    kernel: str
    types: Types | None
    general: bool
    arch: int
    registers: int
    spilled: int
    """Bytes of stack or local memory."""
    shared: int
    """Static bytes."""
    loads: Counter[int]
    """Loads of elements. A flagship kernel loads only elements through the read-only path. In a kernel that may
    overwrite what it loads, all loads count."""
    in_flight: int
    """The most loads of elements that have started before one is needed."""
    doubles: int
    """Instructions of double arithmetic in blocks that load elements."""
    stores: Counter[int]
    """Stores of the gradient."""
    kept: Counter[int]
    """Stores of directions to shared memory; doubles among them are the block's figures."""
    recalled: Counter[int]
    """Loads of directions from shared memory."""
    barriers: int
    """Barriers of the cluster: arrivals or waits, whichever are fewer."""
    distributed: int
    """Stores to another block's shared memory."""
    prefetches: int
    """Bulk copies from memory to L2."""
    sleeps: int
    integer_atomics: int
    float_atomics: int
    calls: tuple[str, ...]
    """Called functions, other than those of ARITHMETIC."""
    instructions: int

    @property
    def code(self) -> float:
        """KB of 16-byte instructions."""
        return self.instructions * 16 / 1024

    @property
    def resident(self) -> int:
        """Warps that the registers of a multiprocessor hold."""
        return 65_536 // (-(-self.registers // 8) * 8 * 32)

    @property
    def title(self) -> str:
        if self.types is None:
            return self.kernel
        names = self.types if self.kernel in FLAGSHIPS else self.types[::2]
        return f"{self.kernel}<{', '.join(names)}>{' general' if self.general else ''}"


def architectures(library: Path = LIBRARY) -> list[int]:
    """The architectures that a library holds machine code for."""
    return sorted(
        {int(arch) for arch in re.findall(r"\.sm_(\d+)\w*\.cubin", run(tool("cuobjdump"), "-lelf", str(library)))}
    )


def kernels(library: Path, archs: list[int]) -> list[CudaKernel]:
    """The kernels of a library for some architectures."""
    with tempfile.TemporaryDirectory() as folder:
        run(tool("cuobjdump"), "-xelf", "all", str(library.resolve()), cwd=folder)
        cubins = [
            (path, int(found[1]))
            for path in sorted(Path(folder).glob("*.cubin"))
            if (found := re.search(r"\.sm_(\d+)\w*\.cubin$", path.name)) and int(found[1]) in archs
        ]
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(lambda cubin: inspect(*cubin), cubins)
        return sorted((kernel for some in found for kernel in some), key=lambda k: (k.arch, k.title))


def inspect(cubin: Path, arch: int) -> list[CudaKernel]:
    usage = dict(re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", run(tool("cuobjdump"), "-res-usage", str(cubin))))
    code = functions(run(tool("nvdisasm"), "-c", str(cubin))) if usage else {}
    return [_figures(name, arch, usage[name], code[name]) for name in usage]


def _figures(mangled: str, arch: int, usage: str, blocks: list[Block]) -> CudaKernel:
    kernel, types, general = named(mangled)
    code = [instruction for block in blocks for instruction in block]
    used = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    kinds = Counter(instruction.kind for instruction in code)
    atomics = [i.opcode for i in code if re.match(r"(?:U?ATOM|U?RED(?!UX)|UBLKRED|UTMARED)", i.opcode)]
    floats = [name for name in atomics if re.search(r"\.B?F\d+", name)]
    moving = [i for stretch in stretches(code) if any(map(_loads_elements, stretch)) for i in stretch]
    if kernel not in FLAGSHIPS:
        moving = code

    def bits(kind: str, suffix: str = "") -> Counter[int]:
        return Counter(i.bits for i in moving if i.kind == kind and suffix in i.opcode)

    return CudaKernel(
        kernel=kernel,
        types=types,
        general=general,
        arch=arch,
        registers=used["REG"],
        spilled=max(used["STACK"], used["LOCAL"], bool(kinds["LDL"] + kinds["STL"])),
        shared=max(0, used["SHARED"] - (SYSTEM_SHARED if arch >= 90 else 0)),
        loads=bits("LDG", ".CONSTANT" if kernel in FLAGSHIPS else ""),
        in_flight=max(in_flight(block, _loads_elements) for block in blocks),
        doubles=sum(_is_double(i) for block in blocks if any(map(_loads_elements, block)) for i in block),
        stores=bits("STG"),
        kept=bits("STS"),
        recalled=bits("LDS"),
        barriers=min(kinds["UCGABAR_ARV"], kinds["UCGABAR_WAIT"]),
        distributed=sum(map(_distributed, blocks)),
        prefetches=kinds["UBLKPF"],
        sleeps=kinds["NANOSLEEP"],
        integer_atomics=len(atomics) - len(floats),
        float_atomics=len(floats),
        calls=tuple(sorted({i.operands for i in code if i.kind == "CALL" and not ARITHMETIC.search(_callee(i))})),
        instructions=len(code),
    )


def named(mangled: str) -> tuple[str, Types | None, bool]:
    found = _MANGLED.search(mangled)
    if found is None:
        return mangled, None, False
    names: list[str] = []
    for token in re.finditer(r"NS_\d(Bf16|Half|AnyType)E|S\d*_|f|d", found[2] or ""):
        # S3_ and similar tokens repeat the type before.
        names.append(names[-1] if token[0].startswith("S") else _NAMES[token[1] or token[0]])
    if len(names) == 2:  # stored, arithmetic
        names.insert(1, names[0])
    if found[1] in FLAGSHIPS and len(names) != 3:
        raise ValueError(f"cannot read the types of {mangled}")
    # implicit has general kernels only for types that are looked up.
    general = found[3] == "1" or (found[1].startswith("implicit_") and names[0] == "any")
    return found[1], Types(*names) if names else None, general


def _loads_elements(instruction: Instruction) -> bool:
    return instruction.kind == "LDG" and instruction.opcode.endswith(".CONSTANT")


def _is_double(instruction: Instruction) -> bool:
    return instruction.kind in ("DADD", "DMUL", "DFMA", "DSETP") or ".F64" in instruction.opcode


def _distributed(block: Block) -> int:
    """Counts generic stores after the permutation that puts another block's rank into an address."""
    mapped = False
    count = 0
    for instruction in block:
        mapped |= instruction.kind == "PRMT" and ", 0x654," in instruction.operands
        count += mapped and instruction.kind == "ST"
    return count


def _callee(call: Instruction) -> str:
    found = re.search(r"`\(([^)]*)\)", call.operands)
    return found[1] if found else call.operands
