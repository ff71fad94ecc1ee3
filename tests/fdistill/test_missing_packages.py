"""Without packages of the extra `train`: help works, and a command says which one it lacks before it spends minutes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fdistill import cli

ROOT = Path(__file__).parents[2]
EVERY = sorted(cli.PACKAGES)
# Torch, which takes seconds to load and is never missing, once for all.
SERVER = """
import json, os, runpy, sys
import torch
for line in sys.stdin:
    folder, files, blocked, sys.argv[1:] = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for number, path in enumerate([os.devnull, *files]):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.modules.update(dict.fromkeys(blocked))  # importing None raises ModuleNotFoundError
        try:
            runpy.run_module("fdistill", run_name="__main__")
        except SystemExit as status:
            sys.stdout.flush()
            os._exit(status.code)  # to take torch down in order takes another second
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command line where the blocked packages are not installed."""
    files = [tmp_path_factory.mktemp("printed") / name for name in ("out", "err")]

    def call(blocked, *arguments):
        server.stdin.write(json.dumps([os.getcwd(), list(map(str, files)), blocked, arguments]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, *(file.read_text() for file in files))

    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=-1, stdout=-1, text=True) as server:
        yield call


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
    """Not to be told as a package of the trainer."""
    done = run(["fdistill.run"], "train", "gmm")
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr
