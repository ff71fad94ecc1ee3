"""Without packages of the extra `train`: help works, and a command says which one it lacks before it spends minutes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fdistill import cli

ROOT = Path(__file__).parents[2]
EVERY = sorted(cli.PACKAGES)
BLOCKED = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError, as where it is not installed
import fdistill, runpy
sys.argv[:] = ["fdistill", *sys.argv[2:]]
runpy.run_module("fdistill", run_name="__main__")
"""


def run(blocked, *arguments):
    code = BLOCKED if blocked else BLOCKED.replace('sys.argv[1].split(",")', "[]")
    command = [sys.executable, "-c", code, ",".join(blocked), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_names_are_those_of_the_extra():
    text = (ROOT / "pyproject.toml").read_text()  # Python 3.10 has no tomllib
    extra = re.search(r"^train = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    assert sorted(re.findall(r'"([\w-]+)', extra)) == sorted(cli.PACKAGES.values())


@pytest.mark.parametrize("arguments", [(), ("train",), ("compare",), ("sample",), ("export",)])
def test_help_needs_none_of_them(arguments):
    done = run(EVERY, *arguments, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: fdistill")


@pytest.mark.parametrize("missing", EVERY)
def test_training_says_at_once_which_one_is_missing(missing, workplace):
    done = run([missing], "train", "digits", "steps=4")
    assert done.returncode == cli.EXIT_USAGE and done.stdout == ""
    told = f"fdistill: {missing} is not installed; what the trainer lacks: pip install {cli.PACKAGES[missing]}\n"
    assert done.stderr == told
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "gmm"),
        ("train", "digits", "--dry-run"),
        ("compare", "digits"),
        ("sample", "runs/some"),
        ("export", "runs/some", "elsewhere"),
    ],
)
def test_every_command_names_all_that_is_missing(arguments, workplace):
    (workplace / "runs/some/student").mkdir(parents=True)
    (workplace / "runs/some/config.yaml").write_text("task: digits\n")
    done = run(EVERY, *arguments)
    assert done.returncode == cli.EXIT_USAGE
    assert done.stderr.startswith("fdistill: ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"pip install {' '.join(cli.PACKAGES.values())}\n")


def test_gmm_needs_no_packages_of_digits(workplace, tiny_gmm):
    done = run(sorted(cli.NOT_FOR_GMM), "train", "gmm", "name=g", *tiny_gmm)
    assert done.returncode == 0, done.stderr
    assert (workplace / "runs/g/report.html").exists()


def test_comparing_checks_before_it_trains(workplace, tiny_gmm):
    done = run(["jinja2"], "compare", "gmm", *tiny_gmm)
    assert done.returncode == cli.EXIT_USAGE and "jinja2 is not installed" in done.stderr
    assert list(workplace.iterdir()) == []


def test_another_missing_module_is_a_fault_of_its_own(workplace):
    """Not to be told as a package of the trainer."""
    done = run(["fdistill.run"], "train", "gmm")
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr
