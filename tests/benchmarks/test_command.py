"""The command line: what it takes and refuses, what reaches the run, and its exit codes."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch

import benchmarks.__main__ as cli
import benchmarks.run as running
from benchmarks import page, setting
from benchmarks.formulas import FORMULAS
from benchmarks.measure import Skipped
from tests.benchmarks.tiny import measured, row

ERRORS = [
    ("--shapes 8x0", "expected two sizes or more, of at least 1, as in 8,4,128,128; got '8x0'"),
    ("--shapes 8", "expected two sizes or more"),
    ("--shapes cifar,8", "unknown shape '8'"),
    ("--shapes sdlx", "unknown shape 'sdlx'"),
    ("--dtype fp8", "unknown dtype 'fp8'"),
    ("fdiv", "unknown op 'fdiv'"),
    ("--backend cuda", "unknown backend 'cuda'"),
    ("--backend triton --device cpu", "--backend triton: not available on cpu"),
    ("--baseline dmd3", "unknown baseline 'dmd3'"),
    ("--baseline none,fastgen", "--baseline: expected none alone, or names without it"),
    ("--baseline none --mode eager", "--mode: expected a baseline, but --baseline is none"),
    ("--baseline self_forcing --shapes cifar", "self_forcing takes videos"),
    ("fdiv_weight --baseline dmd2_pixel", "--baseline: the peers of fdiv_weight are fixed"),
    ("--mode fast", "unknown mode 'fast'"),
    ("--rounds 5", "expected a number of at least 6, got '5'"),
    ("--seconds soon", "expected a number of at least 0, got 'soon'"),
    ("--seconds nan", "expected a number of at least 0, got 'nan'"),
    ("--json /nowhere/at/all.json", "there is no folder"),
    ("--json .", "is a folder"),
    ("--html .", "is a folder"),
    ("--compare /nowhere.json", "No such file"),
    ("--compare a.json b.json c.json", "got 3 files"),
    ("--js=f.json", "unrecognized arguments"),
]


def stopped(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_only_the_page_needs_jinja2(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert cli.main(TINY) == 0
    asked = stopped([*TINY, "--html", str(tmp_path / "page.html")], capsys)
    assert "--html: import of jinja2 halted; None in sys.modules: pip install jinja2" in asked
    report = tmp_path / "report.json"
    assert cli.main([*TINY, "--json", str(report)]) == 0
    monkeypatch.setattr(sys, "argv", ["page", str(report), str(tmp_path / "page.html")])
    with pytest.raises(SystemExit):
        page.main()
    assert "None in sys.modules: pip install jinja2" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_bad_arguments(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.chdir(tmp_path)
    assert message in stopped(arguments.split(), capsys)


def test_no_gpu_is_said(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "sees no CUDA or ROCm device" in stopped(["--device", "cuda"], capsys)


# ---- the cases


def chosen(*arguments, device="cpu"):
    def error(text):
        raise AssertionError(text)

    return cli.cases_of(cli.command_line().parse_args(arguments), device, error)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_quick_choice_has_every_formula(device):
    cases = chosen(device=device)
    assert {case.formula for case in cases} == set(FORMULAS) and len(cases) == len(set(cases))
    assert {case.op for case in chosen("fdiv_weight", device=device)} == {"fdiv_weight"}


def test_what_is_asked_for():
    cases = chosen("--shapes", "sdxl,wan", "2,3,4,4", "--dtype", "bf16")
    assert [(c.formula, c.shape_name) for c in cases if c.op == "fused_fdiv_loss"] == [
        ("fastgen", "sdxl"), ("fastgen", "wan"), ("fastgen", "2,3,4,4"), ("dmd2_latent", "sdxl"),
        ("self_forcing", "wan"),
    ]  # fmt: skip
    assert {case.dtype for case in cases if case.op == "fused_fdiv_loss"} == {"bf16"}
    assert chosen("--shapes", "wan", "--baseline", "self_forcing")[0].shape == (1, 21, 16, 60, 104)
    assert [c.formula for c in chosen("--shapes", "2x3x4x4", "--dtype", "fp32", "--baseline", "none")] == ["fastgen"]
    assert [c.shape for c in chosen("fdiv_weight", "--shapes", "64,3", "cifar")] == [(64, 3), (64, 2)]
    assert {c.shape_name for c in chosen("--shapes", "large", "--baseline", "fastgen")} >= {"wan_large", "cifar_large"}


# ---- the command that is recorded

KEPT = "fdiv_weight --dtype fp32"


@pytest.mark.parametrize(
    "given",
    [
        "fdiv_weight --json /a/b.json --dtype fp32 --compare /c.json /d.json --html=/e.html",
        "--json F fdiv_weight --dtype fp32",
        "--json=F fdiv_weight --dtype fp32",
        "--html F fdiv_weight --dtype fp32 --tolerance 0.2",
        "fdiv_weight --compare old.json --dtype fp32",
        "--tolerance 0.2 --json F fdiv_weight --html G --dtype fp32",
    ],
)
def test_the_command_that_is_recorded_names_no_files(given):
    assert cli.command(given.split()) == f"python -m benchmarks {KEPT}"


def test_the_command_that_is_recorded_keeps_everything_else():
    given = ["fdiv_weight", "--shapes", "8,2", "4,2", "--backend=native", "--rounds", "9", "--seconds", "3"]
    assert cli.command(given) == "python -m benchmarks " + " ".join(given)
    assert cli.command(["--shapes", "a b"]) == "python -m benchmarks --shapes 'a b'"


# ---- what reaches the run

TINY = ["--shapes", "tiny", "--dtype", "fp32", "--baseline", "fastgen", "--device", "cpu"]


@pytest.fixture
def bench(monkeypatch):
    """A run whose cases are measured by nobody: `fields` and `skipped` are what our row and the report get."""
    made = SimpleNamespace(given=None, seconds=None, rows=None, skipped=(), interrupted=False, busy=0.0)
    whole = cli.run

    def run(cases, options, setting, *, seconds, **more):
        made.given, made.seconds, made.setting = options, seconds, setting
        return whole(cases, options, setting, seconds=seconds, **more)

    def measure(formula, case, options):
        if made.interrupted and case.dtype == "bf16":
            raise KeyboardInterrupt
        names = (*options.backends, *(f"{formula.peer} {mode}" for mode in options.modes))
        rows = [row(case, name) for name in names] if made.rows is None else made.rows(case)
        found = measured(case, skipped=made.skipped)
        found.rows[:] = rows
        return found

    monkeypatch.setattr(setting, "cpu_busy_percent", lambda: made.busy)
    monkeypatch.setattr(cli, "run", run)
    monkeypatch.setattr(running, "measure", measure)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(made, "threads", n))
    return made


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        ([], 100.0),
        (["fdiv_weight"], 100.0),
        (["--seconds", "7"], 7.0),
        (TINY, float("inf")),
        ([*TINY, "--seconds", "1000"], 1000.0),
    ],
)
def test_seconds(bench, arguments, seconds):
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    assert bench.seconds == seconds


def test_options(bench):
    cli.main(TINY)
    assert (bench.given.device, bench.given.rounds, bench.given.seconds) == ("cpu", 40, 6.0)
    assert bench.given.modes == ["eager", "compile default"] and bench.setting["compile_modes"] == ["default"]
    cli.main([*TINY, "--rounds", "9", "--case-seconds", "2", "--threads", "1", "--mode", "max-autotune"])
    assert (bench.given.rounds, bench.given.seconds, bench.threads) == (9, 2.0, 1)
    assert bench.setting["compile_modes"] == ["max-autotune-no-cudagraphs"]
    cli.main([*TINY[:4], "--baseline", "none", "--backend", "reference", "--device", "cpu"])
    assert (bench.given.backends, bench.given.modes) == (["reference"], [])


def test_a_missing_library_is_said(bench, monkeypatch, capsys, tmp_path):
    def unavailable(name, device):
        return None if name == "reference" else "it was not built"

    monkeypatch.setattr(cli.backends, "unavailable", unavailable)
    file = tmp_path / "report.json"
    assert cli.main([*TINY, "--json", str(file)]) == 0
    assert "without native: unavailable: it was not built\n" in capsys.readouterr().out
    (skipped,) = json.loads(file.read_text())["skipped"]
    assert (skipped["what"], skipped["kind"]) == ("native", "unavailable")
    assert bench.given.backends == ["reference"]
    # Who names a backend gets it or an error.
    assert cli.main([*TINY, "--backend", "reference"]) == 0
    assert "without" not in capsys.readouterr().out
    assert "--backend native: not available on cpu: it was not built" in stopped([*TINY, "--backend=native"], capsys)


# ---- exit codes

FAILED = Skipped("a case native", "RuntimeError: no", "failed")


def rows_with(**fields):
    return lambda case: [row(case, **fields), row(case, "fastgen eager")]


WRONG_NOW = {"wrong": True, "wrong_because": "gradient is off by 1"}
WRONG = rows_with(**WRONG_NOW)
FAULTS = [
    ({}, 0, None),
    ({"rows": WRONG}, 1, "fdkernels is wrong: native, tiny fp32: gradient is off by 1"),
    ({"skipped": [FAILED]}, 1, "fdkernels failed: a case native: RuntimeError: no"),
    ({"skipped": [FAILED._replace(ours=False)]}, 0, None),
    ({"skipped": [FAILED._replace(kind="unavailable")]}, 0, None),
    ({"rows": lambda case: [row(case, "fastgen eager")]}, 1, "fdkernels was not measured"),
    ({"rows": lambda case: [row(case), row(case, "fastgen eager", wrong=True, wrong_because="")]}, 0, None),
]


@pytest.mark.parametrize("compare", [False, True])
@pytest.mark.parametrize(("made", "code", "said"), FAULTS)
def test_a_fault_of_ours_fails_the_run(bench, tmp_path, capsys, made, code, said, compare):
    old = tmp_path / "old.json"
    vars(bench).update(rows=rows_with())
    assert cli.main([*TINY, "--json", str(old)]) == 0
    vars(bench).update(made)
    assert cli.main([*TINY, *(["--compare", str(old)] if compare else [])]) == code
    out = capsys.readouterr().out
    assert (said or "fdkernels ") in out and ("fdkernels is wrong" in out) == (made.get("rows") is WRONG)


def compared(bench, tmp_path, before, after, *, alone):
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    for file, rows in zip(files, (before, after), strict=True):
        bench.rows = rows
        compare = ["--compare", str(files[0])] if file is files[1] and not alone else []
        code = cli.main([*TINY, "--json", str(file), *compare])
    return cli.main(["--compare", *map(str, files)]) if alone else code


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        (rows_with(), rows_with(), 0),
        (rows_with(), rows_with(time_us=30.0, low_us=29.0, high_us=31.0), 1),
        (rows_with(), rows_with(variant="reference"), 1),  # native is lost
        (rows_with(), lambda case: [row(case._replace(shape_name="other"))], 3),  # no row in common
    ],
)
def test_what_a_comparison_finds(bench, tmp_path, before, after, code, alone):
    assert compared(bench, tmp_path, before, after, alone=alone) == code


def test_another_machine_is_no_comparison(bench, tmp_path):
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    assert cli.main([*TINY, "--json", str(files[0])]) == 0
    report = json.loads(files[0].read_text())
    report["setting"]["device"] = "another"
    files[1].write_text(json.dumps(report))
    assert cli.main(["--compare", *map(str, files)]) == 3
    assert cli.main(["--compare", str(files[0]), str(files[0])]) == 0


SLOW = {"time_us": 300.0, "low_us": 290.0, "high_us": 310.0}


@pytest.mark.parametrize(("after", "code"), [(rows_with(**SLOW), 3), (WRONG, 1), (rows_with(variant="reference"), 1)])
@pytest.mark.parametrize("busy", [(60.0, 0.0), (0.0, 60.0)])
def test_a_busy_machine_cannot_judge_times(bench, tmp_path, capsys, busy, after, code):
    """Rightness it can."""
    old = tmp_path / "old.json"
    bench.rows, bench.busy = rows_with(), busy[0]
    assert cli.main([*TINY, "--json", str(old)]) == 0
    bench.rows, bench.busy = after, busy[1]
    assert cli.main([*TINY, "--compare", str(old)]) == code
    run = "older" if busy[0] else "newer"
    said = f"times are not compared: in the {run} run other work took part of the CPU, 60 % just before the run."
    assert said in (out := capsys.readouterr().out) and "%\n1 rows" not in out
    # The run says so itself, before its figures and after them.
    assert out.count("not for a measurement: other work took part of the CPU, 60 %") == 2


@pytest.mark.parametrize("more", ["--rounds 9", "--json new.json", "--device cpu", "--seconds=3", "fdiv_weight"])
def test_two_reports_are_compared_without_a_run(bench, tmp_path, capsys, more):
    file = tmp_path / "old.json"
    cli.main([*TINY, "--json", str(file)])
    assert "--compare OLD NEW makes none" in stopped([*more.split(), "--compare", str(file), str(file)], capsys)
    assert cli.main(["--tolerance", "0.2", "--compare", str(file), str(file)]) == 0


# ---- Ctrl-C, and a reader that has gone

BOTH = ["--shapes", "tiny", "--dtype", "fp32,bf16", "--baseline", "fastgen", "--device", "cpu"]


def test_ctrl_c_leaves_the_report_and_its_own_exit_code(bench, tmp_path, capsys):
    bench.interrupted, file = True, tmp_path / "report.json"
    assert cli.main([*BOTH, "--json", str(file)]) == 130
    report = json.loads(file.read_text())
    assert {each["dtype"] for each in report["rows"]} == {"fp32"}
    (rest,) = report["skipped"]
    assert "bf16" in rest["what"] and rest["kind"] == "stopped"
    assert f"skipped {rest['what']}: stopped by hand" in capsys.readouterr().out


class Gone(io.StringIO):
    """`head -2`."""

    def write(self, text):
        if self.getvalue().count("\n") >= 2:
            raise BrokenPipeError
        return super().write(text)


def test_a_reader_that_goes_does_not_take_the_report_along(bench, tmp_path, monkeypatch):
    """Nor the exit code, of faults and of what became worse."""
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    for file, rows, code in ((files[0], rows_with(), 0), (files[1], WRONG, 1)):
        bench.rows = rows
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Gone())
            assert cli.main([*BOTH, "--json", str(file)]) == code
            sys.stdout.close()
        assert {each["dtype"] for each in json.loads(file.read_text())["rows"]} == {"fp32", "bf16"}
    for arguments in ([*BOTH, "--compare", str(files[0])], ["--compare", *map(str, files)]):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Gone())
            assert cli.main(arguments) == 1
            sys.stdout.close()


def test_a_reader_that_goes_ends_a_run_for_its_eyes_alone(bench, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        with pytest.raises(BrokenPipeError):
            cli.main(BOTH)
        sys.stdout.close()
