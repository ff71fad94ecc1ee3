import json
import re

import numpy as np
import pytest
import torch

from fdistill import cli, config, run
from fdistill.checkpoint import Checkpoints
from fdistill.trainer import Distiller, Interrupted


def test_digits_from_nothing_to_a_diffusers_pipeline(tiny_digits, workplace, capsys):
    assert cli.main(["train", "digits", "name=one", *tiny_digits]) == 0
    folder = workplace / "runs" / "one"
    assert "report: runs/one/report.html" in capsys.readouterr().out
    result = json.loads((folder / "metrics.json").read_text())
    for name in ("student", "teacher", "undistilled", "floor"):
        assert {"frechet", "kid", "precision", "recall", "class_tv"} <= result[name].keys()
        assert all(np.isfinite(result[name][key]) for key in ("frechet", "kid", "precision", "recall", "class_tv"))
    for name in ("samples.png", "curves.png", "log.jsonl"):
        assert (folder / name).stat().st_size > 100
    page = (folder / "report.html").read_text()
    assert not re.search(r"(src|srcset|href)=\"(?!data:)", page)  # self-contained
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert not re.search(r"[{}]{2}|{%", page)

    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder / "student", low_cpu_mem_usage=False)
    images = pipeline(batch_size=5, generator=torch.Generator().manual_seed(3), output_type="pt").images
    cfg = config.from_dict(run.settings_of(folder))
    task = run.task_class(cfg)(cfg)
    distiller = Distiller(cfg, task, folder)
    assert distiller.restore()
    with torch.no_grad():
        expected = distiller.average.network(task.noise(5, torch.Generator().manual_seed(3)))
    torch.testing.assert_close(2 * images - 1, expected.clamp(-1, 1), atol=2e-5, rtol=0)

    assert cli.main(["train", "digits", "name=one", *tiny_digits]) == 0
    assert "finished already" in capsys.readouterr().out
    assert cli.main(["sample", "runs/one", "-n", "7", "-o", "seven.png"]) == 0
    assert cli.main(["export", "runs/one", "mine"]) == 0
    assert (workplace / "seven.png").stat().st_size > 100
    assert "ConsistencyModelPipeline" in (workplace / "mine" / "README.md").read_text()
    assert cli.main(["export", "runs/one", "mine"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["gmm-sid", "gmm-sim"])
def test_score_implicit_matching_from_nothing_to_a_report(preset, tiny_gmm, workplace, capsys):
    assert cli.main(["train", preset, *tiny_gmm]) == 0
    folder = workplace / "runs" / preset
    result = json.loads((folder / "metrics.json").read_text())
    assert result["kind"] == preset.removeprefix("gmm-") and result["divergence"] is None
    assert "log_ratio_error" not in result and np.isfinite(result["student"]["kl_qp"])
    assert result["diverged"] is False and result["skipped_updates"] == 0
    row = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert row["health/relative_gap"] > 0 and row["student/grad_norm"] > 0 and "student/gan_loss" not in row
    assert "score implicit matching" in (folder / "report.html").read_text()
    assert cli.main(["sample", f"runs/{preset}", "-n", "7", "-o", "seven.png"]) == 0
    assert cli.main(["train", preset, "--dry-run"]) == 0
    assert "score_implicit_loss, " + result["kind"] in capsys.readouterr().out


@pytest.mark.usefixtures("without_pictures")
def test_a_folder_is_never_overwritten_by_accident(tiny_gmm, workplace, capsys, monkeypatch):
    def stop(self):
        self.step += 1
        self.save()
        raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "train", stop)
        assert cli.main(["train", "gmm", "name=g", *tiny_gmm]) == 130
    assert "Go on with: fdistill train gmm name=g" in (error := capsys.readouterr().err) and "--resume" in error
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm]) == 2
    assert "unfinished run (iteration 1 of 12)" in capsys.readouterr().err
    assert cli.main(["sample", "runs/g"]) == 2
    assert "no student yet" in capsys.readouterr().err
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, "--resume"]) == 0
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, "loss.divergence=kl"]) == 2
    assert "loss.divergence: js -> kl" in capsys.readouterr().err
    assert cli.main(["train", "gmm", "--fresh", "name=g", *tiny_gmm, "loss.divergence=kl"]) == 0
    assert json.loads((workplace / "runs/g/metrics.json").read_text())["divergence"] == "kl"
    (workplace / "runs/other").mkdir()
    (workplace / "runs/other/thesis.txt").write_text("precious")
    assert cli.main(["train", "gmm", "name=other", *tiny_gmm, "--fresh"]) == 2
    assert (workplace / "runs/other/thesis.txt").exists()


def test_dry_run_trains_and_writes_nothing(workplace, capsys):
    assert cli.main(["train", "digits", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "163,985 parameters, 600 updates" in plan and "backend native" in plan and "to be trained" in plan
    assert cli.main(["train", "gmm", "--dry-run", "loss.backend=reference"]) == 0
    assert "backend reference" in capsys.readouterr().out
    assert cli.main(["train", "gmm-sid", "--dry-run", "loss.alpha=0.5"]) == 0
    plan = capsys.readouterr().out
    assert "score_implicit_loss, sid, alpha 0.5" in plan and "no adversarial term" in plan
    assert list(workplace.iterdir()) == []


def test_settings_may_stand_after_options(capsys):
    assert cli.main(["train", "gmm", "--dry-run", "seed=5"]) == 0
    assert "runs/gmm-js-seed5" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["train", "gmm", "--no-such-option"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digit"], "unknown preset 'digit'; did you mean 'digits'?"),
        (["train", "gmm", "loss.kind=sid", "loss.backend=nope"], "loss.backend: expected one of auto"),
        (["train", "gmm", "loss.divergense=kl"], "did you mean 'loss.divergence'"),
        (["sample", "nowhere"], "nowhere is not a run"),
        (["train", "gmm", "--resume", "--fresh"], "exclude each other"),
        (["compare", "gmm", "--divergences", "rkl,kll"], "did you mean 'kl'"),
        (["compare", "gmm", "--seeds", "0"], "--seeds: expected an integer in [1, 1000], got 0"),
        (["compare", "gmm", "--divergences", ","], "--divergences: expected at least one"),
    ],
)
def test_errors_say_what_to_do(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_compare_trains_what_is_missing_and_tabulates(tiny_gmm, workplace, capsys):
    arguments = ["compare", "gmm", "--divergences", "rkl,kl,kl-shuffled", "--seeds", "2", *tiny_gmm]
    assert cli.main(arguments) == 0
    assert "6 to train" in (text := capsys.readouterr().out) and "kl-shuffled" in text
    out = workplace / "runs" / "gmm-compare"
    report = json.loads((out / "compare.json").read_text())
    assert list(report["arms"]) == ["rkl", "kl", "kl-shuffled"]
    for arm in report["arms"].values():
        values = [result["student"]["kl_qp"] for result in arm["runs"]]
        assert len(set(values)) == 2
        assert arm["summary"]["kl_qp"]["mean"] == pytest.approx(np.mean(values))
        assert arm["summary"]["kl_qp"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert (out / "compare.png").stat().st_size > 1000
    assert cli.main(arguments) == 0
    assert "0 to train" in capsys.readouterr().out
    assert Checkpoints(out / "kl-shuffled-seed0" / "checkpoints", 2).latest() is not None
