"""One table of prediction kinds in each language: the same kinds, the same (a, c). A row that one lacks fails here."""

import re
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from fdkernels._triton.predictions import coefficients
from fdkernels.fdiv.arguments import FDIV
from fdkernels.prediction import KINDS
from tests.cases import same_bits

pytestmark = pytest.mark.cpu_only("tables of the sources")

ROOT = Path(__file__).parents[2]
SIGMA_DATA = 0.7


def op_table() -> set[str]:
    """The kinds that the op takes."""
    return set(next(entry.choices for entry in FDIV.entries if entry.name == "prediction"))


def triton_table() -> set[str]:
    return set(re.findall(r'KIND == "(\w+)"', (ROOT / "fdkernels/_triton/predictions.py").read_text()))


def test_the_tables_have_the_same_rows():
    assert set(KINDS) == op_table() == triton_table()


@triton.jit
def evaluate(alpha, sigma, a, c, sigma_data: tl.float64, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    found_a, found_c = coefficients(tl.load(alpha + i), tl.load(sigma + i), tl.full((), sigma_data, tl.float64), KIND)
    tl.store(a + i, found_a)
    tl.store(c + i, found_c)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_coefficients_are_those_of_the_specification(kind):
    """Equal bit for bit, except for edm's square root: on some CPUs, PyTorch rounds it wrongly. (A compiler may
    contract a multiplication and an addition.)"""
    generator = torch.Generator().manual_seed(0)
    alpha, sigma = (torch.rand(64, generator=generator, dtype=torch.float64) * high for high in (1.0, 80.0))
    a, c = torch.empty_like(alpha), torch.empty_like(alpha)
    evaluate[(1,)](alpha, sigma, a, c, SIGMA_DATA, KIND=kind, BLOCK=64)
    for found, expected in zip((a, c), KINDS[kind].coefficients(alpha, sigma, SIGMA_DATA), strict=True):
        if kind == "edm":
            torch.testing.assert_close(found, expected, rtol=2**-52, atol=0.0)
        else:
            assert same_bits(found, expected)
