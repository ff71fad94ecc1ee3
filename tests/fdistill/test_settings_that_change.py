"""What may change on --resume, and what a failed start leaves: the command line in real folders."""

import json
import shutil

import pytest
import yaml

from fdistill import cli
from tests.fdistill.conftest import TINY_GMM

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, to be copied."""
    out = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", "gmm", "name=g", *TINY_GMM, f"out={out}"]) == 0
    return out / "g"


@pytest.fixture
def finished(trained, workplace):
    """A copy of the finished run in runs/g."""
    shutil.copytree(trained, workplace / "runs/g")
    return workplace / "runs/g"


def settings(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def figures(folder):
    return json.loads((folder / "metrics.json").read_text())


def weights(folder):
    return (folder / "student/student.safetensors").read_bytes()


def test_a_finished_run_is_measured_anew_without_training(tiny_gmm, fdistill, finished):
    folder = finished
    first, student, log = figures(folder), weights(folder), (folder / "log.jsonl").read_text()
    done = fdistill("train", "gmm", "name=g", *tiny_gmm, "eval.samples=500")
    assert done.returncode == 2 and figures(folder) == first
    told = "runs/g was measured with other settings (eval.samples: 400 -> 500); pass --resume to measure it anew"
    assert done.stderr == f"fdistill: {told}\n"
    done = fdistill("train", "gmm", "name=g", *tiny_gmm, "eval.samples=500", "--resume", pictures=True)
    assert done.returncode == 0, done.stderr
    second = figures(folder)
    assert (first["samples"], second["samples"]) == (400, 500) and first["student"] != second["student"]
    assert first["config"] != second["config"] and first["training"] == second["training"]
    assert json.loads((folder / "metrics.previous.json").read_text()) == first
    assert settings(folder)["eval"]["samples"] == 500 and "500 samples for every figure" in report(folder)
    assert weights(folder) == student and (folder / "log.jsonl").read_text() == log
    done = fdistill("train", "gmm", "name=g", *tiny_gmm, "eval.samples=500")
    assert done.returncode == 0 and "finished already" in done.stdout and figures(folder) == second


def report(folder):
    return (folder / "report.html").read_text()


def stopped(workplace, tiny_gmm, monkeypatch):
    """A run in runs/g, killed right after its checkpoint of iteration 4."""
    from fdistill.trainer import Distiller

    save = Distiller.save

    def dying(self):
        save(self)
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Distiller, "save", dying)
        cli.main(["train", "gmm", "name=g", *tiny_gmm])
    return workplace / "runs/g"


def test_an_unfinished_run_goes_on_with_other_evaluation_and_presentation(tiny_gmm, workplace, monkeypatch, capsys):
    folder = stopped(workplace, tiny_gmm, monkeypatch)
    changed = ["eval.samples=500", "eval.snapshots=0", "log_every=5", "checkpoint_every=6", "threads=1"]
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, *changed]) == 2
    assert "pass --resume to go on" in capsys.readouterr().err
    pictures = sorted((folder / "progress").iterdir())
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, *changed, "--resume"]) == 0
    assert "going on from step-00000004" in capsys.readouterr().out
    assert figures(folder)["samples"] == 500 and settings(folder)["log_every"] == 5
    assert sorted((folder / "progress").iterdir()) == pictures
    assert cli.main(["train", "gmm", "name=whole", *tiny_gmm, *changed]) == 0
    assert weights(folder) == weights(workplace / "runs/whole")


def test_an_unfinished_run_keeps_its_training(tiny_gmm, workplace, monkeypatch, capsys):
    folder = stopped(workplace, tiny_gmm, monkeypatch)
    before = (folder / "config.yaml").read_text()
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, "student.lr=1", "eval.samples=500", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "other settings (student.lr: 0.001 -> 1.0); pass --fresh" in error
    assert (folder / "config.yaml").read_text() == before


def test_a_finished_run_without_its_last_checkpoint_keeps_its_figures(tiny_gmm, finished, capsys):
    folder, first = finished, figures(finished)
    shutil.rmtree(folder / "checkpoints")
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, "eval.samples=500", "--resume"]) == 2
    assert "it has no checkpoint of its last iteration, 12" in capsys.readouterr().err
    assert figures(folder) == first and settings(folder)["eval"]["samples"] == 400


@pytest.mark.parametrize("stop", ["evaluate", "export"])
def test_stopped_while_measured_anew(stop, tiny_gmm, finished, monkeypatch):
    """Figures of the old settings never pass for figures of the new ones."""
    from fdistill.gmm import GmmTask

    def dying(*_):
        raise MemoryError

    anew = ["train", "gmm", "name=g", *tiny_gmm, "eval.samples=500", "--resume"]
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(GmmTask, stop, dying)
        cli.main(anew)
    assert not (finished / "metrics.json").exists()
    assert cli.main(anew) == 0 and figures(finished)["samples"] == 500


def test_a_start_that_failed_is_corrected(tiny_gmm, workplace, monkeypatch, capsys):
    """Nothing was trained, so other settings may take the folder."""
    from fdistill.gmm import GmmTask

    def dying(*_):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(GmmTask, "__init__", dying)
        cli.main(["train", "gmm", "name=g", *tiny_gmm])
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, "student.lr=0.5"]) == 0
    assert settings(workplace / "runs/g")["student"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["student.lr=-1"], "student.lr: expected a number > 0 (a role that no phase names is not trained), got -1"),
        (["eval.samples=1"], "eval.samples: expected an integer in [100, 1000000], got 1"),
        (["device=cuda:97"], "device: cuda:97 does not work here: "),
        (["student={lr: 1, lr: 2}"], "the key 'lr' stands twice"),
        (["phases=[[fake],[fake],[student]]", "steps=2"], "steps: expected at least 3"),
    ],
)
def test_a_start_that_is_refused_writes_nothing(overrides, told, tiny_gmm, fdistill, workplace):
    done = fdistill("train", "gmm", *tiny_gmm, *overrides)
    assert done.returncode == 2 and done.stdout == "" and told in done.stderr
    assert done.stderr.startswith("fdistill: ") and done.stderr.count("\n") == 1
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"preset: gmm  # gr\xfcn\n", "mine.yaml: expected text in UTF-8, got byte 0xfc at position 17"),
        (b"preset: mine.yaml\n", "preset: expected no cycle of files, got mine.yaml -> mine.yaml"),
        (b"", "mine.yaml: expected a mapping of settings, got an empty file"),
        (b"preset: gmm\nseed: 1\nstudent: {lr: 1}\nseed: 2\n",
         "mine.yaml: not valid YAML: the key 'seed' stands twice, in lines 2 and 4"),
    ],
)  # fmt: skip
def test_a_file_that_is_refused(content, told, fdistill, workplace):
    (workplace / "mine.yaml").write_bytes(content)
    done = fdistill("train", "mine.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"fdistill: {told}\n")
    assert [path.name for path in workplace.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("metrics.json", b"", "runs/g/metrics.json: expected a JSON object, got an empty file; delete this file, then"),
        ("metrics.json", b'{"student"', "metrics.json: expected a JSON object, got Expecting ':'"),
        ("metrics.json", b"[1]", "metrics.json: expected a JSON object, got list; delete"),
        ("metrics.json", b"{}", "metrics.json: expected the figures of a student, got none; delete"),
        ("metrics.json", b"\xff", "metrics.json: expected text in UTF-8, got byte 0xff at position 0; delete"),
        ("config.yaml", b"", "runs/g/config.yaml: expected a mapping of settings, got an empty file; the settings of"),
        ("config.yaml", b"a: [", "config.yaml: not valid YAML: "),
        ("config.yaml", b"\xff", "config.yaml: expected text in UTF-8, got byte 0xff"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(name, content, told, tiny_gmm, finished, capsys):
    (finished / name).write_bytes(content)
    for options in ([], ["--resume"]):
        capsys.readouterr()
        assert cli.main(["train", "gmm", "name=g", *tiny_gmm, *options]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1


def test_figures_that_are_gone_are_measured_again(tiny_gmm, finished):
    first = figures(finished)
    (finished / "metrics.json").unlink()
    assert cli.main(["train", "gmm", "name=g", *tiny_gmm, "--resume"]) == 0
    assert figures(finished)["student"] == first["student"]


def test_a_student_of_another_machine_is_drawn_here(finished):
    there = {**settings(finished), "device": "cuda:97"}
    (finished / "config.yaml").write_text(yaml.safe_dump(there))
    assert cli.main(["sample", "runs/g", "-n", "5", "-o", "five.png"]) == 0


def test_a_student_measured_with_what_is_refused_today_is_drawn_and_exported(finished):
    then = settings(finished)
    then["eval"] |= {"samples": 50, "of_an_earlier_version": 1}
    (finished / "config.yaml").write_text(yaml.safe_dump(then))
    assert cli.main(["sample", "runs/g", "-n", "5", "-o", "five.png"]) == 0
    assert cli.main(["export", "runs/g", "student"]) == 0
