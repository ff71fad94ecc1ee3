"""What every adapter does with a trainer's functions: replace, refuse, put back."""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fdkernels import integrations
from fdkernels.integrations._replacing import Integration, _fingerprint
from tests.integrations.conftest import stand_in

ROOT = Path(__file__).parents[2]
LOSSES = '''
def loss(x, scale=1.0):
    """Its loss."""
    return scale * x  # of its own


def other(x):
    return -x


class Model:
    def step(self, x):
        return loss(x)
'''
STEP = "from somebodys.losses import loss\n\n\ndef step(x):\n    return loss(x)\n"


def known(name: str) -> str:
    loss, _, model = LOSSES.split("\n\n\n")
    return _fingerprint({"loss": loss, "Model.step": model.split("\n", 1)[1]}[name])


def an_integration(partial: bool = False) -> Integration:
    integration = Integration("Somebody's trainer 1a2b3c4", partial)
    integration.replaces("somebodys.losses", "loss", known("loss"))(lambda x, scale=1.0: ("ours", x, scale))
    integration.replaces("somebodys.losses", "Model.step", known("Model.step"))(lambda self, x: ("our step", x))
    return integration


@pytest.fixture
def somebodys(tmp_path, monkeypatch):
    """Write the trainer's package; forget its modules afterwards."""
    folder = tmp_path / "somebodys"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "losses.py").write_text(LOSSES)
    (folder / "step.py").write_text(STEP)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "somebodys"]:
        del sys.modules[name]


def test_ours_are_in_place_wherever_they_were_imported_by_name_until_undo(somebodys):
    step = importlib.import_module("somebodys.step")
    integration = an_integration()
    assert not integration.applied() and step.step(2) == 2
    assert integration.apply() == ("somebodys.losses.loss", "somebodys.losses.Model.step")
    losses = importlib.import_module("somebodys.losses")
    assert integration.applied() and step.step(2) == ("ours", 2, 1.0) == losses.loss(2)
    assert losses.Model().step(3) == ("our step", 3) and losses.other(4) == -4
    assert losses.loss.__doc__ == "Its loss." and losses.loss.__qualname__ == "loss"
    integration.apply()
    late = importlib.import_module("somebodys.late") if (somebodys / "late.py").write_text(STEP) else None
    assert late.step(2) == ("ours", 2, 1.0)
    integration.undo()
    assert not integration.applied() and step.step(2) == late.step(2) == losses.loss(2) == losses.Model().step(2) == 2
    integration.undo()


def test_patched_is_undone_after_an_error_and_keeps_what_was_applied_before(somebodys):
    integration = an_integration()
    with pytest.raises(KeyError), integration.patched():
        assert integration.applied()
        raise KeyError
    assert not integration.applied()
    integration.apply()
    with integration.patched():
        pass
    assert integration.applied()
    with integration.patched():
        integration.undo()
    assert integration.applied()
    losses = importlib.import_module("somebodys.losses")
    with pytest.raises(KeyError), integration.patched():
        losses.loss = lambda x: x
        raise KeyError
    assert losses.loss(2) == 2  # what the block left there stays


@pytest.mark.parametrize("of", [(), ("network",)], ids=["itself", "held"])
@pytest.mark.parametrize("change", ["class", "instance", "patch", "other"])
def test_what_has_an_absorbed_method_of_its_own_keeps_the_trainers_function(somebodys, of, change):
    (somebodys / "losses.py").write_text(LOSSES + "\n    def gap(self):\n        return 1\n")
    losses = importlib.import_module("somebodys.losses")
    integration = an_integration()
    integration.absorbs("somebodys.losses", "Model.gap", _fingerprint("def gap(self):\n    return 1"), of=of)
    integration.apply()
    model = losses.Model()
    model.network = model
    assert model.step(3) == ("our step", 3)
    if change == "class":
        model.__class__ = type("Own", (losses.Model,), {"gap": lambda self: 2})
    elif change == "instance":
        model.gap = lambda: 2
    elif change == "patch":
        losses.Model.gap = lambda self: 2
    else:
        model.network = object()
    if change == "other" and not of:
        return
    with pytest.warns(UserWarning, match="gap is not what fdkernels does in its place: the trainer's Model.step"):
        assert model.step(3) == ("ours", 3, 1.0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("def step", "def stop", "somebodys.losses.Model.step: Somebody's trainer 1a2b3c4 has it"),
        ("class Model", "class Network", "somebodys.losses.Model.step: Somebody's trainer 1a2b3c4 has it"),
        ("step(self, x)", "step(self, x, *, t=0)", r"expected the parameters \(self, x\) .* got \(self, x, \*, t=0\)"),
        ("return loss(x)", "return loss(x, 2)", "code differs from that of Somebody's trainer 1a2b3c4"),
    ],
)
def test_an_unknown_function_is_refused_and_nothing_is_replaced(somebodys, old, new, says):
    (somebodys / "losses.py").write_text(LOSSES.replace(old, new))
    integration = an_integration()
    with pytest.raises(RuntimeError, match=says):
        integration.apply()
    assert not integration.applied()
    assert importlib.import_module("somebodys.losses").loss(2) == 2
    if "code differs" in says:
        integration.apply(accept_changed=True)
        assert integration.applied()


def test_comments_docstrings_and_layout_do_not_matter_and_code_does():
    source = known("loss")
    changed = (
        LOSSES.split("\n\n\n")[0]
        .replace("Its loss.", "What it loses.")
        .replace("  # of its own", "")
        .replace("    ", "  ")
    )
    assert _fingerprint(changed) == source
    assert _fingerprint(changed.replace("scale * x", "scale + x")) != source
    assert _fingerprint(changed.replace("return", "'text'\n  return")) == source  # a statement without effect
    assert _fingerprint(changed.replace("scale * x", "'text'")) != _fingerprint(changed.replace("scale * x", "'other'"))


def test_undo_refuses_to_remove_what_somebody_put_on_top(somebodys):
    integration = an_integration()
    integration.apply()
    losses = importlib.import_module("somebodys.losses")
    ours, losses.loss = losses.loss, lambda x: x
    with pytest.raises(RuntimeError, match="something else has replaced it since"):
        integration.undo()
    losses.loss = ours
    integration.undo()


def test_apply_and_undo_after_a_reload_of_a_module(somebodys):
    integration = an_integration()
    integration.replaces("somebodys.step", "step", _fingerprint(STEP.split("\n\n\n")[1]))(lambda x: ("ours", x))
    integration.apply()
    losses, step = importlib.import_module("somebodys.losses"), importlib.import_module("somebodys.step")
    importlib.reload(step)
    assert not integration.applied() and step.step(2) == ("ours", 2, 1.0)  # losses.loss is still ours
    integration.apply()
    assert integration.applied() and step.step(2) == ("ours", 2)
    integration.undo()
    assert step.step(2) == losses.loss(2) == losses.Model().step(2) == 2


def test_undo_after_a_reload_of_the_trainers_own_module(somebodys):
    integration, step = an_integration(), importlib.import_module("somebodys.step")
    losses, original = importlib.import_module("somebodys.losses"), step.loss
    integration.apply()
    (somebodys / "losses.py").write_text("import math\n" + LOSSES)
    importlib.reload(losses)
    assert not integration.applied() and step.step(2) == ("ours", 2, 1.0)
    integration.undo()
    assert step.loss is original and losses.loss(2) == 2


def test_an_absent_trainer_is_an_import_error_and_a_part_may_be_enough(somebodys):
    for partial in (False, True):
        integration = an_integration(partial)
        integration.replaces("somebodys.video", "loss")(lambda x: x)
        if partial:
            assert len(integration.apply()) == 2
            integration.undo()
            (somebodys / "video.py").write_text("raise OSError('no libcuda')\n")
            with pytest.warns(UserWarning, match="is replaced in part: somebodys.video: OSError: no libcuda"):
                assert len(integration.apply()) == 2
            integration.undo()
            continue
        assert integration.describe() == "not importable"
        with pytest.raises(
            ImportError, match=r"Somebody's trainer 1a2b3c4 cannot be imported from here: .*somebodys\.video"
        ):
            integration.apply()
    integration.partial = False
    with pytest.raises(ImportError, match="somebodys.video: OSError: no libcuda"):
        integration.apply()
    assert not integration.applied()
    nowhere = Integration("Nobody's trainer", partial=True)
    nowhere.replaces("nobodys.losses", "loss")(lambda x: x)
    assert nowhere.describe() == "not importable"
    with pytest.raises(ImportError):
        nowhere.apply()


def test_the_description_reads_the_files_alone(somebodys):
    assert an_integration().describe() == f"importable ({somebodys / 'losses.py'}), in a known state"
    (somebodys / "losses.py").write_text(LOSSES.replace("scale * x", "scale + x"))
    assert an_integration().describe().endswith("unknown: somebodys.losses.loss")
    assert "somebodys" not in sys.modules


ADAPTERS = list(integrations.adapters())


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_is_small_complete_and_without_effect_at_import(name):
    module = importlib.import_module(f"fdkernels.integrations.{name}")
    assert len(inspect.getsource(module).splitlines()) < 80
    integration = module.INTEGRATION
    assert [module.apply, module.undo, module.applied, module.patched] == [
        integration.apply, integration.undo, integration.applied, integration.patched
    ]  # fmt: skip
    assert not integration.applied()
    for replacement in integration.replacements:
        assert replacement.known, f"{replacement}: no state of the trainer is known"
    assert any(stand_in(name).rglob("*.py"))


def test_no_adapter_imports_its_trainer():
    adapters = [importlib.import_module(f"fdkernels.integrations.{name}") for name in ADAPTERS]
    trainers = {each.module.split(".")[0] for adapter in adapters for each in adapter.INTEGRATION.replacements}
    code = f"import sys, {', '.join(adapter.__name__ for adapter in adapters)}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not trainers & set(run.stdout.split())


def run_script(folder, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "train.py").write_text(
        "import sys\nfrom fastgen.methods.common_loss import gan_loss_generator\n"
        "print(__name__, sys.argv[1:], gan_loss_generator.__wrapped__.__module__)\n"
    )
    command = [sys.executable, "-m", "fdkernels.integrations", *arguments]
    path = os.pathsep.join(map(str, (folder, ROOT)))
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})


def test_a_script_runs_with_an_adapter_applied(tmp_path):
    folder = tmp_path / "FastGen"
    shutil.copytree(stand_in("fastgen"), folder)
    refused = run_script(folder, "fastgen", "train.py")
    assert refused.returncode == 1 and "its code differs from that of FastGen" in refused.stderr
    assert "expected one of causvid, cosmos" in run_script(folder, "fastgan", "train.py").stderr
    for arguments in (["fastgen"], ["fastgen", "-m"]):
        assert "usage: python -m fdkernels.integrations" in run_script(folder, *arguments).stderr
    (folder / "sitecustomize.py").write_text(  # the stand-in's code counts as known
        "from fdkernels.integrations import _replacing\n_replacing._fingerprint = lambda source: '28b9f00f09be'\n"
        "_replacing.Replacement.known = property(lambda self: ('28b9f00f09be',))\n"
    )
    for target in (["train.py"], ["-m", "train"]):
        done = run_script(folder, "fastgen", *target, "--steps", "3")
        assert done.stdout == "__main__ ['--steps', '3'] fastgen.methods.common_loss\n", done.stderr
        assert "fdkernels replaces fastgen.methods.common_loss.variational_score_distillation_loss" in done.stderr
