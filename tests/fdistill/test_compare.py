"""fdistill compare as a person runs it: real processes, terminals that lack characters, and runs that diverge."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fdkernels as fdk
from fdistill import cli, compare, run
from fdistill.compare import _summary, _table, arms_of
from fdistill.config import ConfigError, GmmConfig

ROOT = Path(__file__).parents[2]
EVERY = [*fdk.divergences(), "alpha(0.5)", "alpha(-0.25)", "kl-shuffled"]
# Python neither coerces nor overrides this locale: files and streams are ASCII unless told otherwise.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONWARNDEFAULTENCODING": "1"}


def process(module, *arguments, **environment):
    here = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-m", module, *map(str, arguments)], capture_output=True, env=here)


def test_a_terminal_of_ascii(tiny_gmm, workplace):
    """The files that are read have characters that the terminal lacks."""
    Path("mine.yaml").write_text("# σ ± 1\npreset: gmm\nseed: 3\n", encoding="utf-8")
    arguments = ["mine.yaml", "--divergences", "kl-shuffled", "--seeds", "1", *tiny_gmm]
    done = process("fdistill", "compare", *arguments, **ASCII)
    errors = done.stderr.decode(errors="replace")
    assert done.returncode == 0, errors
    out = done.stdout.decode("ascii")
    assert "1 to train" in out and "KL(q?p)" in out and re.search(r"\nkl-shuffled +\d\.\d{3} ", out)
    assert not [line for line in errors.split("\n") if "EncodingWarning" in line and f"{ROOT}/python" in line]


@pytest.mark.usefixtures("without_pictures")
def test_every_divergence_at_once(tiny_gmm, workplace, capsys):
    """More arms than there are colors; test_plots.py draws as many."""
    assert cli.main(["compare", "gmm", "--divergences", ",".join(EVERY), "--seeds", "1", *tiny_gmm]) == 0
    assert f"{len(EVERY)} to train" in capsys.readouterr().out
    folder = workplace / "runs" / "gmm-compare"
    stored = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    assert list(stored["arms"]) == EVERY
    runs = {arm: each["runs"] for arm, each in stored["arms"].items()}
    assert all(each["divergence"] == arm.removesuffix("-shuffled") for arm, found in runs.items() for each in found)
    assert [arm for arm, found in runs.items() if any(each["shuffled"] for each in found)] == ["kl-shuffled"]


RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("encoding", "module", "arguments", "shown"),
    [
        ("cp1252", "fdistill", ["train", "gmm", "--dry-run", "name=\u03c3\u00b1"], "runs/?\u00b1"),
        ("ascii", "benchmarks", ["--compare", RESULTS / "cpu.json", "lost.json"], "64?3?32?32"),
    ],
)
def test_what_a_terminal_lacks_is_a_question_mark(encoding, module, arguments, shown, workplace):
    report = json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8"))
    report["rows"] = [row for row in report["rows"] if row["shape_name"] != "cifar"]
    Path("lost.json").write_text(json.dumps(report), encoding="utf-8")
    done = process(module, *arguments, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout.decode(encoding)


def test_help_lists_every_divergence_and_the_control(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    text = "".join(capsys.readouterr().out.split())
    assert all(name in text for name in (*fdk.divergences(), "alpha(a)", "NAME-shuffled"))


def test_only_the_arms_that_were_asked_for(tiny_gmm, workplace, capsys):
    assert cli.main(["compare", "gmm", "--divergences", "rkl,kl", "--seeds", "1", *tiny_gmm]) == 0
    out = capsys.readouterr().out
    assert "2 to train" in out and "shuffled" not in out and "±" not in out and "one seed" in out
    stored = json.loads((workplace / "runs" / "gmm-compare" / "compare.json").read_text(encoding="utf-8"))
    assert list(stored["arms"]) == ["rkl", "kl"]
    assert stored["arms"]["kl"]["summary"]["kl_qp"]["std"] is None
    assert cli.main(["compare", "gmm", "--divergences", "kl", "--seeds", "1", *tiny_gmm]) == 0
    stored = json.loads((workplace / "runs" / "gmm-compare" / "compare.json").read_text(encoding="utf-8"))
    assert list(stored["arms"]) == ["kl"]


@pytest.mark.parametrize("way", ["file", "link", "folder"])
def test_what_no_comparison_made_stays(way, tiny_gmm, workplace, capsys):
    out = workplace / "runs" / "gmm-compare"
    out.mkdir(parents=True)
    (workplace / "keep").write_text("precious")
    if way == "file":
        (out / "compare.json").write_text("precious")
    elif way == "link":
        (out / "compare.png").symlink_to(workplace / "keep")
    else:
        (out / "compare.png").mkdir()
    before = sorted(out.iterdir())
    assert cli.main(["compare", "gmm", "--divergences", "kl", "--seeds", "1", *tiny_gmm]) == 2
    assert "no comparison of this version made it" in capsys.readouterr().err
    assert sorted(out.iterdir()) == before and (workplace / "keep").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--divergences", "rkl,kl,rkl"], "--divergences: rkl is there twice"),
        (["--divergences", "sf,softened_rkl"], "softened_rkl is there twice"),
        (["--divergences", "alpha(0.5),alpha( .50 )"], "alpha(0.5) is there twice, also as alpha( .50 )"),
        (["--divergences", "rkl,kll"], "did you mean 'kl'"),
        (["--divergences", "rkl,kl-shufled"], "unknown name 'kl-shufled'"),
        (["--divergences", "rkl,-shuffled"], "unknown name"),
        (["--divergences", "tv"], "total variation"),
        (["--divergences", "alpha(nan)"], "finite number"),
        (["--divergences", ","], "--divergences: expected at least one"),
        (["loss.divergence=kl"], "loss.divergence: each run of a comparison has its own, from --divergences"),
        (["loss.shuffle_weight=true"], "from NAME-shuffled in --divergences"),
        (["loss={divergence: kl}"], "loss.divergence: each run of a comparison has its own, from --divergences"),
        (["name=mine"], "name: each run"),
        (["loss.kind=sid"], "loss.kind: expected fdiv, since the runs differ by divergence, got 'sid'"),
        (["loss.gan=hinge"], "loss.gan: hinge logits are no log density ratios"),
    ],
)
def test_what_cannot_be_compared_fails_before_anything_is_made(arguments, message, tiny_gmm, workplace, capsys):
    assert cli.main(["compare", "gmm", *arguments, *tiny_gmm]) == 2
    assert message in capsys.readouterr().err
    assert list(workplace.iterdir()) == []


def test_the_control_of_any_divergence():
    assert arms_of(["js-shuffled", "sf-shuffled", "js"]) == {
        "js-shuffled": ["loss.divergence=js", "loss.shuffle_weight=true"],
        "softened_rkl-shuffled": ["loss.divergence=softened_rkl", "loss.shuffle_weight=true"],
        "js": ["loss.divergence=js", "loss.shuffle_weight=false"],
    }
    with pytest.raises(ConfigError, match="js-shuffled is there twice"):
        arms_of(["js-shuffled", "jensen_shannon-shuffled"])


# Runs that diverged.


def ran(value, **more):
    return {"student": {"kl_qp": value, "on_mode": value, "mode_tv": value}, **more}


DIVERGED = [ran(None, diverged=True), ran(float("nan"), diverged=True), {"student": None, "diverged": True}, {}]


@pytest.mark.parametrize("broken", DIVERGED)
@pytest.mark.parametrize("first", [True, False])
def test_an_arm_that_diverged_breaks_nothing(broken, first, workplace):
    mixed, fine, lost = [ran(0.5), broken, ran(0.7)], [ran(0.2), ran(0.3), ran(0.4)], [broken] * 3
    arms = {"kl": lost, "js": mixed, "rkl": fine} if first else {"rkl": fine, "js": mixed, "kl": lost}
    table = _table(arms)
    rows = {line.split()[0]: line for line in table.split("\n")}
    assert "0.300 ± 0.100" in rows["rkl"] and "0.600 ± 0.141" in rows["js"] and rows["kl"].count("–") == 3
    assert len({len(rows[arm]) for arm in arms}) == 1 and "nan" not in table
    if broken.get("diverged"):
        assert "kl: 3 of 3 diverged" in table and "js: 1 of 3 diverged" in table and "rkl: " not in table
    stored = _summary(GmmConfig(task="gmm"), arms)["arms"]
    json.dumps(stored, allow_nan=False)
    assert stored["kl"]["summary"]["kl_qp"] == {"mean": None, "std": None}
    compare._figure(arms, workplace / "compare.png")
    assert (workplace / "compare.png").stat().st_size > 1000


def test_nothing_but_runs_that_diverged(workplace):
    arms = {"kl": [{"student": None, "diverged": True}]}
    assert "kl: 1 of 1 diverged" in _table(arms)
    compare._figure(arms, workplace / "compare.png")


def test_large_numbers_keep_the_columns(workplace):
    table = _table({"kl": [ran(1e30), ran(2e30)], "js": [ran(-0.1), ran(0.1)]}).split("\n")
    assert "1.5e+30 ± 7.07e+29" in table[1] and len({len(line) for line in table[:3]}) == 1


def test_a_stored_run_that_diverged_is_compared(tiny_gmm, workplace, capsys):
    """metrics.json is as such a run leaves it."""
    arguments = ["compare", "gmm", "--divergences", "rkl,kl", "--seeds", "1", *tiny_gmm]
    assert cli.main(arguments) == 0
    path = workplace / "runs" / "gmm-compare" / "kl-seed0" / "metrics.json"
    result = run.result_of(path.parent)
    result.update(diverged=True, student=dict.fromkeys(result["student"]))
    path.write_text(json.dumps(result), encoding="utf-8")
    capsys.readouterr()
    assert cli.main(arguments) == cli.EXIT_DIVERGED
    out = capsys.readouterr().out
    assert "0 to train" in out and "kl: 1 of 1 diverged" in out
    assert np.isfinite(json.loads((path.parents[1] / "compare.json").read_text(encoding="utf-8"))["arms"]["rkl"]
                       ["summary"]["kl_qp"]["mean"])  # fmt: skip
