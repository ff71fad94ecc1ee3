"""Divergences as objects: pickling, registration, failures for single samples."""

import importlib
import pickle

import pytest
import torch

import fdkernels as fdk

divergences = importlib.import_module("fdkernels.divergences")  # the function of that name hides it


@pytest.mark.parametrize("name", [*fdk.divergences(), "alpha(0.5)"])
def test_losses_pickle(name):
    loss = pickle.loads(pickle.dumps(fdk.FDivLoss(name)))
    logits = torch.linspace(-2, 2, 8)
    options = {"normalize_weight": False, "backend": "reference"}
    expected = fdk.fdiv_weight(logits, divergence=name, **options)
    assert torch.equal(fdk.fdiv_weight(logits, divergence=loss.divergence, **options), expected)
    assert loss.divergence.kernel == fdk.FDivLoss(name).divergence.kernel


@pytest.mark.parametrize("failure", [torch.nan, torch.inf])
def test_a_failing_sample_does_not_take_the_batch_with_it(failure):
    partial = fdk.Divergence("partial", lambda log_ratio: torch.where(log_ratio > 1, failure, log_ratio))
    weight = fdk.fdiv_weight(torch.tensor([0.0] * 7 + [2.0]), divergence=partial)
    assert torch.equal(weight[:7], torch.ones(7))
    assert weight[7].isnan()


def test_kernel_rows_are_not_for_the_taking():
    with pytest.raises(TypeError):
        fdk.Divergence("mine", lambda log_ratio: 5 * log_ratio, kernel="kl")


@pytest.mark.parametrize("arguments", [(5, torch.abs), ("x", 3), ("x", torch.abs, "ab")])
def test_bad_divergence(arguments):
    with pytest.raises(TypeError, match=r"Divergence|log_weight"):
        fdk.Divergence(*arguments)


def test_complex_log_weight():
    with pytest.raises(ValueError, match="floating"):
        fdk.fdiv_weight(torch.zeros(8), divergence=fdk.Divergence("c", lambda log_ratio: log_ratio * 1j))


def test_nearest_name_ignores_case():
    with pytest.raises(ValueError, match="did you mean 'js'"):
        fdk.fdiv_weight(torch.zeros(8), divergence="JS")


def weigh(name):
    """The power p of a divergence with h(r) = r^p."""
    return float(fdk.fdiv_weight(torch.full((8,), 2.0), divergence=name, normalize_weight=False).log()[0] / 2)


def run(source, file, name="__main__"):
    """Run the source as a notebook cell or as a module."""
    space = {"__name__": name, "fdk": fdk, "torch": torch}
    exec(compile(source, file, "exec"), space)
    return space


CELLS = {
    "lambda": "fdk.register_divergence(fdk.Divergence('test_cell', lambda L: {power} * L, ('test_cell_{power}',)))",
    "function": "def f(L):\n    return {power} * L\nfdk.register_divergence(fdk.Divergence('test_cell', f))",
    "module": "class F(torch.nn.Module):\n    def forward(self, L):\n        return {power} * L\n"
    "fdk.register_divergence(fdk.Divergence('test_cell', F()))",
    "partial": "import functools\ndef f(p, L):\n    return p * L\n"
    "fdk.register_divergence(fdk.Divergence('test_cell', functools.partial(f, {power})))",
    "decorated": "@torch.no_grad()\ndef f(L):\n    return {power} * L\n"
    "fdk.register_divergence(fdk.Divergence('test_cell', f))",
    "method": "class F:\n    def h(self, L):\n        return {power} * L\n"
    "fdk.register_divergence(fdk.Divergence('test_cell', F().h))",
}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(divergences, "_registry", dict(divergences._registry))
    monkeypatch.setattr(divergences, "_by_alias", dict(divergences._by_alias))


@pytest.mark.parametrize(
    "files", (("/tmp/ipykernel_7/1.py", "/tmp/ipykernel_7/2.py"), ("<ipython-input-1-a>", "<ipython-input-2-b>"))
)
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_that_runs_again_replaces(registry, kind, files):
    for power, file in zip((0.5, 0.25, 0.125), (files[0], files[0], files[1]), strict=True):
        run("\n" * int(1 / power) + CELLS[kind].format(power=power), file)
        assert weigh("test_cell") == pytest.approx(power)
        assert sum(name.startswith("test_cell") for name in fdk.divergences()) == 1


def test_ipykernels_debugger_writes_the_cell_to_a_file(registry, tmp_path):
    (tmp_path / "ipykernel_7").mkdir()
    for power in (0.5, 0.25):
        file = tmp_path / "ipykernel_7" / f"{power}.py"
        file.write_text("# the cell")
        run(CELLS["lambda"].format(power=power), str(file))
        assert weigh("test_cell") == pytest.approx(power)


def test_replacing_drops_the_old_aliases(registry):
    for power in (0.5, 0.25):
        run(CELLS["lambda"].format(power=power), "<stdin>")
    assert weigh("test_cell_0.25") == pytest.approx(0.25)
    with pytest.raises(ValueError, match="unknown name 'test_cell_0.5'"):
        weigh("test_cell_0.5")


@pytest.mark.parametrize("aliases", [("test_x",), ("test_two",)])
def test_an_alias_of_another_name_is_taken(registry, aliases):
    """It holds even if both come from one place, such as a factory: only a divergence of the same name is replaced."""

    def divergence(name, *aliases):
        return fdk.Divergence(name, lambda log_ratio: 0.5 * log_ratio, aliases)

    fdk.register_divergence(divergence("test_one", *aliases))
    with pytest.raises(ValueError, match="is taken"):
        fdk.register_divergence(divergence("test_two", "test_x"))
    assert "test_one" in fdk.divergences() and "test_two" not in fdk.divergences()


def test_name_and_alias_may_change_places(registry):
    def f(log_ratio):
        return 0.5 * log_ratio

    fdk.register_divergence(fdk.Divergence("test_one", f, ("test_two",)))
    fdk.register_divergence(fdk.Divergence("test_two", f, ("test_one",)))
    assert "test_one" not in fdk.divergences() and weigh("test_one") == pytest.approx(0.5)


def test_the_same_module_loaded_again_replaces(registry, tmp_path):
    file = tmp_path / "module.py"
    for kind in ("function", "lambda"):
        for power in (0.5, 0.25):
            file.write_text(CELLS[kind].format(power=power))
            run(file.read_text(), str(file), "some_module")
            assert weigh("test_cell") == pytest.approx(power)
        divergences._registry.pop("test_cell"), divergences._by_alias.pop("test_cell")


def test_another_function_does_not_replace(registry, tmp_path):
    """Two places that take one name are a mistake: the first stays."""
    file = tmp_path / "script.py"
    file.write_text("")
    run(CELLS["lambda"].format(power=0.5), str(file))
    for kind in ("lambda", "function", "module"):
        with pytest.raises(ValueError, match="taken"):
            run("\n\n" + CELLS[kind].format(power=0.25), str(file))
    with pytest.raises(ValueError, match="'test_cell' is taken"):
        run("\n\nfdk.register_divergence(fdk.Divergence('test_free', lambda L: L, ('test_cell',)))", str(file))
    for builtin in (torch.exp, torch.abs):
        with pytest.raises(ValueError, match="taken"):
            fdk.register_divergence(fdk.Divergence("test_cell", builtin))
    assert weigh("test_cell") == pytest.approx(0.5) and "test_free" not in fdk.divergences()
    fdk.register_divergence(fdk.Divergence("test_builtin", torch.abs))
    fdk.register_divergence(fdk.Divergence("test_builtin", torch.abs))
    with pytest.raises(ValueError, match="taken"):
        fdk.register_divergence(fdk.Divergence("test_builtin", torch.exp))


def test_built_in_names_stay_taken(registry):
    for name in ("js", "sf", "kl"):
        with pytest.raises(ValueError, match="taken"):
            fdk.register_divergence(fdk.Divergence(name, fdk.divergences()["js"].log_weight))


def test_a_compiled_call_sees_the_new_one(registry, fresh_compiler):
    """A divergence given by name is the one registered last, though a graph exists already."""
    compiled = torch.compile(
        lambda logits: fdk.fdiv_weight(logits, divergence="test_cell", normalize_weight=False), backend="eager"
    )
    for power in (0.5, 0.25):
        run(CELLS["lambda"].format(power=power), "<stdin>")
        found = compiled(torch.full((8,), 2.0))
        torch.testing.assert_close(found, torch.full((8,), 2 * power).exp())
