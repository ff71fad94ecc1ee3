import pytest
import yaml

from fdistill import config
from fdistill.config import ConfigError, load


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.divergance=kl"], "unknown setting 'loss.divergance'; did you mean 'loss.divergence'"),
        (["divergence=kl"], "did you mean 'loss.divergence'"),
        (["teacher.stps=3"], "did you mean 'teacher.steps'"),
        (["stepss=3"], "did you mean 'steps'"),
        (["steps=many"], "steps: expected int, got 'many'"),
        (["steps=1.5"], "steps: expected int, got 1.5"),
        (["steps=0"], "steps: expected at least 1, got 0"),
        (["seed=true"], "seed: expected int, got True"),
        (["student=3"], "student: expected settings"),
        (["student.betas=[0.1]"], "student.betas: expected tuple"),
        (["student.schedule=linear"], "student.schedule: expected constant or cosine, got 'linear'"),
        (["phases=[[fake]]"], "phases: no phase updates the student"),
        (["phases=[[generator]]"], "got 'generator'"),
        (["loss.divergence=kll"], "did you mean 'kl'"),
        (["loss.divergence=tv"], "total variation"),
        (["loss.ratio_range=[2,1]"], "ratio_range"),
        (["loss.backend=cuda"], "backend"),
        (["ema=1"], "ema: expected a number in"),
        (["name=.."], "name: expected a folder below runs"),
        (["loss.bins=0"], "loss: bins: expected"),
        (["loss.decay=1"], "decay: expected a number in"),
        (["device=tpu"], "loss: "),
        (["name=../elsewhere"], "name: expected a folder below runs"),
        (["name=/elsewhere"], "name: expected a folder below runs"),
        (["loss.bins"], "expected key=value, got 'loss.bins'"),
        (["seed=[1"], "is not a YAML value"),
    ],
)
def test_a_bad_setting_is_named(overrides, message):
    with pytest.raises(ConfigError) as error:
        load("digits", overrides)
    assert message in str(error.value)


def test_a_setting_of_another_task_is_unknown():
    with pytest.raises(ConfigError, match="unknown setting 'teacher"):
        load("gmm", ["teacher.lr=2"])


@pytest.mark.parametrize("source", ["digit", "nowhere.yaml"])
def test_an_unknown_preset_or_file(source):
    with pytest.raises(ConfigError, match="digit|no such file"):
        load(source)


def test_overrides_are_typed():
    cfg = load("digits", ["student.lr=1e-4", "loss.ratio_range=[0.5,2]", "phases=[[student,fake]]", "steps=8"])
    assert (cfg.student.lr, cfg.loss.ratio_range, cfg.phases, cfg.steps) == (1e-4, (0.5, 2.0), [["student", "fake"]], 8)


def test_a_file_starts_from_a_preset(tmp_path):
    (tmp_path / "mine.yaml").write_text("preset: digits\nloss: {divergence: kl}\nseed: 4\n")
    cfg, base = load("mine.yaml"), load("digits")
    assert (cfg.loss.divergence, cfg.seed, cfg.name) == ("kl", 4, "mine-kl-seed4")
    assert (cfg.loss.gan_weight, cfg.phases) == (base.loss.gan_weight, base.phases)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "gmm-js"),
        (["loss.divergence=kl"], "gmm-kl"),
        (["seed=2", "loss.shuffle_weight=true"], "gmm-js-shuffled-seed2"),
    ],
)
def test_a_run_is_named_after_divergence_and_seed(overrides, name):
    assert load("gmm", overrides).name == name


def test_files_are_data_not_code(tmp_path):
    (tmp_path / "evil.yaml").write_text("task: !!python/object/apply:os.system ['touch pwned']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load("evil.yaml")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("preset", config.presets())
def test_a_config_survives_yaml(preset):
    cfg = load(preset)
    back = config.from_dict(yaml.safe_load(yaml.safe_dump(config.as_dict(cfg))))
    assert back == cfg


def test_the_digest_ignores_presentation_alone():
    base = config.digest(load("gmm"))
    assert config.digest(load("gmm", ["name=other", "log_every=7", "keep=9", "out=elsewhere"])) == base
    for change in ("seed=1", "steps=7", "loss.divergence=kl", "mixture.std=0.2", "student.lr=1"):
        assert config.digest(load("gmm", [change])) != base, change
