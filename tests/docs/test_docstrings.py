"""Each public name has an example in its docstring; it runs, and its output is what the docstring shows."""

from __future__ import annotations

import doctest
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

import fdkernels as fdk
from fdkernels import testing


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=False, recurse=True)
    for module, names in ((fdk, fdk.__all__), (testing, [*vars(testing)])):
        for name in names:
            value = getattr(module, name)
            if getattr(value, "__module__", "").startswith("fdkernels"):
                yield from finder.find(value, name, globs={"torch": torch, "fdk": fdk, "testing": testing})


EXAMPLES = [test for test in examples() if test.examples]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_the_example_runs(test: doctest.DocTest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "diffusers" in test.docstring:
        pytest.importorskip("diffusers")
    for table in ("_registry", "_by_alias"):  # an example may register a divergence
        module = sys.modules["fdkernels.divergences"]
        monkeypatch.setattr(module, table, dict(getattr(module, table)))
    torch.manual_seed(0)
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not result.failed, "".join(said)


def test_each_public_name_has_one() -> None:
    shown = {test.name.split(".")[0] for test in EXAMPLES}
    assert set(fdk.__all__) - shown == set()
    methods = {"Prediction.affine", "Prediction.from_scheduler", "Prediction.to_x0", "Prediction.from_x0"}
    assert methods | {"RatioNormalizer.from_samples"} <= {test.name for test in EXAMPLES}


def test_a_wrong_output_is_seen() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> fdk.alpha(1.0).alpha\n2.0\n", {"fdk": fdk}, "wrong", None, None)
    assert doctest.DocTestRunner().run(wrong, out=lambda text: None).failed == 1
