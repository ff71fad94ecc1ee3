"""Every number of every config: which values are accepted and refused, and that each number has a range at all."""

import dataclasses
import typing
from pathlib import Path

import pytest

from fdistill import config, settings_table
from fdistill.config import ConfigError, load
from fdistill.ranges import Range

OPTIMIZER = {  # accepted, refused
    "lr": ("1e-30 1e-4 1 1e30", "0 -1 -1e-9"),
    "betas": ("[0,0] [0.9,0.999]", "[1,0] [0,1] [-0.1,0] [0,2] [0.9] [0.9,0.9,0.9]"),
    "weight_decay": ("0 null 0.01 500", "-1 -0.01"),
    "clip": ("0 null 1e-9 10 1e9", "-1 -0.5"),
    "warmup": ("0 null 1 10000", "-1"),
}
SEED = ("0 1 4294967295", "-1 4294967296 18446744073709551616")
AT_LEAST_1 = ("1 7 100000", "0 -1")
AVERAGE = ("0 0.5 0.9999", "1 -0.1 1.5")
SIGMA = ("0.001 0.5 10000", "0 -1 1e-4 2e4")
EVERY = {
    **{f"{role}.{key}": edges for role in ("student", "fake", "discriminator") for key, edges in OPTIMIZER.items()},
    "seed": SEED,
    "steps": ("4 100000", "0 -1"),
    "batch": ("2 7 100000", "1 0 -1"),
    "log_every": AT_LEAST_1,
    "checkpoint_every": AT_LEAST_1,
    "keep": AT_LEAST_1,
    "threads": ("0 null 1 1024", "-1 1025"),
    "ema": AVERAGE,
    "sigma_max": SIGMA,
    "sigma_log_mean": ("-10 0 10", "-11 11"),
    "sigma_log_std": ("0.1 5", "0 -1 6"),
    "loss.ratio_range": ("[0.5,2]", "[0,1] [-1,1] [2,1] [1,1] [1]"),
    "loss.bins": ("1 1000", "0 -1 1001"),
    "loss.decay": AVERAGE,
    "loss.alpha": ("-10 0 1 1.2 10", "-11 11"),
    "loss.c": ("1e-3 100", "-1 -0.1"),
    "loss.sigma_power": ("-10 0 2 10", "-11 11"),
    "loss.gan_weight": ("0 null 0.1 100", "-1 -0.1"),
    "eval.snapshots": ("0 null 1 50", "-1"),
    "eval.teacher_steps": AT_LEAST_1,
    "eval.neighbours": ("1 1796", "0 -1"),
    "eval.bootstraps": ("0 null 1 100", "-1"),
}
DIGITS = {
    "eval.samples": ("6 20000", "1 0 -1"),
    "head_width": ("8 64", "0 -8 7 12"),
    "teacher.channels": ("[8] [16,32] [8,8,8,8]", "[] [0] [-8] [12] [16,33] [8,8,8,8,8] 16"),
    "teacher.layers_per_block": AT_LEAST_1,
    "teacher.sigma_data": ("0.001 0.5 1000", "0 -1 1e-4 1e4"),
    "teacher.steps": AT_LEAST_1,
    "teacher.batch": AT_LEAST_1,
    "teacher.lr": ("1e-30 1", "0 -1"),
    "teacher.ema": AVERAGE,
    "teacher.seed": SEED,
    "teacher.checkpoint_every": AT_LEAST_1,
    "teacher_sigma_min": ("0.001 79", "0 -1 80 81"),
    "teacher_sigma_max": ("0.02 10000", "0 -1 1e5"),
}
GMM = {
    "eval.samples": ("100 20000", "99 1 0 -1"),
    "mixture.spacing": ("0.1 1000", "0 -1 1001"),
    "mixture.std": ("0.01 1000", "0 -1 1001"),
    "mixture.weights": ("[1,1,1,1,1,1,1,1,9]", "[1,1,1,1,1,1,1,1,0] [1,1,1,1,1,1,1,1,-1] [1,1] []"),
    "noise_dimension": ("2 16", "1 0 -1"),
    "width": AT_LEAST_1,
    "depth": ("0 4", "-1"),
    "critic_width": AT_LEAST_1,
    "critic_depth": ("0 4", "-1"),
}
TABLE = {"digits": EVERY | DIGITS, "gmm": EVERY | GMM}
ROWS = [(task, key, *edges) for task, table in TABLE.items() for key, edges in table.items()]


def numbers(kind):
    """The ranges of the numbers in a type, with None for a number without a range."""
    args = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Annotated:
        return [args[1]] if args[0] in (int, float) else numbers(args[0])
    return [None] if kind in (int, float) else [found for inner in args for found in numbers(inner)]


@pytest.mark.parametrize("task", TABLE)
def test_every_number_has_a_range_and_a_row_in_this_table(task):
    found = {key: numbers(kind) for key, kind in config.kinds(config.TASKS[task]).items()}
    found = {key: ranges for key, ranges in found.items() if ranges}
    assert all(isinstance(limits, Range) for ranges in found.values() for limits in ranges), found
    assert found.keys() == TABLE[task].keys()


def test_a_number_without_a_range_is_seen():
    @dataclasses.dataclass
    class New(config.GmmConfig):
        forgotten: float = 1.0
        pair: tuple[float, config.Count] = (1.0, 1)

    kinds = config.kinds(New)
    assert numbers(kinds["forgotten"]) == [None] and numbers(kinds["pair"])[0] is None


@pytest.mark.parametrize(("task", "key", "taken", "refused"), ROWS)
def test_what_is_taken_and_what_is_refused(task, key, taken, refused):
    kinds = config.USED_BY.get(key.removeprefix("loss."), ("fdiv",))
    beside = [f"loss.kind={kinds[-1]}"]  # that has this setting
    for value in taken.split():
        load(task, [*beside, f"{key}={value}"])
    for value in refused.split():
        with pytest.raises(ConfigError) as error:
            load(task, [*beside, f"{key}={value}"])
        assert str(error.value).startswith(key) and ": expected " in str(error.value), value
        assert str(error.value).count("\n") == 0 and ", got " in str(error.value), value


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "nan", "1e999", "true", "[]", "{}", "'x'", "9" * 400])
@pytest.mark.parametrize(("task", "key"), [row[:2] for row in ROWS if row[0] == "gmm" or row[1] in DIGITS])
def test_what_is_no_number_is_refused_everywhere(task, key, value):
    default = config.as_dict(load(task))
    for part in key.split("."):
        default = default[part]
    for text in [f"[{', '.join([value, *map(str, default[1:])])}]"] if isinstance(default, list) else [value]:
        with pytest.raises(ConfigError, match=key):
            load(task, [f"{key}={text}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.clip=-1"], "student.clip: expected a number > 0, or 0 or null for no clipping, got -1"),
        (["student.clip=.nan"], "student.clip: expected a number > 0, or 0 or null for no clipping, got nan"),
        (["fake.lr=0"], "fake.lr: expected a number > 0 (a role that no phase names is not trained), got 0"),
        (["student.betas=[0.9,1]"], "student.betas[1]: expected a number in [0, 1), got 1"),
        (["seed=-1"], "seed: expected an integer in [0, 4294967295], got -1"),
        (["steps=0"], "steps: expected an integer >= 1, got 0"),
        (["steps=3000000000"], "steps: expected an integer in [1, 2147483647], got 3000000000"),
        (["head_width=12"], "head_width: expected a multiple of 8 >= 8, got 12"),
        (["threads=5000"],
         "threads: expected an integer in [1, 1024], or 0 or null for as many as torch takes, got 5000"),
        (["student.lr=1", "student.weight_decay=2"], "student.weight_decay: expected at most 1 / lr = 1, beyond which "
         "an update turns the weights' signs, got 2"),
        (["eval.samples=64", "eval.neighbours=100"],
         "eval.neighbours: expected less than 64, the number of eval.samples, got 100"),
        (["eval.samples=5000", "eval.neighbours=1797"],
         "eval.neighbours: expected less than 1797, the number of digits, got 1797"),
        (["teacher_sigma_min=3", "teacher_sigma_max=2"],
         "teacher_sigma_min: expected less than teacher_sigma_max = 2, got 3"),
        (["steps=3"], "steps: expected at least 4, since phase 4 is the first that updates the student, got 3"),
        (["phases=[[student],[]]"], "phases: expected each phase to name one role or several, each once, got []"),
        (["phases=[[fake,student,fake]]"],
         "phases: expected each phase to name one role or several, each once, got ['fake', 'student', 'fake']"),
    ],
)  # fmt: skip
def test_the_words(overrides, message):
    with pytest.raises(ConfigError) as error:
        load("digits", overrides)
    assert str(error.value) == message


def test_the_table_of_the_docs_is_printed_from_the_types():
    page = (Path(__file__).parents[2] / "docs/settings.md").read_text(encoding="utf-8")
    assert page == settings_table.table(), "python -m fdistill.settings_table > docs/settings.md"


def test_null_is_0_where_0_switches_off():
    cfg = load("gmm", ["student.clip=null", "eval.snapshots=null", "loss.gan_weight=null"])
    assert cfg == load("gmm", ["student.clip=0", "eval.snapshots=0", "loss.gan_weight=0"])
    with pytest.raises(ConfigError, match=r"^batch: expected an integer, got null$"):
        load("gmm", ["batch=null"])
