"""NVIDIA machine code as nvdisasm prints it, read instruction by instruction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

SYSTEM_SHARED = 1024  # bytes per block that CUDA takes for itself; from sm_90 on it counts them with the kernel's

_FUNCTION = re.compile(r"^\.text\.(\S+):$", re.MULTILINE)
_LINE = re.compile(
    r"^(?P<label>\.L_x_\w+):"
    r"|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?:[ \t]+(?P<operands>[^;\n]*?))?[ \t]*;",
    re.MULTILINE,
)
_REGISTER = re.compile(r"\bR(\d+)\b")
_TARGET = re.compile(r"(?:!?U?P\w+, )*R(\d+)\b")


class Instruction(NamedTuple):
    opcode: str
    """With its suffixes, as in LDG.E.128.CONSTANT."""
    operands: str

    @property
    def kind(self) -> str:
        return self.opcode.split(".", 1)[0]

    @property
    def bits(self) -> int:
        """Width of a memory access."""
        found = re.search(r"\.[US]?(8|16|64|128)\b", self.opcode)
        return int(found[1]) if found else 32

    @property
    def registers(self) -> set[int]:
        """The registers that its operands name."""
        return {int(number) for number in _REGISTER.findall(self.operands)}


Block = list[Instruction]


def functions(code: str) -> dict[str, list[Block]]:
    """The basic blocks of a cubin's functions, by mangled name, as `nvdisasm -c` prints them."""
    parts = _FUNCTION.split(code)
    return {name: list(_blocks(text)) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _blocks(text: str) -> Iterator[Block]:
    """Cuts at labels only; a branch in the middle does not end a block."""
    block: Block = []
    for match in _LINE.finditer(text):
        if match["label"]:
            yield block
            block = []
        else:
            block.append(Instruction(match["opcode"], match["operands"] or ""))
    yield block


def stretches(code: Block) -> Iterator[Block]:
    """Cuts where threads meet: at barriers, shuffles and atomics."""
    stretch: Block = []
    for instruction in code:
        if instruction.kind in ("BAR", "SHFL", "WARPSYNC", "ATOM", "ATOMG", "UCGABAR_ARV", "UCGABAR_WAIT"):
            yield stretch
            stretch = []
        else:
            stretch.append(instruction)
    yield stretch


def loaded(load: Instruction) -> range:
    """The registers that a load writes."""
    first = _TARGET.match(load.operands)
    return range(int(first[1]), int(first[1]) + max(1, load.bits // 32)) if first else range(0)


def in_flight(block: Block, is_load: Callable[[Instruction], bool]) -> int:
    """The most loads that have started before an instruction needs what one of them loads."""
    most, started, awaited = 0, 0, set[int]()
    for instruction in block:
        load = is_load(instruction)
        needed = instruction.registers - set(loaded(instruction)[:1]) if load else instruction.registers
        if needed & awaited:
            started, awaited = 0, set()
        if load:
            started += 1
            awaited |= set(loaded(instruction))
            most = max(most, started)
    return most
