"""Without packages of the extra `train`, help works, and a command names what it lacks before it spends minutes."""

import os
import re
from pathlib import Path

import pytest

from fdistill import cli
from tests.forked import Forked

ROOT = Path(__file__).parents[2]
EVERY = sorted(cli.PACKAGES)


@pytest.fixture(scope="module")
def run():
    """The command line, with the blocked packages not installed."""
    python = Forked()
    yield lambda blocked, *arguments: python.run(os.getcwd(), "-m", "fdistill", *arguments, missing=blocked)
    python.close()


def test_the_names_are_those_of_the_extra():
    text = (ROOT / "pyproject.toml").read_text()  # Python 3.10 has no tomllib
    extra = re.search(r"^train = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    assert sorted(re.findall(r'"([\w-]+)', extra)) == sorted(cli.PACKAGES.values())


@pytest.mark.parametrize("arguments", [(), ("train",), ("compare",), ("sample",), ("export",)])
def test_help_needs_none_of_them(arguments, run):
    done = run(EVERY, *arguments, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: fdistill")


@pytest.mark.parametrize("missing", EVERY)
def test_training_says_at_once_which_one_is_missing(missing, run, workplace):
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
def test_every_command_names_all_that_is_missing(arguments, run, workplace):
    (workplace / "runs/some/student").mkdir(parents=True)
    (workplace / "runs/some/config.yaml").write_text("task: digits\n")
    done = run(EVERY, *arguments)
    assert done.returncode == cli.EXIT_USAGE
    assert done.stderr.startswith("fdistill: ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"pip install {' '.join(cli.PACKAGES.values())}\n")


def test_gmm_needs_no_packages_of_digits(workplace, run, tiny_gmm):
    done = run(sorted(cli.NOT_FOR_GMM), "train", "gmm", "name=g", *tiny_gmm)
    assert done.returncode == 0, done.stderr
    assert (workplace / "runs/g/report.html").exists()


def test_comparing_checks_before_it_trains(workplace, run, tiny_gmm):
    done = run(["jinja2"], "compare", "gmm", *tiny_gmm)
    assert done.returncode == cli.EXIT_USAGE and "jinja2 is not installed" in done.stderr
    assert list(workplace.iterdir()) == []


def test_another_missing_module_is_a_fault_of_its_own(workplace, run):
    """The error must not be reported as a missing package of the trainer."""
    done = run(["fdistill.run"], "train", "gmm")
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr
