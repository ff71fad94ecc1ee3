import pytest
import torch

from .processes import Program

# A whole run in seconds: every part runs, nothing is learned.
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
    """An empty current folder and one thread, so that runs land apart and repeat bit for bit."""
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
    """A process of its own in an empty folder, one of those in `processes.py`; gives what it printed."""
    return lambda *arguments, **options: Program(*arguments, **options).completed()


@pytest.fixture
def without_pictures(monkeypatch):
    """They and the report take most of the seconds of a tiny run."""
    monkeypatch.setattr("fdistill.report.build", lambda *_: None)
    monkeypatch.setattr("fdistill.plots.render", lambda *_: None)


@pytest.fixture
def tiny_gmm():
    return list(TINY_GMM)
