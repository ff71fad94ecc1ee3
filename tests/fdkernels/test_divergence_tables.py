"""One table of divergences in each language: the same names, the same h. A row that a table lacks fails here."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

import fdkernels as fdk
from fdkernels._triton.divergences import log_weight
from tests import oracle

pytestmark = pytest.mark.cpu_only("tables of the sources and of the binary")

ROOT = Path(__file__).parents[2]
LOG_RATIOS = np.linspace(-80, 80, 33)
ALPHAS = (0.5, -1.0, 2.0)


def python_table() -> set[str]:
    return {d.kernel for d in fdk.divergences().values() if d.kernel is not None} | {fdk.alpha(0.5).kernel}


def binary_table() -> set[str]:
    from fdkernels import _core

    return set(_core.divergences())


def header_table() -> set[str]:
    """The rows in the header, even if the binary was not rebuilt since."""
    header = (ROOT / "csrc/fdiv/divergences.h").read_text()
    table = re.search(r"#define FDK_DIVERGENCES\(X\)(.*?)\n\n", header, re.DOTALL)
    return set(re.findall(r"X\((\w+),", table[1]))


def triton_table() -> set[str]:
    source = (ROOT / "fdkernels/_triton/divergences.py").read_text()
    return set(re.findall(r'DIVERGENCE == "(\w+)"', source))


def oracle_table() -> set[str]:
    return {*oracle.F, "alpha"}


TABLES = {"Python": python_table, "binary": binary_table, "header": header_table, "Triton": triton_table,
          "generators f": oracle_table}  # fmt: skip


def differences(tables: dict[str, set[str]]) -> dict[str, set[str]]:
    everything = set().union(*tables.values())
    return {name: everything - table for name, table in tables.items() if table != everything}


def test_the_tables_have_the_same_rows():
    assert not differences({name: table() for name, table in TABLES.items()})


@pytest.mark.parametrize("only", TABLES)
def test_a_row_in_one_table_only_is_seen(only):
    tables = {name: table() | ({"new"} if name == only else set()) for name, table in TABLES.items()}
    assert differences(tables) == {name: {"new"} for name in TABLES if name != only}


@triton.jit
def evaluate(log_ratio, out, alpha: tl.float64, DIVERGENCE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, log_weight(tl.load(log_ratio + i), alpha, DIVERGENCE))


def triton_log_weight(name: str, alpha: float) -> torch.Tensor:
    """Triton's log h, interpreted."""
    log_ratio = torch.zeros(64, dtype=torch.float64)
    log_ratio[: len(LOG_RATIOS)] = torch.from_numpy(LOG_RATIOS)
    out = torch.empty_like(log_ratio)
    evaluate[(1,)](log_ratio, out, alpha, DIVERGENCE=name, BLOCK=64)
    return out[: len(LOG_RATIOS)]


def rows():
    return [*((name, None) for name in oracle.F), *((f"alpha({a})", a) for a in ALPHAS)]


@pytest.mark.parametrize(("name", "alpha"), rows())
def test_h_is_the_second_derivative_of_f_in_each(name, alpha):
    """Exact r²f''(r), constants included, in float64 for r from e^-80 to e^80."""
    from fdkernels import _core

    expected = oracle.weight_function(name, LOG_RATIOS)
    divergence = fdk.alpha(alpha) if alpha is not None else fdk.divergences()[name]
    in_python = divergence.log_weight(torch.from_numpy(LOG_RATIOS)).exp().numpy()
    in_triton = triton_log_weight("alpha" if alpha is not None else name, alpha or 0.0).exp().numpy()
    in_cpp = np.exp(_core.log_weight("alpha" if alpha is not None else name, LOG_RATIOS, alpha))
    np.testing.assert_allclose(in_python, expected, rtol=2e-13)
    np.testing.assert_allclose(in_cpp, expected, rtol=2e-13)
    np.testing.assert_allclose(in_triton, expected, rtol=2e-13)


def test_aliases_are_those_of_the_table():
    found = {alias: d.name for d in fdk.divergences().values() if d.name in oracle.F for alias in d.aliases}
    assert found == oracle.ALIASES


def test_the_oracle_has_digits_to_spare():
    """The oracle's h does not change if it is differentiated with more digits."""
    for name in (*oracle.F, "alpha(0.5)", "alpha(3)"):
        first, more = (oracle.weight_function(name, LOG_RATIOS, digits) for digits in (0, 60))
        np.testing.assert_allclose(first, more, rtol=1e-15)
