import pytest
import torch

from .processes import Program

# Settings for a whole run in seconds: every part runs, nothing is learned.
TINY_TEACHER = ["teacher.steps=6", "teacher.batch=8", "teacher.checkpoint_every=3"]
TINY_DIGITS = [*TINY_TEACHER, "steps=12", "batch=8", "log_every=2", "checkpoint_every=4", "eval.snapshots=3",
               "eval.samples=120", "eval.teacher_steps=2", "eval.bootstraps=1"]  # fmt: skip
TINY_GMM = ["steps=12", "batch=16", "log_every=2", "checkpoint_every=4", "eval.snapshots=3", "eval.samples=400",
            "width=8", "critic_width=8"]  # fmt: skip


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty current folder and one thread, so that runs are apart and repeat bit for bit."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_digits(cache):
    return [*TINY_DIGITS, f"cache={cache}"]


@pytest.fixture
def fdistill(workplace):
    """Runs fdistill in a process of its own (`processes.py`) in an empty folder, and gives what it printed."""
    return lambda *arguments, **options: Program(*arguments, **options).completed()


@pytest.fixture
def without_pictures(monkeypatch):
    """Leave out pictures and the report, which take most of the seconds of a tiny run."""
    monkeypatch.setattr("fdistill.report.build", lambda *_: None)
    monkeypatch.setattr("fdistill.plots.render", lambda *_: None)


@pytest.fixture
def tiny_gmm():
    return list(TINY_GMM)
