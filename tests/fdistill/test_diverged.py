"""A student with numbers that are no longer finite: a finished run that says so, never a traceback or NaN in JSON."""

import json

import pytest
import torch

from fdistill import cli
from fdistill.config import load
from fdistill.trainer import Distiller
from tests.fdistill.test_trainer import interrupt_at, start


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def strict(path):
    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_diverged_student_ends_in_a_report(tiny_gmm, fdistill, workplace):
    done = fdistill("train", "gmm", "name=g", *tiny_gmm, "student.lr=1e30", pictures=True)
    assert done.returncode == cli.EXIT_DIVERGED == 1, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    result = strict(workplace / "runs/g/metrics.json")
    assert result["diverged"] is True and result["diverged_at"] == 2 and result["skipped_updates"] > 9
    assert set(result["student"].values()) == {None} and result["floor"]["on_mode"] > 0.9
    told = f"diverged: not finite since iteration 2, {result['skipped_updates']} updates skipped"
    assert told in done.stdout and "–" in done.stdout
    assert "the student diverged: not finite since iteration 2" in done.stderr
    page = (workplace / "runs/g/report.html").read_text()
    assert f"The student {told}." in page and "nan" not in page.split("<details")[0].lower()
    again = fdistill("train", "gmm", "name=g", *tiny_gmm, "student.lr=1e30")
    assert again.returncode == 1 and "finished already" in again.stdout and told in again.stdout
    assert fdistill("sample", "runs/g", "-n", "5").returncode == 0


GAN = ["loss.gan_weight=0.3", "phases=[[fake,discriminator,student]]"]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("kind", [["gmm-sid"], ["gmm-sim"], ["gmm", "loss.divergence=rkl", "loss.gan=relativistic"]])
def test_a_student_diverges_under_every_loss(kind, tiny_gmm, workplace, capsys):
    assert cli.main(["train", *kind, "name=g", *tiny_gmm, "student.lr=1e30", *GAN]) == 1
    result = strict(workplace / "runs/g/metrics.json")
    assert result["diverged"] is True and result["diverged_role"] == "student" and result["skipped_updates"] > 9
    assert "the student diverged: not finite since iteration 2" in capsys.readouterr().err


def test_a_diverged_student_of_digits_leaves_the_teachers_figures(tiny_digits, workplace, capsys):
    assert cli.main(["train", "digits", "name=d", *tiny_digits, "student.lr=1e30"]) == 1
    result = strict(workplace / "runs/d/metrics.json")
    assert result["diverged"] and set(result["student"].values()) == {None}
    assert all(result[name]["frechet"] > 0 for name in ("teacher", "undistilled", "floor"))
    assert "diverged: not finite since iteration" in capsys.readouterr().out
    assert cli.main(["sample", "runs/d", "-n", "3"]) == 0


@pytest.mark.usefixtures("without_pictures")
def test_weights_that_end_with_the_last_update_are_seen(tiny_gmm, workplace, monkeypatch):
    train = Distiller.train

    def ending(self):
        train(self)
        next(self.average.network.parameters()).data.flatten()[0] = torch.inf

    monkeypatch.setattr(Distiller, "train", ending)
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm]) == 1
    result = strict(workplace / "runs/g/metrics.json")
    assert result["diverged"] and result["diverged_at"] is None


@pytest.mark.parametrize(("role", "title"), [("fake", "fake score"), ("discriminator", "discriminator")])
def test_a_diverged_critic_is_no_success(role, title, tiny_gmm, workplace, capsys):
    """The student's samples stay finite, because all of them are dropped."""
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, f"{role}.lr=1e30"]) == cli.EXIT_DIVERGED
    result = strict(workplace / "runs/g/metrics.json")
    assert result["diverged"] and result["diverged_role"] == role and None not in result["student"].values()
    output = capsys.readouterr()
    assert f"the {title} diverged: not finite since iteration" in output.out
    assert f"a lower {role}.lr may help" in output.err
    assert f"The {title} diverged" in (workplace / "runs/g/report.html").read_text()


def test_where_it_diverged_survives_an_interrupt(tiny_gmm, monkeypatch, workplace):
    from fdistill.task import Interrupted

    overrides = [*tiny_gmm, "student.lr=1e30", "name=g"]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 7)
        start("gmm", overrides).train()
    resumed = start("gmm", overrides)
    assert resumed.restore() and int(resumed.diverged_at) == 2


@pytest.mark.usefixtures("without_pictures")
def test_one_bad_batch_is_no_divergence(tiny_gmm, workplace, monkeypatch):
    noise = type(start("gmm", [*tiny_gmm, "name=other"]).task).noise
    calls = []

    def once(self, count, generator):
        calls.append(count)
        z = noise(self, count, generator)
        return z * torch.nan if len(calls) == 4 else z

    monkeypatch.setattr("fdistill.gmm.GmmTask.noise", once)
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, "eval.snapshots=0"]) == 0
    result = strict(workplace / "runs/g/metrics.json")
    assert result["diverged"] is False and result["diverged_at"] == 2


@pytest.mark.usefixtures("without_pictures")
def test_a_teacher_that_diverged_is_not_kept(tiny_digits, tmp_path, workplace, capsys):
    overrides = [*tiny_digits, f"cache={tmp_path / 'own'}", "name=d", "teacher.lr=1e30"]
    for _ in range(2):
        assert cli.main(["train", "digits", *overrides]) == 2
        told = "fdistill: teacher.lr: the teacher diverged, expected a lower one than 1e+30"
        assert told in capsys.readouterr().err
    from fdistill.digits import load_or_train_teacher, teacher_folder

    assert not (teacher_folder(load("digits", overrides)) / "unet").exists()
    load_or_train_teacher(load("digits", overrides[:-1]))  # the failed teacher has not spoiled the folder


def test_without_pictures_and_floor(tiny_digits, workplace):
    few = ["eval.snapshots=0", "eval.bootstraps=0", "eval.samples=6", "eval.teacher_steps=1", "student.clip=0"]
    assert cli.main(["train", "digits", "name=d", *tiny_digits, *few]) == 0
    page = (workplace / "runs/d/report.html").read_text()
    assert "frames" not in page and "Real against real" not in page.split("<ul>")[0]
    assert "floor" not in strict(workplace / "runs/d/metrics.json")


def test_the_low_ends_work_to_the_end(tiny_gmm, workplace, capsys):
    """The lowest settings work to the end, and a healthy run is not called diverged."""
    lowest = ["batch=2", "depth=0", "critic_depth=0", "width=1", "critic_width=1", "eval.samples=100", "loss.bins=1"]
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, *lowest, "ema=0", "loss.decay=0"]) == 0
    page = (workplace / "runs/g/report.html").read_text()
    result, output = strict(workplace / "runs/g/metrics.json"), capsys.readouterr()
    assert "show(frames.length - 1)" in page and 'role="alert"' not in page
    assert result["diverged"] is False and result["diverged_at"] is None
    assert "diverged" not in output.out + output.err
