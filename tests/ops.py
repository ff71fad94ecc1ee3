"""The ops under test, an entry each. An entry has all that the op-neutral tests, tests/fdkernels/test_op_*.py, need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels._op import registry
from fdkernels._op.arguments import Argument, ArgumentList, Table
from fdkernels.fdiv.arguments import FdivArguments, WeightArguments
from tests import refusals
from tests.adversarial import (
    DiscriminatorCase,
    make_discriminator,
    make_generator,
    make_penalty,
    raw_adversarial,
)
from tests.cases import Case, GanCase, Inputs, WeightCase, make, make_gan, normalizer
from tests.contracts import EVERY_OP
from tests.denoising import DenoisingCase, make_denoising, raw_denoising, weighted
from tests.device import place
from tests.implicit import ImplicitCase, formula, make_implicit, raw_implicit, weighted_implicit
from tests.noising import NoisingCase, make_noising, raw_noising


class Tested(NamedTuple):
    """All that a test needs to know of an op."""

    name: str
    """The registered name."""
    case: type[Inputs]
    """The class of its cases: names of inputs and gradients, oracle, tolerances."""
    make: Callable[..., Any]
    """Maps (shape, dtype, seed=, **options) to a case."""
    variants: dict[str, Callable[..., Any]]
    """Map (shape, dtype) to cases that run other code. "state" has every tensor and a normalizer."""
    raw: Callable[..., Any]
    """Maps (dtype, **changes) to a call of the raw op with all arguments, except those in `raw_beside`."""
    raw_variants: dict[str, dict[str, Any]]
    raw_beside: dict[str, dict[str, Any]] = {}
    """Arguments that exclude others, each with the changes that give it."""
    samples: tuple[str, ...] = ()
    """Names of the N-sized inputs."""
    per_sample: dict[str, Any] = {}
    """Options that make the result (B,); only for an op that has a gradient."""
    formula: Callable[[Any], Callable[..., Tensor]] | None = None
    """Maps a float64 case to a plain PyTorch function of the tensors that get a gradient; same value and gradient."""
    is_loss: bool = True
    """Whether the result is a loss, whose gradient the forward stores."""
    raw_names: dict[str, str] = {}
    """Raw names of the public arguments that are named otherwise."""
    has_stats: bool = False
    """Whether `return_stats=True` returns figures too."""
    own: tuple[str, ...] = ()
    """Contracts in addition to `EVERY_OP`."""
    lacks: dict[str, str] = {}
    """Contracts of `EVERY_OP` that do not apply to this op, each with its reason."""

    @property
    def gradients(self) -> tuple[str, ...]:
        return self.case.GRADIENTS

    @property
    def arguments(self) -> ArgumentList:
        return registry.ops[self.name].arguments

    def entry(self, name: str) -> Argument:
        raw = self.raw_names.get(name, name)
        return next(entry._replace(name=name) for entry in self.arguments.entries if entry.name == raw)


def raw_fdiv(dtype: torch.dtype = torch.float32, **changes: Any) -> FdivArguments:
    """`changes` may name fields of the weighting too."""
    case, generator = make((4, 3, 6, 5), dtype), torch.Generator().manual_seed(1)

    def levels(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return 0.2 + torch.rand(size, generator=generator, dtype=dtype)

    of_weighting = {name: changes.pop(name) for name in list(changes) if name in WeightArguments._fields}
    call = FdivArguments(
        student=case.student, teacher=case.teacher, fake=case.fake, teacher_uncond=case.teacher + 0.1,
        fake_uncond=case.fake - 0.1, guidance_scale=2.0, fake_guidance_scale=1.5, noisy=case.student + 0.3,
        prediction="epsilon", alpha=Table(levels(4, 3, dtype=torch.float64), 30),
        sigma=Table(levels(4, 3), 30), fixed_alpha=1.0, fixed_sigma=1.0, sigma_data=0.5, weight=None,
        dmd_scale=True, eps=1e-6, floor=0.1, kept_only=True, multiplier=Table(levels(4, 45), 2),
        mask=Table(levels(4, 90) < 0.9, 1), zero_nonfinite=False, reduction="mean", divisor=None,
        gan_logits=case.logits, gan_weight=0.3, gan_grad=True, with_grad=True, with_stats=True,
        weighting=raw_weight(dtype, **of_weighting),
    )  # fmt: skip
    return FdivArguments(*map(place, call._replace(**changes)))


def raw_weight(dtype: torch.dtype = torch.float32, **changes: Any) -> WeightArguments:
    case = make((4, 3, 6, 5), dtype)
    call = WeightArguments(
        logits=case.logits, t=case.t, ratio_mean=torch.ones(5),
        edges=torch.linspace(0.2, 0.8, 4, dtype=torch.float64), t_min=0.0, t_max=1.0, decay=0.9, update=True,
        divergence="js", amari_alpha=0.0, log_ratio_min=-2.0, log_ratio_max=2.0, normalize_weight=True,
    )  # fmt: skip
    return WeightArguments(*map(place, call._replace(**changes)))


WITHOUT_RATIO = {"logits": None, "t": None, "ratio_mean": None, "edges": None, "update": False}


def make_weight(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any
) -> WeightCase:
    case = make(shape[:1], dtype, seed=seed)
    assert case.logits is not None
    return WeightCase(case.logits.to(dtype), case.t, options)


def pseudo_target(case: Case) -> Callable[[Tensor], Tensor]:
    """The loss as every peer writes it: 0.5·mse(x, stop_gradient(x - g))."""
    target = case.student - torch.from_numpy(case.expected().grad) * case.student.numel()
    return lambda student: 0.5 * (student - target).square().mean()


def edm(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    case = make(shape, dtype)
    return case.but(
        prediction=fdk.Prediction("edm", torch.ones_like(case.student), sigma=torch.linspace(0.5, 2, shape[0]))
    )


OPS = {
    "adversarial": Tested(
        "adversarial", DiscriminatorCase, make_discriminator,
        variants={
            "plain": make_discriminator,
            "state": lambda *of, **options: make_discriminator(*of, kind="relativistic", clamp=2.0, **options),
            "hinge, none": lambda *of: make_discriminator(*of, kind="hinge", reduction="none"),
            "generator": lambda *of: make_generator(*of, clamp=3.0),
            "generator, hinge": lambda *of: make_generator(*of, kind="hinge"),
            "generator, relativistic": lambda *of: make_generator(*of, kind="relativistic"),
            "penalty": lambda *of: make_penalty(*of, sigma=0.1),
        },
        raw=raw_adversarial,
        raw_variants={
            "all": {},
            "none": {"reduction": "none", "bound": 0.0},
            "no grad": {"with_grad": False, "with_others_grad": False, "kind": "hinge"},
            "first alone": {"others": None, "with_others_grad": False, "raised": True, "kind": "linear"},
            "second's gradient": {"with_grad": False, "kind": "square"},
            "relativistic": {"kind": "relativistic", "raised": True, "reduction": "sum"},
        },
        samples=("fake_logits", "real_logits"),
        per_sample={"reduction": "none"},
        raw_names={"fake_logits": "logits", "real_logits": "others"},
        formula=lambda case: case.formula,
        own=("peers",),
    ),
    "fdiv": Tested(
        "fdiv", Case, make,
        variants={
            "plain": make,
            "state": lambda *of: make(*of, normalizer=normalizer(), divergence="jeffreys"),
            "none, zero": lambda *of: make(*of, reduction="none", nonfinite="zero"),
            "kl, mask": lambda *of: make(*of, divergence="kl", mask=make(of[0]).student[:1] > -0.5),
            "weight": lambda *of: make(*of, heads=None, weight=torch.linspace(0.1, 2, of[0][0])),
            "edm": edm,
        },
        raw=raw_fdiv,
        raw_variants={
            "all": {},
            "none": {"reduction": "none", "with_stats": False},
            "weight": {**WITHOUT_RATIO, "weight": torch.ones(4), "with_stats": False},
            "no grad": {"with_grad": False, "update": False, "gan_grad": False},
            "no term": {"gan_logits": None, "gan_grad": False},
            "x0": {
                "noisy": None, "prediction": "sample", "alpha": Table(), "sigma": Table(), "dmd_scale": False,
                "mask": Table(), "multiplier": Table(), "fake_uncond": None, "teacher_uncond": None, "edges": None,
            },
        },
        raw_beside={
            "weight": {**WITHOUT_RATIO, "weight": torch.ones(4)},
            "divisor": {"divisor": torch.tensor(50.0)},
        },
        samples=("student", "teacher", "fake"),
        per_sample={"reduction": "none"},
        has_stats=True,
        formula=pseudo_target,
        own=(
            "predictions", "masks", "reductions", "nonfinite", "state", "stats", "distributed", "peers", "properties",
        ),
    ),
    "fdiv, gan": Tested(
        "fdiv", GanCase, make_gan,
        variants={
            "plain": make_gan,
            "state": lambda *of: make_gan(*of, normalizer=normalizer(), divergence="jeffreys"),
            "none, rkl": lambda *of: make_gan(*of, reduction="none", divergence="rkl", nonfinite="zero"),
        },
        raw=raw_fdiv,
        raw_variants={},
        samples=("student", "teacher", "fake"),
        per_sample={"reduction": "none"},
        has_stats=True,
        formula=lambda case: lambda student, logits: (
            pseudo_target(case.but(gan_weight=None))(student) + 0.3 * torch.nn.functional.softplus(-logits).mean()
        ),
        lacks={"raw operands": "the row fdiv has them", "bad input": "the row fdiv has it"},
    ),
    "fdiv_weight": Tested(
        "fdiv_weight", WeightCase, make_weight,
        variants={
            "plain": lambda *of: make_weight(*of, divergence="kl"),
            "state": lambda *of: make_weight(*of, divergence="jeffreys", normalizer=normalizer()),
        },
        raw=raw_weight,
        raw_variants={"all": {}, "no state": {"ratio_mean": None, "edges": None, "update": False}},
        own=("state",),
        is_loss=False,
        lacks={"autograd": "the weight is a constant of the loss"},
    ),
    "denoising": Tested(
        "denoising", DenoisingCase, make_denoising,
        variants={
            "plain": make_denoising,
            "state": weighted,
            "edm, none": lambda *of: make_denoising(*of, prediction="edm", reduction="none"),
        },
        raw=raw_denoising,
        raw_variants={
            "all": {},
            "none": {"reduction": "none", "weight": Table()},
            "no grad": {"with_grad": False, "alpha": Table(), "sigma": Table()},
            "edm": {"prediction": "edm"},
        },
        raw_beside={"divisor": {"divisor": torch.tensor(50.0)}},
        samples=("pred", "x0", "noise"),
        per_sample={"reduction": "none"},
        formula=lambda case: lambda pred: (pred - case.noise).square().mean(),
        own=("weightings", "peers"),
    ),
    "implicit": Tested(
        "implicit", ImplicitCase, make_implicit,
        variants={
            "plain": make_implicit,
            "state": lambda *of: weighted_implicit(*of, kind="sim"),
            "weights": weighted_implicit,
            "none": lambda *of: make_implicit(*of, reduction="none", alpha=1.0),
        },
        raw=raw_implicit,
        raw_variants={
            "sim": {},
            "sid": {"kind": "sid", "alpha": 1.2, "reduction": "sum"},
            "none": {"reduction": "none", "score_scale": None, "weight": None, "square_weight": None},
            "no grad": {"with_student_grad": False, "with_teacher_grad": False, "with_fake_grad": False},
            "of teacher": {"with_student_grad": False, "with_fake_grad": False},
        },
        samples=("student", "teacher", "fake"),
        per_sample={"reduction": "none"},
        formula=formula,
        own=("peers",),
    ),
    "noising": Tested(
        "noising", NoisingCase, make_noising,
        variants={
            "plain": make_noising,
            "state": lambda *of: make_noising(*of, levels="per row"),
            "numbers": lambda *of: make_noising(*of, levels="numbers"),
            "per element": lambda *of: make_noising(*of, levels="per element"),
            "flow": lambda *of: make_noising(*of, levels="flow"),
        },
        raw=raw_noising,
        raw_variants={
            "flow": {"noise": None, "result": "flow"},
            "noise": {"seed": None, "with_noise": False},
            "drawn": {"noise": None},
            "x0": {"seed": None, "with_noise": False, "result": "x0", "prediction": "epsilon"},
            "prediction": {"seed": None, "with_noise": False, "result": "prediction", "prediction": "edm"},
            "neither": {"noise": None, "seed": None, "with_noise": False, "alpha": Table(), "sigma": Table()},
        },
        raw_beside={name: {"noise": None} for name in ("seed",)},
        samples=("x0", "noise"),
        is_loss=False,
        raw_names={"x0": "x"},
        own=("random", "predictions"),
    ),
}  # fmt: skip

AXES: dict[str, Callable[[Tested], Any]] = {
    "sample": lambda op: (*op.samples, "all") if op.samples else (),
    "tensor": lambda op: op.case.ORDER,
    "constant": lambda op: [name for name in op.case.ORDER if name not in op.gradients],
    "variant": lambda op: tuple(op.variants),
    "raw_variant": lambda op: tuple(op.raw_variants),
    "spoiled": lambda op: refusals.of_list(op.arguments),
    "misused": lambda op: refusals.of_tensors([op.entry(name) for name in op.case.ORDER]),
}
"""The parameters that a test may take beside `op`, and their values for each op."""


def contracts() -> list[tuple[str, str]]:
    """(op, contract) of every row that a whole run has to fill."""
    return [
        (name, contract) for name, op in OPS.items() for contract in (*EVERY_OP, *op.own) if contract not in op.lacks
    ]
