"""The trainer never deletes or overwrites data that it did not make, however the options are spelled."""

import json
import shutil

import pytest

from fdistill import cli, plots, report
from fdistill.folder import MARK

FRESH = ["--fresh"]
TOO_LONG = "x" * 300


def draw_nothing(patch):
    """Switch off pictures: they take most of the seconds of a tiny run."""
    patch.setattr(report, "build", lambda *_: None)
    patch.setattr(plots, "render", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        assert cli.main(["train", "gmm", "name=g", f"out={out}", *SETTINGS]) == 0
    return out / "g"


SETTINGS = ["steps=4", "batch=16", "checkpoint_every=2", "eval.snapshots=1", "eval.samples=400", "width=8",
            "critic_width=8"]  # fmt: skip


PRECIOUS = """thesis.txt thesis.png points.npy
data/config.yaml data/metrics.json data/log.jsonl data/step-00000000.png data/deep/thesis.txt
data/checkpoints/step-00000002/student.safetensors
runs/config.yaml runs/thesis.txt runs/file runs/c/thesis.txt runs/gmm-compare/rkl-seed0/thesis.txt
runs/g/notes.txt runs/g/config.yaml.orig runs/g/student/notes.txt runs/g/student/best.safetensors runs/g/progress/a.png
runs/g/.student.partial-0/notes.txt runs/g/checkpoints/notes.txt runs/g/checkpoints/.partial-7/notes.txt
runs/g/checkpoints/step-00000002/notes.txt runs/g/checkpoints/step-00000002/best.safetensors
runs/g/checkpoints/step-00000004-best/student.safetensors runs/g/checkpoints/.step-00000002.partial-0/notes.txt
"""


@pytest.fixture
def world(workplace, finished):
    """Runs, with precious files beside, inside and above them, and behind links."""
    runs, data = workplace / "runs", workplace / "data"
    for name in ("g", "a", "a/b", "c/d", "linked"):
        shutil.copytree(finished, runs / name)
    for path in PRECIOUS.split():
        (workplace / path).parent.mkdir(parents=True, exist_ok=True)
        (workplace / path).write_text(f"precious: {path}")
    (runs / "empty").mkdir()
    shutil.rmtree(runs / "linked/progress")
    for link, target in (("link", data), ("torun", "g"), ("loop", "loop"), ("dangling", "nowhere"),
                         ("linked/progress", data), ("g/elsewhere", data)):  # fmt: skip
        (runs / link).symlink_to(target)
    (workplace / "outlink").symlink_to("runs")
    return workplace


def contents(folder):
    return {
        path: path.readlink() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


# Arguments of train, the exit status, and the run that they name, if they are accepted.
SPELLINGS = [
    (["name=.", *FRESH], 2, None),
    (["name=./", *FRESH], 2, None),
    (["name=./.", "--resume"], 2, None),
    (["name=.", "out=new"], 2, None),
    (["name=..", *FRESH], 2, None),
    (["name=../data", *FRESH], 2, None),
    (["name=g/..", *FRESH], 2, None),
    (["name=g/../../data", *FRESH], 2, None),
    (["name=x/../g", *FRESH], 2, None),
    (["name={world}/data", *FRESH], 2, None),
    (["name=/{world}/runs/g", *FRESH], 2, None),
    (["name=/", *FRESH], 2, None),
    (["name=~/../data", *FRESH], 2, None),
    (["name=a", *FRESH], 2, None),
    (["name=a/b", *FRESH], 2, None),
    (["name=a", "--resume"], 2, None),
    (["name=c", *FRESH], 2, None),
    (["name=c/d", *FRESH], 0, "c/d"),
    (["name=c"], 2, None),
    (["name=g/checkpoints", *FRESH], 2, None),
    (["name=g/student", *FRESH], 2, None),
    (["name=g/checkpoints/step-00000002", *FRESH], 2, None),
    (["name=g/new"], 2, None),
    (["name=link", *FRESH], 2, None),
    (["name=link"], 2, None),
    (["name=link/deep", *FRESH], 2, None),
    (["name=link/new"], 2, None),
    (["name=torun", *FRESH], 2, None),
    (["name=torun", "--resume"], 2, None),
    (["name=torun/new", *FRESH], 2, None),
    (["name=loop", *FRESH], 2, None),
    (["name=dangling", *FRESH], 2, None),
    (["name=linked", *FRESH], 2, None),
    (["name=linked", "--resume"], 2, None),
    (["name=file", *FRESH], 2, None),
    (["name=file/x", *FRESH], 1, None),
    (["name=empty", *FRESH], 0, "empty"),
    (["name=data", "out=.", *FRESH], 2, None),
    (["name=data", "out={world}", *FRESH], 2, None),
    (["name=data", "out=runs/..", *FRESH], 2, None),
    (["name=data", "out="], 2, None),
    (["name=runs", "out=.", *FRESH], 2, None),
    (["name=checkpoints", "out=data", *FRESH], 2, None),
    (["name=deep", "out=runs/link", *FRESH], 2, None),
    (["name=x", "out=runs/g"], 2, None),
    (["name=x", "out=runs/torun"], 2, None),
    (["name=x", "out=runs/file"], 1, None),
    (["name=x", "out=thesis.txt/y"], 1, None),
    (["name=x", "out=/proc"], 1, None),
    (["name=g", "out=outlink", *FRESH], 0, "g"),
    (["name=g", "out=runs/a/../../runs", *FRESH], 0, "g"),
    (["name=g", *FRESH], 0, "g"),
    (["name=./g", *FRESH], 0, "g"),
    (["name=g//", *FRESH], 0, "g"),
    (["name=g", "seed=1"], 2, None),
    (["name=g", "seed=1", "--resume"], 2, None),
    (["name=g", "seed=1", *FRESH], 0, "g"),
    (['name="g\\n"', *FRESH], 2, None),
    (['name="g\\0"', *FRESH], 2, None),
    (['out="runs\\0"', *FRESH], 2, None),
    ([f"name={TOO_LONG}", *FRESH], 1, None),
    ([f"out={TOO_LONG}", "name=g", *FRESH], 1, None),
    (["name=gmm-compare", *FRESH], 2, None),
    (["name=gmm-compare/rkl-seed0", *FRESH], 2, None),
]


@pytest.mark.parametrize(("arguments", "status", "run"), SPELLINGS, ids=[" ".join(s[0])[:60] for s in SPELLINGS])
def test_train_deletes_only_what_a_run_made(arguments, status, run, world, finished, capsys, monkeypatch):
    draw_nothing(monkeypatch)
    made = {world / "runs" / (run or "g") / path.relative_to(finished) for path in contents(finished)}
    before = contents(world)
    arguments = [argument.replace("{world}", str(world)) for argument in arguments]
    assert cli.main(["train", "gmm", *SETTINGS, *arguments]) == status, capsys.readouterr().err
    after = contents(world)
    if run is None:
        error = capsys.readouterr().err
        assert after == before
        assert error.startswith("fdistill: ") and error.count("\n") == 1
    else:
        assert {path: text for path, text in before.items() if path not in made}.items() <= after.items()
        assert (world / "runs" / run / "metrics.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "gmm", "--divergences", "rkl", "--seeds", "1", *SETTINGS],
        ["sample", "runs/g", "-o", "thesis.txt"],
        ["sample", "runs/g", "-o", "thesis.png"],
        ["sample", "runs/g", "-o", "thesis"],
        ["sample", "runs/g", "-o", "points.png"],  # points.npy lies beside
        ["sample", "runs/g", "-o", "data"],
        ["sample", "runs/g", "-o", "runs/dangling"],
        ["export", "runs/g", "data"],
        ["export", "runs/g", "thesis.txt"],
        ["export", "runs/g", "runs/dangling"],
        ["export", "runs/g", "."],
    ],
    ids=" ".join,
)
def test_the_other_commands_overwrite_nothing(arguments, world, capsys):
    (world / "runs/dangling.png").symlink_to("nowhere.png")
    before = contents(world)
    assert cli.main(arguments) == 2
    assert contents(world) == before
    error = capsys.readouterr().err
    assert error.startswith("fdistill: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["name=a", "--fresh"], "runs/a holds another run, runs/a/b"),
        (["name=a/b", "--fresh"], "lies in another run"),
        (["name=torun", "--fresh"], "is reached by a link and lies at {world}/runs/g"),
        (["name=linked", "--fresh"], "runs/linked/progress is a link to {world}/data"),
        (["name=gmm-compare/rkl-seed0", "--fresh"], f"has no {MARK}"),
        ([f"name={TOO_LONG}"], "File name too long"),
        (["name=x", "out=runs/file"], "runs/file"),
        (['name="a\\tb"'], "name: expected a folder below runs"),
    ],
)
def test_a_refusal_names_what_is_in_the_way(arguments, told, world, capsys):
    assert cli.main(["train", "gmm", *SETTINGS, *arguments]) in (1, 2)
    assert told.replace("{world}", str(world)) in capsys.readouterr().err


def test_what_stays_is_named(world, capsys, monkeypatch):
    draw_nothing(monkeypatch)
    assert cli.main(["train", "gmm", "name=g", *SETTINGS, "--fresh"]) == 0
    assert "notes.txt" in capsys.readouterr().out
    assert (world / "runs/g/student/best.safetensors").exists()


def test_a_mark_of_another_format_is_refused(world, capsys):
    (world / "runs/g" / MARK).write_text(json.dumps({"format": 99}))
    assert cli.main(["train", "gmm", "name=g", *SETTINGS, "--fresh"]) == 2
    assert "format 99" in capsys.readouterr().err
