"""What decides how a forward call is launched: the question that both kernel backends' plans answer. Free of torch."""

from __future__ import annotations

from typing import NamedTuple

DTYPES = ("bf16", "fp16", "fp32", "fp64")
REDUCTIONS = ("mean", "sum", "none")


class CallShape(NamedTuple):
    """Sizes and dtypes of a call's operands. `csrc/bindings.cpp` reads the same fields by name."""

    batch: int
    elements: int
    """Of a sample."""
    student: str = "bf16"
    """The gradient's dtype too."""
    teacher: str | None = None
    """None: student's."""
    fake: str | None = None
    """None: teacher's."""
    teacher_uncond: str | None = None
    """None: the call has none, here and for the next two."""
    fake_uncond: str | None = None
    noisy: str | None = None
    raw: bool = False
    """Whether teacher and fake are raw predictions; always so beside `noisy`."""
    multiplier: int = 0
    """Entries a sample; 0: the call has none."""
    mask: tuple[int, int] | None = None
    """Rows (1 or batch) and entries a row."""
    heads: int = 0
    """Of the logits; 0: the call has none."""
    bins: int = 0
    """Of the normalizer; 0: the call has none."""
    counted: bool = False
    """Whether the caller gives N of the mean, so that no mask has to be counted."""
    dmd_scale: bool = True
    with_stats: bool = False
    with_grad: bool = True
    reduction: str = "mean"

    def images(self) -> list[str]:
        """The dtypes of the N-sized inputs, student first."""
        teacher = self.teacher or self.student
        others = (self.teacher_uncond, self.fake_uncond, self.noisy)
        return [self.student, teacher, self.fake or teacher, *(dtype for dtype in others if dtype is not None)]
