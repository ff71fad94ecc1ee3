"""The trainers' own test files with the adapters applied, where FDKERNELS_<TRAINER> names a checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.conftest import checkout

ROOT = Path(__file__).parents[2]
# Packages that the trainers import, and these tests do not need.
ABSENT = (
    "torchvision", "wandb", "av", "boto3", "botocore", "cv2", "clip", "imageio", "iopath", "pandas", "pulp", "timm",
    "transformers", "webdataset",
)  # fmt: skip
SUITES = {
    "fastgen": ("tests/test_f_distillmodel.py", "tests/test_dmd2model.py"),
    "model_optimizer": ("tests/unit/torch/fastgen",),
    "cosmos": ("cosmos_framework/model/generator/distillation/common_loss_test.py",),
}
CHECKED_OUT = [name for name in SUITES if checkout(name)]


@pytest.mark.skipif(not CHECKED_OUT, reason="no environment variable FDKERNELS_<TRAINER> names a checkout")
@pytest.mark.parametrize("name", CHECKED_OUT or [None])
def test_the_trainers_own_tests_pass(name, tmp_path):
    folder = checkout(name)
    configuration = tmp_path / "pytest.ini"  # theirs asks for plugins
    configuration.write_text("[pytest]\n")
    environment = os.environ | {
        "FDKERNELS_INTEGRATION": name, "FDKERNELS_ABSENT": ",".join(ABSENT), "FDKERNELS_LOG": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), str(Path(__file__).parent)]),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-p", "no:cacheprovider", "-p", "no:logging", "-s",
        "-c", str(configuration), "--rootdir", str(folder), "--noconftest", *SUITES[name],
    ]  # fmt: skip
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert re.search(r"\d+ passed", run.stdout)
    assert "fused_fdiv_loss" in run.stdout + run.stderr, "the suite never called fdkernels"
