"""Runs as people meet them: killed processes, damaged checkpoints, two processes in one folder, full disks."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import TINY_DIGITS, TINY_GMM
from .processes import Program
from .test_checkpoint import DAMAGE, cut, flip

TRAIN = ("train", "gmm", *TINY_GMM, "name=r")


def fdistill(*arguments, **options):
    return Program(*arguments, **options).result()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A finished run, made under umask 022."""
    out = tmp_path_factory.mktemp("unbroken")
    assert fdistill(*TRAIN, f"out={out}")[0] == 0
    return out / "r"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed in iteration 11: checkpoints of steps 4 and 8, a log up to step 10."""
    out = tmp_path_factory.mktemp("killed")
    assert fdistill(*TRAIN, f"out={out}", lines="at(10, kill)")[0] == -signal.SIGKILL
    assert names(out / "r/checkpoints") == ["step-00000004", "step-00000008"]
    assert log(out / "r")[-1]["step"] == 10
    return out / "r"


@pytest.fixture
def broken(killed, workplace):
    return shutil.copytree(killed, workplace / "runs" / "r")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_run(folder, unbroken):
    """Equal bit for bit: the last networks, the student, its figures, the log without its times."""
    for path in [
        *(unbroken / "checkpoints/step-00000012").glob("*.safetensors"),
        *(unbroken / "student").glob("*.saf*"),
    ]:
        assert (folder / path.relative_to(unbroken)).read_bytes() == path.read_bytes(), path
    first, second = (json.loads((f / "metrics.json").read_text())["student"] for f in (folder, unbroken))
    assert first == second
    first, second = ([{**row, "seconds": 0} for row in log(f)] for f in (folder, unbroken))
    assert first == second


@pytest.mark.parametrize("kind", ["gone", "bit", "missing"])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(kind, broken, unbroken):
    do, told = DAMAGE[kind]
    do(broken / "checkpoints/step-00000008")
    (broken / "checkpoints/latest").write_text("step-00000099")  # as an older version left it; nothing reads it
    status, out, err = fdistill(*TRAIN, "--resume")
    assert status == 0
    assert "going on from step-00000004" in out
    assert "passed over" in err[0] and "step-00000008" in err[0] and told in err[0] and "step-00000004" in err[1]
    assert_same_run(broken, unbroken)
    assert [name for name in names(broken / "checkpoints") if name != "latest"] == ["step-00000008", "step-00000012"]


def lose_all(folder):
    shutil.rmtree(folder / "checkpoints")


def lose_all_and_their_trace(folder):
    lose_all(folder)
    (folder / ".saved").unlink()


def damage_all(folder):
    for step in (folder / "checkpoints").iterdir():
        flip(step / "student.safetensors")


@pytest.mark.parametrize("lose", [lose_all, lose_all_and_their_trace, damage_all])
def test_without_a_whole_checkpoint_nothing_starts_over_by_itself(lose, broken):
    lose(broken)
    before = log(broken)
    status, _, err = fdistill(*TRAIN, "--resume")
    assert status == 2
    assert len(err) == 1 and "--fresh" in err[0] and "checkpoint" in err[0]
    assert log(broken) == before


def test_killed_before_the_first_checkpoint_nothing_is_lost(workplace, unbroken):
    assert fdistill(*TRAIN, lines="at(3, kill)")[0] == -signal.SIGKILL
    status, out, _ = fdistill(*TRAIN, "--resume")
    assert status == 0 and "starting" in out
    assert_same_run(workplace / "runs/r", unbroken)


# The parts of a save, in their order: seal the files with hashes, rename, write the trace, remove what is not kept.
MOMENTS = ["seal", "install", "write_atomically", "remove"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_the_middle_of_a_save(moment, workplace, unbroken):
    lines = f"""
from fdistill import checkpoint
whole = checkpoint.{moment}
def cut_off(*arguments):
    cut_off.calls += 1
    if cut_off.calls == {4 if moment == "remove" else 2}:
        kill()
    return whole(*arguments)
cut_off.calls = 0
checkpoint.{moment} = cut_off
"""
    folder = workplace / "runs/r"
    assert fdistill(*TRAIN, lines=lines)[0] == -signal.SIGKILL
    assert any(".partial-" in name for name in names(folder / "checkpoints")) == (moment in ("seal", "install"))
    status, out, _ = fdistill(*TRAIN, "--resume")
    assert status == 0 and "going on from step-000000" in out
    assert_same_run(folder, unbroken)
    assert names(folder / "checkpoints")[-2:] == ["step-00000008", "step-00000012"]


def wait_for(condition, process):
    for _ in range(600):
        if condition():
            return
        assert process.running(), process.errors()
        time.sleep(0.1)
    raise TimeoutError(process.errors())


def test_a_second_process_is_refused_and_names_the_first(workplace, unbroken):
    first = Program(*TRAIN, lines="import time; at(8, lambda: (open('there', 'w'), time.sleep(600)))")
    try:
        wait_for(lambda: Path("there").exists(), first)
        status, _, err = fdistill(*TRAIN, "--resume")
        assert status == 2
        assert re.fullmatch(
            rf"fdistill: runs/r is being trained by process {first.pid} on host \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d",
            err[0],
        )
        assert fdistill(*TRAIN, "--fresh")[0] == 2
    finally:
        first.kill()  # the kernel frees the lock
    assert fdistill(*TRAIN, "--resume")[0] == 0
    assert_same_run(workplace / "runs/r", unbroken)


def test_a_second_comparison_is_refused(workplace):
    compare = ["compare", "gmm", "--divergences", "kl", "--seeds", "1", *TINY_GMM]
    first = Program(*compare, lines="import time; at(8, lambda: (open('there', 'w'), time.sleep(600)))")
    try:
        wait_for(lambda: Path("there").exists(), first)
        status, _, err = fdistill(*compare)
        assert status == 2 and err[0].startswith(f"fdistill: runs/gmm-compare is in use by process {first.pid} ")
    finally:
        first.kill()
    assert fdistill(*compare)[0] == 0


def test_a_second_process_waits_for_the_teacher(workplace):
    load = """
from fdistill import cli, config, digits
cli.main = lambda arguments: digits.load_or_train_teacher(config.load(*arguments)) and 0
"""
    pause = """
import time
from fdistill.roles import Role
update = Role.update
def slow(self, loss):
    if self.updates == 3:
        open("there", "w")
        time.sleep(600)
    return update(self, loss)
Role.update = slow
"""
    settings = [*TINY_DIGITS, "cache=cache", "teacher.steps=4", "teacher.checkpoint_every=2"]
    first = Program("digits", settings, lines=load + pause)
    try:
        wait_for(lambda: Path("there").exists(), first)
        second = Program("digits", settings, lines=load)
        wait_for(lambda: "waiting" in second.errors(), second)
        assert f"is being made by process {first.pid} on host" in second.errors()
    finally:
        first.kill()
    assert second.result()[0] == 0
    assert "| 2/4" in second.errors()  # from the first one's checkpoint


def test_files_have_the_modes_of_the_umask(unbroken, workplace):
    def modes(folder):
        return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}

    assert modes(unbroken) == {0o644}
    shutil.copytree(unbroken, workplace / "r")
    (workplace / "r/student/student.safetensors").chmod(0o600)  # as older versions left it
    assert fdistill("export", "r", "mine/deep", umask=0o027)[:2] == (0, "mine/deep\n")
    assert modes(workplace / "mine/deep") == {0o640}
    assert names(workplace / "mine") == ["deep"]


@pytest.mark.parametrize(("given", "written"), [("xx", "xx.png"), ("deep/er/x.PNG", "deep/er/x.PNG"), ("a.b", None)])
def test_sample_writes_what_it_says(given, written, unbroken, workplace):
    status, out, err = fdistill("sample", str(unbroken), "-n", "9", "-o", given, pictures=True)
    if written:
        assert (status, out) == (0, f"{written}\n")
        assert (workplace / written).read_bytes().startswith(b"\x89PNG")
    else:
        assert status == 2 and "ends in .png, got a.b" in err[0]
        assert names(workplace) == []


@pytest.mark.parametrize("option", [("-n", "0"), ("-n", "99999999999"), ("--seed", "-1"), ("--seed", "9" * 30)])
def test_sample_of_impossible_numbers(option, unbroken, workplace):
    status, _, err = fdistill("sample", str(unbroken), *option)
    assert status == 2 and len(err) == 1 and "expected an integer in [" in err[0]
    assert names(workplace) == []


@pytest.mark.parametrize("way", ["report.html/", "progress", ".fdistill-run/"])
def test_what_is_in_the_way_is_met_before_the_training(way, unbroken, workplace):
    folder = shutil.copytree(unbroken, workplace / "runs/r")
    path = folder / way.rstrip("/")
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir() if way.endswith("/") else path.write_text("precious")
    before = names(folder)
    status, _, err = fdistill(*TRAIN, "--fresh")
    assert status == 2 and len(err) == 1 and path.name in err[0] and "move it away" in err[0]
    assert names(folder) == before


def test_no_export_into_a_run(unbroken, workplace):
    folder = shutil.copytree(unbroken, workplace / "runs/r")
    before = names(folder / "student")
    status, _, err = fdistill("export", "runs/r", "runs/r/student/in")
    assert status == 2 and "lies in a run" in err[0] and names(folder / "student") == before


def test_nobody_reads(unbroken, workplace):
    """The reader of the output has gone, as in `fdistill sample run | head -0`."""
    command = [sys.executable, "-m", "fdistill", "sample", str(unbroken), "-n", "9", "-o", "x"]
    sampler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    sampler.stdout.close()
    assert sampler.stderr.read() == "" and sampler.wait() == 141


def test_a_full_disk_is_one_sentence(workplace, unbroken):
    lines = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"  # state.pt is larger
    status, _, err = fdistill(*TRAIN, lines=lines)
    assert status == 1
    assert len(err) == 1 and "state.pt: File too large" in err[0]
    assert fdistill(*TRAIN, "--resume")[0] == 0
    assert_same_run(workplace / "runs/r", unbroken)


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml"])
def test_a_run_with_an_empty_file_can_be_replaced(name, unbroken, workplace):
    folder = shutil.copytree(unbroken, workplace / "runs/r")
    (folder / name).write_text("")
    status, _, err = fdistill(*TRAIN)
    assert status == 2 and len(err) == 1 and name in err[0]
    assert fdistill(*TRAIN, "--fresh")[0] == 0
    assert_same_run(folder, unbroken)


def test_a_damaged_student_is_named(unbroken, workplace):
    folder = shutil.copytree(unbroken, workplace / "runs/r")
    cut(folder / "student/student.safetensors")
    for command in (["sample", "runs/r"], ["export", "runs/r", "mine"]):
        status, _, err = fdistill(*command)
        assert status == 2 and "student.safetensors does not match its hash" in err[0]
    settings = folder / "config.yaml"
    kept = settings.read_text()
    shutil.copytree(unbroken / "student", folder / "student", dirs_exist_ok=True)
    settings.write_text(kept.replace("\nwidth: 8", "\nwidth: 9"))
    status, _, err = fdistill("sample", "runs/r")
    assert status == 2 and len(err) == 1 and "student.safetensors is damaged or not of these settings" in err[0]
    settings.write_text(kept)
    cut(folder / "student/student.safetensors")
    (folder / "metrics.json").unlink()
    assert fdistill(*TRAIN, "--resume")[0] == 0
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize(
    "lines",
    [
        "def broken(*_): raise OSError(5, 'no such teacher')\nfrom fdistill import gmm; gmm.GmmTask.__init__ = broken",
        "at(1, kill)",
    ],
)
def test_a_failed_start_leaves_the_folder_to_a_corrected_one(lines, workplace):
    assert fdistill(*TRAIN, lines=lines)[0] != 0
    assert fdistill(*TRAIN, "seed=1")[0] == 0
    assert json.loads((workplace / "runs/r/metrics.json").read_text())["seed"] == 1


def test_a_failed_start_leaves_the_run_that_it_would_replace(unbroken, workplace):
    folder = shutil.copytree(unbroken, workplace / "runs/r")
    lines = (
        "def broken(*_): raise OSError(5, 'no such teacher')\nfrom fdistill import gmm; gmm.GmmTask.__init__ = broken"
    )
    assert fdistill(*TRAIN, "seed=1", "--fresh", lines=lines)[0] == 1
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("phase", ["evaluate", "export", "snapshot", "__init__"])
def test_stopped_in_any_phase(phase, number, workplace):
    lines = f"""
from fdistill import gmm
whole = gmm.GmmTask.{phase}
def interrupted(*arguments):
    kill(signal.{number})
    return whole(*arguments)
gmm.GmmTask.{phase} = interrupted
"""
    status, _, err = fdistill(*TRAIN, lines=lines)
    assert status == 130
    assert "Go on with: fdistill train gmm" in err[0] and err[0].endswith("--resume")
    assert fdistill(*TRAIN, "--resume")[0] == 0


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_python_loses_is_remembered(number, workplace):
    """Python prints and forgets an interrupt that a callback raises, such as one of importlib's weak references."""
    lines = f"""
from fdistill import gmm
whole = gmm.GmmTask.__init__
def losing(*arguments):
    try: kill(signal.{number})
    except KeyboardInterrupt: pass
    whole(*arguments)
gmm.GmmTask.__init__ = losing
"""
    for arguments in (TRAIN, ("compare", "gmm", "--divergences", "kl,rkl", "--seeds", "1", *TINY_GMM)):
        status, _, err = fdistill(*arguments, lines=lines)
        assert status == 130 and "stopped at once. Go on with: " in err[0]
    assert not list(workplace.glob("runs/**/metrics.json"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_the_caller_ignores_stays_ignored(number, workplace):
    lines = f"signal.signal({number}, signal.SIG_IGN); at(5, lambda: kill({number}))"
    assert fdistill(*TRAIN, lines=lines)[0] == 0


def test_a_signal_after_the_end_changes_nothing(workplace):
    """Python takes a second to end torch: a signal may come then."""
    (workplace / "sitecustomize.py").write_text(
        "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))"
    )
    path = os.pathsep.join([str(workplace), *sys.path])
    command = [sys.executable, "-m", "fdistill", "train", "gmm", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["numpy.exceptions", "torch._C", "fdkernels.backends"])
def test_stopped_while_modules_load(module, number, workplace):
    """An interrupt inside numpy's import, which torch survives, once ended in an ImportError's traceback."""
    (workplace / "sitecustomize.py").write_text(f"""
import os, signal, sys
class Stopping:
    def find_spec(name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.{number})
sys.meta_path.insert(0, Stopping)
""")
    path = os.pathsep.join([str(workplace), *sys.path])
    command = [sys.executable, "-m", "fdistill", "train", "gmm", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
