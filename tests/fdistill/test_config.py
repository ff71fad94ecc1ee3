from pathlib import Path

import pytest
import yaml

from fdistill import config, run
from fdistill.config import ConfigError, load


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.divergance=kl"], "unknown setting 'loss.divergance'; did you mean 'loss.divergence'"),
        (["divergence=kl"], "did you mean 'loss.divergence'"),
        (["teacher.stps=3"], "did you mean 'teacher.steps'"),
        (["stepss=3"], "did you mean 'steps'"),
        (["steps=many"], "steps: expected an integer, got 'many'"),
        (["steps=1.5"], "steps: expected an integer, got 1.5"),
        (["steps=0"], "steps: expected an integer >= 1, got 0"),
        (["seed=true"], "seed: expected an integer, got true"),
        (["student=3"], "student: expected settings"),
        (["student.betas=[0.1]"], "student.betas: expected a list of 2, each a number in [0, 1), got [0.1]"),
        (["student.schedule=linear"], "student.schedule: expected constant or cosine, got 'linear'"),
        (["phases=[[fake]]"], "phases: no phase updates the student"),
        (["phases=[[generator]]"], "got 'generator'"),
        (["loss.divergence=kll"], "did you mean 'kl'"),
        (["loss.divergence=tv"], "total variation"),
        (["loss.ratio_range=[2,1]"], "ratio_range"),
        (["ema=1"], "ema: expected a number in"),
        (["name=.."], "name: expected a folder below runs"),
        (["loss.bins=0"], "loss.bins: expected"),
        (["loss.decay=1"], "decay: expected a number in"),
        (["device=tpu"], "device: expected cpu, cuda or cuda:<number>, got 'tpu'"),
        (["device=''"], "device: expected"),
        (["device=meta"], "device: meta does not work here"),
        (["device=mps"], "device: mps does not work here"),
        (["loss.backend=cuda"], "loss.backend: expected one of"),
        (["loss.kind=dmd"], "loss.kind: expected fdiv, sim or sid, got 'dmd'"),
        (["loss.gan=wgan"], "loss.gan: expected logistic, hinge or relativistic, got 'wgan'"),
        (["loss.kind=sim"], "loss.c: sim needs a number > 0, got none"),
        (["loss.kind=sim", "loss.c=null"], "loss.c: sim needs a number > 0, got none"),
        (["phases=[[student]]"], "phases: expected one with the discriminator, which loss.gan_weight needs"),
        (["phases=[[student]]", "loss.gan_weight=0"], "phases: expected one with the discriminator, which h of"),
        (["loss.gan=hinge"], "loss.gan: hinge logits are no log density ratios, of which h of 'js' is made"),
        (["loss.gan=relativistic", "loss.divergence=kl"], "loss.gan: relativistic logits are no log density ratios"),
        (["loss.kind=sid", "loss.shuffle_weight=true"], "loss.shuffle_weight: expected false, since loss.kind=sid has"),
        (
            ["loss.gan=hinge", "loss.divergence=rkl", "loss.shuffle_weight=true"],
            "loss.shuffle_weight: expected false, since loss.gan=hinge has no h",
        ),
        (["name=../elsewhere"], "name: expected a folder below runs"),
        (["name=/elsewhere"], "name: expected a folder below runs"),
        (["loss.bins"], "expected key=value (null stands for none), got 'loss.bins'"),
        (["student.clip="], "expected key=value (null stands for none), got 'student.clip='"),
        (["student.lr=1e-3_0"], "student.lr: expected a number, got '1e-3_0'"),
        (["seed=[1"], "is not a YAML value"),
    ],
)
def test_a_bad_setting_is_named(overrides, message):
    with pytest.raises(ConfigError) as error:
        load("digits", overrides)
    assert message in str(error.value)


def alias_bomb(levels=9):
    """YAML of a few hundred characters whose value has 9 ** levels numbers."""
    lists = [f"a{i}: &a{i} [{', '.join(['7' if i == 0 else f'*a{i - 1}'] * 9)}]" for i in range(levels)]
    return "{" + ", ".join(lists) + "}"


BOMB = alias_bomb()
LONG = "x" * 10_000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, BOMB) for key in ("steps", "task", "student.lr", "student.betas", "phases", "eval", "name", "nothing")),
        *((key, LONG) for key in ("steps", "task", "student", "student.schedule", "device", "loss.backend", LONG)),
        ("name", f"../{LONG}"),
        ("phases", f"[[{LONG}]]"),
        ("steps", f"[{LONG}"),  # not YAML
        ("steps", f"!{LONG} 1"),
        ("steps", "9" * 5000),  # more digits than Python reads
        ("steps", "-0x" + "f" * 5000),  # or prints
        ("seed", "[" * 1500),
        ("ema", "1" + "0" * 400),  # beyond a float
        ("seed", "2026-13-41"),
        ("seed", "!!timestamp x"),
        ("task", "[digits]"),
    ],
    ids=lambda text: text[:12],
)
def test_what_a_message_shows_of_a_value_is_cut(key, value):
    with pytest.raises(ConfigError) as error:
        load("digits", [f"{key}={value}"])
    assert len(str(error.value)) < 1200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"preset: {BOMB}", "preset: expected a name or a path"),
        (f"preset: {LONG}", "unknown preset"),
        (f"preset: {LONG}.yaml", "no such file"),
        (f"preset: digits\nsteps: {BOMB}", "steps: expected an integer"),
        (f"preset: digits\n? {LONG}\n: 1", "unknown setting|not valid YAML"),
        (f"task: {BOMB}", "task: expected one of"),
        (f"[{LONG}]", "expected a mapping of settings, got list"),
        (f"steps: [{LONG}", "not valid YAML"),
    ],
    ids=lambda text: text[-20:],
)
def test_and_so_it_is_of_a_file(text, message, workplace):
    (workplace / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load("mine.yaml")
    assert len(str(error.value)) < 1200


def test_differences_are_cut_too():
    bomb = yaml.safe_load(BOMB)
    (told,) = config.differences({"steps": bomb}, {"steps": LONG}).training
    assert told.startswith("steps: {'a0': [7, 7") and len(told) < 600


def test_shown():
    assert [config.shown(value) for value in ("kl", 1.5, None, [0.1, 2], True)] == [
        "'kl'",
        "1.5",
        "null",
        "[0.1, 2]",
        "true",
    ]


def test_a_setting_of_another_task_is_unknown():
    with pytest.raises(ConfigError, match="unknown setting 'teacher"):
        load("gmm", ["teacher.lr=2"])


@pytest.mark.parametrize("source", ["digit", "nowhere.yaml"])
def test_an_unknown_preset_or_file(source):
    with pytest.raises(ConfigError, match="digit|no such file"):
        load(source)


def test_overrides_are_typed():
    cfg = load("digits", ["student.lr=1e-4", "loss.ratio_range=[0.5,2]", "phases=[[discriminator,student]]", "steps=8"])
    assert (cfg.student.lr, cfg.loss.ratio_range, cfg.steps) == (1e-4, (0.5, 2.0), 8)
    assert cfg.phases == [["discriminator", "student"]]


def test_a_file_starts_from_a_preset(tmp_path):
    (tmp_path / "mine.yaml").write_text("preset: digits\nloss: {divergence: kl}\nseed: 4\n")
    cfg, base = load("mine.yaml"), load("digits")
    assert (cfg.loss.divergence, cfg.seed, cfg.name) == ("kl", 4, "mine-kl-seed4")
    assert (cfg.loss.gan_weight, cfg.phases) == (base.loss.gan_weight, base.phases)


def test_files_that_start_from_files(workplace):
    (workplace / "first.yaml").write_text("preset: digits\nloss: {divergence: kl, bins: 7}\nseed: 4\n")
    (workplace / "second.yaml").write_text("preset: first.yaml\nloss: {bins: 5}\n")
    cfg = load("second.yaml")
    assert (cfg.loss.divergence, cfg.loss.bins, cfg.seed, cfg.name) == ("kl", 5, 4, "second-kl-seed4")


@pytest.mark.parametrize(
    ("presets", "cycle"),
    [
        ({"a": "a.yaml"}, "a.yaml -> a.yaml"),
        ({"a": "./a.yaml"}, "a.yaml -> ./a.yaml"),
        ({"a": "b.yaml", "b": "c.yaml", "c": "b.yaml"}, "a.yaml -> b.yaml -> c.yaml -> b.yaml"),
    ],
)
def test_files_in_a_cycle(presets, cycle, workplace):
    for name, preset in presets.items():
        (workplace / f"{name}.yaml").write_text(f"preset: {preset}\n")
    with pytest.raises(ConfigError) as error:
        load("a.yaml")
    assert str(error.value) == f"preset: expected no cycle of files, got {cycle}"


def test_more_files_than_python_recurses(workplace):
    for i in range(1200):
        (workplace / f"{i}.yaml").write_text(f"preset: {f'{i + 1}.yaml' if i < 1199 else 'gmm'}\n")
    assert load("0.yaml").task == "gmm"


NO_TEXT = "seed: 1  # grün\n".encode("latin-1")


def test_a_file_that_is_not_utf_8(workplace):
    (workplace / "mine.yaml").write_bytes(NO_TEXT)
    (workplace / "config.yaml").write_bytes(NO_TEXT)
    for read in (lambda: load("mine.yaml"), lambda: run.settings_of(workplace)):
        with pytest.raises(ConfigError, match=r"\.yaml: expected text in UTF-8, got byte 0xfc at position 13"):
            read()


def test_a_file_that_cannot_be_read(workplace, monkeypatch):
    (workplace / "mine.yaml").write_text("preset: gmm\n")

    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(ConfigError, match="mine.yaml: cannot be read: Permission denied"):
        load("mine.yaml")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "gmm-js"),
        (["loss.divergence=kl"], "gmm-kl"),
        (["seed=2", "loss.shuffle_weight=true"], "gmm-js-shuffled-seed2"),
        (["loss.kind=sid"], "gmm-sid"),
    ],
)
def test_a_run_is_named_after_objective_and_seed(overrides, name):
    assert load("gmm", overrides).name == name


@pytest.mark.parametrize("loss", ["{divergence: rkl, gan_weight: 0}", "{kind: sid, gan_weight: 0}"])
def test_a_discriminator_that_serves_nothing_may_be_left_out(loss):
    assert load("digits", ["phases=[[fake,student]]", f"loss={loss}"]).phases == [["fake", "student"]]


def test_a_preset_of_an_objective_names_it_once():
    assert load("gmm-sim", ["seed=3"]).name == "gmm-sim-seed3"
    assert load("gmm-sim", ["loss.kind=sid"]).name == "gmm-sim-sid"


@pytest.mark.parametrize("discriminator", ["hinge", "relativistic"])
@pytest.mark.parametrize("kind", ["loss.divergence=rkl", "loss.divergence=reverse_kl", "loss.kind=sid"])
def test_any_discriminator_where_no_h_is_made_of_its_logits(discriminator, kind):
    assert load("digits", [kind, f"loss.gan={discriminator}"]).loss.gan == discriminator


def test_files_are_data_not_code(tmp_path):
    (tmp_path / "evil.yaml").write_text("task: !!python/object/apply:os.system ['touch pwned']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load("evil.yaml")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\nsteps: 3\nseed: 2\n", "the key 'seed' stands twice, in lines 1 and 3"),
        ("student:\n  lr: 1\n\n  lr: 1\n", "the key 'lr' stands twice, in lines 2 and 4"),
        ("preset: gmm\nstudent: {lr: 1, clip: 2, lr: 3}\n", "the key 'lr' stands twice, in lines 2 and 2"),
        ("a: &a {lr: 1}\nstudent: {clip: 1, <<: *a, clip: 2}\n", "the key 'clip' stands twice, in lines 2 and 2"),
        ("seed: 1\n'seed': 1\n", "the key 'seed' stands twice, in lines 1 and 2"),
        ("a: &a {lr: 1}\nb:\n  <<: *a\n  <<: *a\n", "the key '<<' stands twice, in lines 3 and 4"),
        ("phases: [[{a: 1, a: 2}]]\n", "the key 'a' stands twice, in lines 1 and 1"),
        ("? &k seed\n: 1\n? *k\n: 2\n", "the key 'seed' stands twice"),
    ],
)
def test_the_same_key_twice(text, told, workplace):
    (workplace / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load("mine.yaml")
    assert str(error.value).startswith(f"mine.yaml: not valid YAML: {told}")
    with pytest.raises(ConfigError, match="'lr' stands twice"):
        load("gmm", ["student={lr: 1, lr: 2}"])
    (workplace / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="stands twice"):
        run.settings_of(workplace)


def test_merge_keys_work(workplace):
    (workplace / "mine.yaml").write_text(
        "preset: gmm\nstudent: &s {lr: 0.5, clip: 3}\nfake: {<<: *s, lr: 0.25}\n"
        "discriminator:\n  <<: [*s, {warmup: 7}]\n  clip: null\n"
    )
    cfg = load("mine.yaml")
    assert (cfg.fake.lr, cfg.fake.clip) == (0.25, 3)
    assert (cfg.discriminator.lr, cfg.discriminator.clip, cfg.discriminator.warmup) == (0.5, 0, 7)


@pytest.mark.parametrize("preset", config.presets())
def test_a_config_survives_yaml(preset):
    cfg = load(preset)
    back = config.from_dict(yaml.safe_load(yaml.safe_dump(config.as_dict(cfg))))
    assert back == cfg


def test_the_digest_ignores_presentation_alone():
    base = config.digest(load("gmm"))
    assert config.digest(load("gmm", ["name=other", "log_every=7", "keep=9", "out=elsewhere", "threads=2"])) == base
    assert config.digest(load("gmm", ["eval.snapshots=3"])) == base
    for change in ("seed=1", "steps=7", "loss.divergence=kl", "mixture.std=0.2", "student.lr=1", "eval.samples=999"):
        assert config.digest(load("gmm", [change])) != base, change
    training = config.digest(load("gmm"), evaluation=False)
    assert config.digest(load("gmm", ["eval.samples=999"]), evaluation=False) == training
    assert config.digest(load("gmm", ["student.lr=1"]), evaluation=False) != training


# The settings that --resume refuses to change. A new setting belongs here, or into config.EVALUATION or PRESENTATION.
TRAINING = """
    task seed steps batch phases sigma_max sigma_log_mean sigma_log_std ema device loss.kind loss.alpha loss.c
    loss.sigma_power loss.gan loss.divergence loss.ratio_range loss.normalize_ratio loss.bins loss.decay
    loss.gan_weight loss.shuffle_weight loss.backend head_width noise_dimension width depth critic_width
    critic_depth mixture.spacing mixture.std mixture.weights teacher.channels teacher.layers_per_block
    teacher.sigma_data teacher.steps teacher.batch teacher.lr teacher.ema teacher.seed
"""
OPTIMIZER = ("lr", "betas", "weight_decay", "clip", "schedule", "warmup")


def test_every_setting_decides_one_thing():
    every = {key for task in config.TASKS.values() for key in config.kinds(task)}
    roles = {f"{role}.{key}" for role in ("student", "fake", "discriminator") for key in OPTIMIZER}
    training = {*TRAINING.split(), *roles}
    assert every == training | config.EVALUATION | config.PRESENTATION
    assert len(every) == len(training) + len(config.EVALUATION) + len(config.PRESENTATION)


def test_differences_are_told_by_what_they_decide():
    old = config.as_dict(load("digits"))
    changes = ["student.lr=2", "eval.samples=99", "teacher_sigma_min=0.1", "threads=3", "teacher.checkpoint_every=7"]
    found = config.differences(old, config.as_dict(load("digits", [*changes, "eval.snapshots=0"])))
    assert found.training == ["student.lr: 0.001 -> 2.0"]
    assert found.evaluation == ["eval.samples: 1797 -> 99", "teacher_sigma_min: 0.01 -> 0.1"]
    keys = [told.split(":")[0] for told in found.presentation]
    assert keys == ["eval.snapshots", "teacher.checkpoint_every", "threads"]
    assert config.differences({1: 2, "seed": 3}, {"seed": 4}).training == ["1: 2 -> null", "seed: 3 -> 4"]


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ("gmm-sid", ["loss.divergence=kl"], "loss.divergence: has no effect with loss.kind=sid; .* of fdiv"),
        ("gmm", ["loss.alpha=1"], "loss.alpha: has no effect with loss.kind=fdiv; .* of sid"),
        ("gmm", ["loss.kind=sim", "loss.c=1", "loss.alpha=1"], "loss.alpha: has no effect with loss.kind=sim"),
        ("gmm", ["loss={kind: sid, bins: 3}"], "loss.bins: has no effect with loss.kind=sid; .* of fdiv"),
        ("gmm", ["loss.shuffle_weight=true", "loss.kind=sid"], "loss.shuffle_weight: "),
        ("gmm", ["loss=3"], "loss: expected settings"),
    ],
)
def test_an_override_of_another_kind_of_loss(source, overrides, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        load(source, overrides)


@pytest.mark.parametrize("preset", config.presets())
def test_a_file_may_hold_settings_of_every_kind(preset, workplace):
    """As a run's config.yaml does."""
    cfg = load(preset, ["loss.kind=fdiv", "loss.divergence=rkl"])
    (workplace / "again.yaml").write_text(yaml.safe_dump(config.as_dict(cfg)))
    assert load("again.yaml") == cfg
