"""The properties of a forward call from which both kernel backends plan its launches. Does not import torch."""

from __future__ import annotations

from typing import NamedTuple

DTYPES = ("bf16", "fp16", "fp32", "fp64")
REDUCTIONS = ("mean", "sum", "none")


class CallShape(NamedTuple):
    """Sizes and dtypes of a call's operands. `csrc/bindings.cpp` reads the same fields by name."""

    batch: int
    elements: int
    """Elements of a sample."""
    student: str = "bf16"
    """The dtype of student and gradient."""
    teacher: str | None = None
    """None: student's dtype."""
    fake: str | None = None
    """None: teacher's dtype."""
    teacher_uncond: str | None = None
    """None: the call has no such input. The same holds for the next two."""
    fake_uncond: str | None = None
    noisy: str | None = None
    raw: bool = False
    """Whether teacher and fake are raw predictions; with `noisy` they always are."""
    multiplier: int = 0
    """Entries per sample; 0: no multiplier."""
    mask: tuple[int, int] | None = None
    """Rows (1 or batch) and entries per row."""
    heads: int = 0
    """Heads of the logits; 0: no logits."""
    bins: int = 0
    """Bins of the normalizer; 0: no normalizer."""
    counted: bool = False
    """Whether the caller gives the N of the mean, so that no mask is counted."""
    dmd_scale: bool = True
    with_stats: bool = False
    with_grad: bool = True
    reduction: str = "mean"
    op: str = "fdiv"
    """Or implicit: its calls have sizes, the dtypes of student, teacher and fake, and gradients of all three."""

    def images(self) -> list[str]:
        """The dtypes of the N-sized inputs, student first."""
        teacher = self.teacher or self.student
        others = (self.teacher_uncond, self.fake_uncond, self.noisy)
        return [self.student, teacher, self.fake or teacher, *(dtype for dtype in others if dtype is not None)]
