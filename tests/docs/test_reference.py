"""`make docs`: pdoc writes the public names, and no others."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fdkernels as fdk

ROOT = Path(__file__).parents[2]


def test_the_reference_has_the_public_names_alone(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="needs the extra dev")
    lines = subprocess.run(["make", "--dry-run", "--always-make", "docs"], cwd=ROOT, capture_output=True, text=True)
    (command,) = re.findall(r"-m pdoc .*?[^\\]\n", lines.stdout, re.DOTALL)
    arguments = [word.replace("build/docs", str(tmp_path)) for word in shlex.split(command.replace("\\\n", " "))]
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in tmp_path.rglob("*.html")) == ["fdkernels.html", "index.html", "testing.html"]
    page = (tmp_path / "fdkernels.html").read_text(encoding="utf-8")
    names = re.findall(r'<(?:section|div) id="([\w.]+)"', page)
    assert [name for name in names if "." not in name] == fdk.__all__
    assert {"Prediction.from_scheduler", "FDivStats.relative_gap", "RatioNormalizer.from_samples"} <= set(names)
    hidden = ("argument", "extra_repr", "knows_edges", "levels", "options", "watch")
    assert not [name for name in names if name.split(".")[-1] in hidden or "._" in name.replace(".__init__", "")]
    assert "loss = ½ · mean_{b,i} g_bi²" in page
