"""The command line: what it takes and refuses, what reaches the run, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import benchmarks.__main__ as cli
import benchmarks.measure.run as running
from benchmarks.cases.formulas import FORMULAS
from benchmarks.measure.rows import Skipped
from tests.benchmarks.made_up import measured, row

ROOT = Path(__file__).parents[2]


def stopped(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shapes 8x0", "expected two sizes or more, of at least 1, as in 8,4,128,128; got '8x0'"),
        ("--shapes sdlx", "unknown shape 'sdlx'"),
        ("--backend triton --device cpu", "--backend triton: not available on cpu"),
        ("--baseline none --mode eager", "--mode: expected a baseline, but --baseline is none"),
        ("--baseline self_forcing --shapes cifar", "self_forcing takes videos"),
        ("--rounds 5", "expected at least 6, got 5"),
        ("--json /nowhere/at/all.json", "there is no folder"),
        ("--compare /nowhere.json", "No such file"),
    ],
)
def test_bad_arguments(arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert message in stopped(arguments.split(), capsys)


def chosen(arguments="", device="cpu"):
    given = cli.command_line().parse_args(arguments.split())
    return [(c.formula, c.shape_name, c.dtype, c.shape) for c in cli.cases_of(given, device, pytest.fail)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_quick_choice_has_every_formula(device):
    cases, steps = chosen(device=device), chosen("step", device)
    assert {name for name, *_ in (*cases, *steps)} == set(FORMULAS) and len(cases) == len(set(cases))
    assert {FORMULAS[name].op == "step" for name, *_ in steps} == {True}
    assert {FORMULAS[name].op == "step" for name, *_ in cases} == {False}
    assert {name for name, *_ in chosen("fdiv_weight", device)} == {"weight"}


def test_what_is_asked_for():
    cases = chosen("fused_fdiv_loss --shapes sdxl,wan --dtype bf16")
    found = [("fastgen", "sdxl"), ("fastgen", "wan"), ("dmd2_latent", "sdxl")]
    assert [case[:3] for case in cases] == [(*case, "bf16") for case in [*found, ("self_forcing", "wan")]]
    assert cases[-1][3] == (1, 21, 16, 60, 104)
    assert [case[0] for case in chosen("--shapes 2x3x4x4 --dtype fp32 --baseline none")] == ["fastgen"]
    assert [case[3] for case in chosen("fdiv_weight --shapes 64,3")] == [(64, 3)]
    assert {case[1] for case in chosen("--shapes large --baseline fastgen")} >= {"wan_large", "cifar_large"}
    assert [case[:3] for case in chosen("step --shapes edm_network --dtype bf16")] == [
        (name, "edm_network", "fp32") for name in ("clip", "average")
    ]
    assert [case[0] for case in chosen("step --shapes 2x3x4x4 --dtype bf16")] == [
        "fastgen_student",
        "fastgen_fake_score",
    ]


def test_the_command_that_is_recorded_names_no_files():
    given = ["--json=F", "fdiv_weight", "--html", "/a/b c", "--shapes", "4,2", "--compare", "/c.json"]
    assert cli.command(given) == "python -m benchmarks fdiv_weight --shapes 4,2"


TINY = ["--shapes", "tiny", "--dtype", "fp32", "--baseline", "fastgen", "--device", "cpu"]


@pytest.fixture
def bench(monkeypatch):
    """A run that measures nothing: the report gets `rows` and `skipped`."""
    made = SimpleNamespace(given=None, seconds=None, rows=None, skipped=())
    whole = cli.run

    def run(cases, options, setting, *, seconds, **more):
        made.given, made.seconds = options, seconds
        return whole(cases, options, setting, seconds=seconds, **more)

    def measure(formula, case, options):
        names = (*options.backends, *(f"{formula.peer} {mode}" for mode in options.modes))
        found = measured(case, skipped=made.skipped)
        found.rows[:] = [row(case, name) for name in names] if made.rows is None else made.rows(case)
        return found

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.setattr(running, "measure", measure)
    return made


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_only_the_page_needs_jinja2_and_matplotlib(bench, monkeypatch, tmp_path, capsys, missing):
    for name in ("page", "charts"):
        monkeypatch.delitem(sys.modules, f"benchmarks.report.{name}", raising=False)
        monkeypatch.delattr(f"benchmarks.report.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert cli.main([*TINY, "--json", str(tmp_path / "report.json")]) == 0
    asked = stopped([*TINY, "--html", str(tmp_path / "page.html")], capsys)
    assert f"--html: import of {missing} halted; None in sys.modules: pip install {missing}" in asked


def test_what_reaches_the_run(bench):
    infinite = (TINY, float("inf")), (["step"], float("inf"))
    for arguments, seconds in (([], 100.0), (["fdiv_weight"], 100.0), (["--seconds", "7"], 7.0), *infinite):
        assert cli.main([*arguments, "--device", "cpu"]) == 0 and bench.seconds == seconds
    assert (bench.given.device, bench.given.rounds) == ("cpu", 40)
    assert bench.given.modes == ["eager", "compile default"]
    cli.main([*TINY, "--rounds", "9", "--mode", "max-autotune"])
    assert bench.given.rounds == 9
    assert bench.given.modes == ["compile max-autotune-no-cudagraphs"]
    cli.main([*TINY, "--baseline", "none", "--backend", "reference"])
    assert (bench.given.backends, bench.given.modes) == (["reference"], [])


FAILED = Skipped("a case native", "RuntimeError: no", "failed")


def rows_with(**fields):
    return lambda case: [row(case, **fields), row(case, "fastgen eager")]


WRONG = rows_with(wrong=True, wrong_because="gradient is off by 1")
SLOW = rows_with(time_us=300.0, low_us=290.0, high_us=310.0)


@pytest.mark.parametrize(
    ("after", "code", "compared", "said"),
    [
        ({}, 0, 0, "1 rows of fdkernels compared: 0 worse, 0 better, 1 no difference"),
        ({"rows": WRONG}, 1, 1, "fdkernels is wrong: native, tiny fp32: gradient is off by 1"),
        ({"skipped": [FAILED]}, 1, 1, "fdkernels failed: a case native: RuntimeError: no"),
        ({"skipped": [FAILED._replace(ours=False)]}, 0, 0, ""),
        ({"skipped": [FAILED._replace(kind="unavailable")]}, 0, 0, ""),
        ({"rows": lambda case: [row(case, "fastgen eager")]}, 1, 1, "fdkernels was not measured"),
        ({"rows": lambda case: [row(case), row(case, "fastgen eager", wrong=True, wrong_because="")]}, 0, 0, ""),
        ({"rows": SLOW}, 0, 1, "worse: fused_fdiv_loss, tiny, fp32, fastgen, 4×3×16×16, native: 0.03 × (0.03 to 0.04)"),
        ({"rows": rows_with(variant="reference")}, 0, 1, "4×3×16×16, native: no longer there"),
        ({"rows": lambda case: [row(case._replace(shape_name="other"))]}, 0, 3, "not in this run"),
    ],
)
def test_exit_codes(bench, tmp_path, capsys, after, code, compared, said):
    """Exit codes of a run, of a run that is compared with an older one, and of two reports without a run."""
    old, new = str(tmp_path / "old.json"), str(tmp_path / "new.json")
    bench.rows = rows_with()
    assert cli.main([*TINY, "--json", old]) == 0
    vars(bench).update(after)
    assert cli.main(TINY) == code
    assert cli.main([*TINY, "--json", new, "--compare", old]) == compared
    assert said in capsys.readouterr().out
    assert cli.main(["--compare", old, new]) == compared
    for more in ("--rounds 9", "--json new.json", "--device cpu", "fdiv_weight"):
        assert "--compare OLD NEW makes none" in stopped([*more.split(), "--compare", old, new], capsys)


def test_a_run_and_its_report(tmp_path):
    """The report has the layout of those in benchmarks/results."""
    file, html = tmp_path / "report.json", tmp_path / "page.html"
    settings = "fused_fdiv_loss,fdiv_weight,step --shapes tiny --dtype fp32 --rounds 7 --mode eager --device cpu"
    command = [sys.executable, "-m", "benchmarks", *settings.split(), "--json", str(file), "--html", str(html)]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    report, kept = json.loads(file.read_text()), json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    assert set(report) == set(kept) and set(report["rows"][0]) == set(kept["rows"][0])
    assert set(report["setting"]) >= set(kept["setting"]) and report["setting"]["threads"] == 1
    assert report["setting"]["command"] == f"python -m benchmarks {settings}"
    assert report["ceiling"]["low"] <= report["ceiling"]["gb_per_s"] <= report["ceiling"]["high"]
    steps = ["fastgen_student", "fastgen_fake_score"]
    ops = ["fastgen", "dmd2_pixel", "dmd2_latent", "weight"]
    assert [each["formula"] for each in report["rows"][::2]] == [*ops, *steps]
    assert [each["ours"] for each in report["rows"]] == 6 * [True, False] and len(report["comparisons"]) == 6
    for each in report["rows"]:  # what one of our ops moves is in its plan; a step's ops are counted
        assert (each["counted_bytes"] is None) == (each["ours"] and each["op"] != "step")
        assert each["syncs"] == 0 if each["ours"] else each["syncs"] >= 0
    assert [each["syncs"] for each in report["rows"] if each["op"] == "step"] == [0, 10, 0, 3]
    for each in report["rows"]:
        assert 0 < each["low_us"] <= each["time_us"] <= each["high_us"] and not each["wrong"]
        assert each["rounds"] == 7 and each["extra_bytes"] > 0 and each["launches"] > 0
        assert each["variant"] in done.stdout
    assert html.read_text().count("<svg") == 2
