"""A grid of teams, weights of a large batch by many blocks, and a context that refuses a grid of the whole device."""

import itertools

import pytest
import torch

import fdkernels as fdk
from tests import oracle
from tests.cases import assert_stats, make, normalizer, same_bits
from tests.gpu.calls import WEIGH, make_batch, same
from tests.software_device import device
from tests.software_device.settings import Setting

LIMITS = {
    90: device.SMALL._replace(multiprocessors=8),
    80: device.SMALL_80._replace(multiprocessors=8),
}
# (batch, teams): no batch is a multiple of its teams.
BATCHES = ((5, 2), (9, 4), (3, 3))
# Elements of a block's share. The block holds the shares of two samples at a time, of one, or a part of one.
SHARES = {"two": 48, "one": 3000, "part": 5000}
NAN = float("nan")


@pytest.fixture(params=(80, 90))
def architecture(request):
    return request.param


@pytest.fixture(params=device.SCHEDULERS)
def scheduler(request):
    return request.param


def on(architecture, scheduler, plan, seed=7, **limits):
    return Setting(architecture, plan, scheduler, seed, LIMITS[architecture]._replace(**limits)).in_force()


def check(case):
    """Loss, gradient, state and figures, against float64."""
    outcome = case.run("native", stats=True)
    expected = case.expected()
    case.hold(outcome, expected)
    assert_stats(outcome.stats, expected)
    return outcome


# ---- teams


@pytest.mark.parametrize("held", SHARES)
@pytest.mark.parametrize(("batch", "teams"), BATCHES)
def test_batches_that_are_no_multiple_of_the_teams(architecture, scheduler, batch, teams, held):
    share, team = SHARES[held], 8 // teams
    elements = share * team + 2 - teams  # whole vectors with two teams, else a rest
    case = make((batch, elements), torch.float32, normalizer=normalizer(4), divergence="jeffreys")
    with on(architecture, scheduler, f"grid:{teams}") as software:
        software.launches()
        check(case)
        flagship, *_ = software.launches()
    assert flagship.name == "fdiv_grid_kernel" and flagship.cooperative and flagship.blocks == team * teams
    buffers = 2 if held == "two" and batch > teams else 1
    if held != "part":
        assert 0 <= flagship.shared_bytes - 4 * buffers * share < 400  # the rest is for weights


@pytest.mark.parametrize(
    "option", ("mask", "count", "edm, guided", "none", "weight", "a bad sample", "a dropped sample")
)
def test_options(architecture, scheduler, option):
    case = make_batch((5, 3, 8, 8), torch.bfloat16, option)
    with on(architecture, scheduler, "grid:2"):
        outcome = case.run("native", stats=True)
    case.hold(outcome, case.expected(), torch.ones(5) if option == "none" else None)


def test_a_ticket_is_used_again_at_once(scheduler):
    """By launches with other numbers of teams and by clusters, on one stream, without waiting for the host."""
    plans = ("grid:4", "cluster:2", "grid:1", "grid:2", "cluster:1", "grid:3", "grid:4")
    cases = [make_batch((9, 3, 8, 8), option=option, seed=seed) for seed, option in ((0, "plain"), (1, "mask per row"))]
    with on(90, scheduler, "auto") as software:
        alone = []
        for plan, case in itertools.product(plans, cases):
            with device.planned(plan):
                alone.append(case.run("native", stats=True))
        with software.held_back():
            found = []
            for plan, case in itertools.product(plans, cases):
                with device.planned(plan):
                    found.append(case.run("native", stats=True))
        assert all(same(a, b) for a, b in zip(alone, found, strict=True))


def test_captured_calls_have_whole_tickets():
    """The tickets of two graphs lie side by side: one has the most teams, the other has one."""
    case = make((64, 1, 2, 4), torch.float32, heads=None, scale=None)
    with on(90, "random", "auto", multiprocessors=128, cache=1 << 20) as software:
        software.use_unused(LIMITS[90]._replace(multiprocessors=128, cache=1 << 20))
        captured = []
        for plan in ("grid:64", "grid:1"):
            with device.planned(plan):
                alone = case.run("native")
                with software.captured() as graph:
                    captured.append((graph, case.run("native"), alone))
        with software.held_back():
            for graph, *_ in captured:
                graph.replay(software.new_stream())
        for _, outcome, alone in captured:
            assert same_bits(outcome.loss, alone.loss) and same_bits(outcome.grad, alone.grad)


# ---- weights of a large batch


def batch_of_weights(batch, bins, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, heads, generator=generator)
    t = 1.2 * torch.rand(batch, generator=generator) - 0.1
    return logits, t, normalizer(bins)


@pytest.mark.parametrize("update", (True, False), ids=("update", "no update"))
@pytest.mark.parametrize(("batch", "bins", "heads"), ((257, 127, 1), (257, 4, 9), (300, 128, 2), (1000, 1, 1)))
def test_a_large_batch_is_weighed_by_many_blocks(scheduler, batch, bins, heads, update):
    weigh_many(on(90, scheduler, "auto"), batch, bins, heads, update)


def test_more_samples_than_the_most_blocks_have_threads():
    weigh_many(on(90, "random", "auto"), 17_000, 127, 1, update=True)


def weigh_many(setting, batch, bins, heads, update):
    logits, t, state = batch_of_weights(batch, bins, heads)
    state.train(update)
    expected = oracle.weights(logits, t, normalizer=state, divergence="kl")
    before = state.mean.clone()
    with setting as software:
        software.launches()
        weight = fdk.fdiv_weight(logits, t, normalizer=state, divergence="kl", backend="native")
        assert [launch.name for launch in software.launches()][:3] == list(WEIGH)
    torch.testing.assert_close(weight.double(), torch.from_numpy(expected.weight), rtol=1e-6, atol=0)
    torch.testing.assert_close(state.mean.double(), torch.from_numpy(expected.mean), rtol=1e-6, atol=0)
    assert same_bits(before, state.mean) != update


@pytest.mark.parametrize("plan", ("cluster:1", "grid:2"))
def test_a_large_batch_in_the_loss(scheduler, plan):
    case = make((260, 2, 3, 3), torch.float32, heads=16, normalizer=normalizer(10), divergence="js")
    with on(90, scheduler, plan) as software:
        software.launches()
        check(case)
        assert [launch.name for launch in software.launches()][:3] == list(WEIGH)


@pytest.mark.parametrize("of", ("logits", "t"))
@pytest.mark.parametrize("blocks", ((0,), (1,), (0, 2), (0, 1, 2)), ids=str)
def test_blocks_whose_samples_are_all_non_finite(scheduler, blocks, of):
    """Such a block adds nothing to the batch's sums. If all are such, no sample has a weight, and the state stays."""
    logits, t, state = batch_of_weights(300, 5)
    for block in blocks:
        {"logits": logits, "t": t}[of][128 * block : 128 * (block + 1)] = NAN
    expected = oracle.weights(logits, t, normalizer=state, divergence="kl")
    with on(90, scheduler, "auto"):
        weight = fdk.fdiv_weight(logits, t, normalizer=state, divergence="kl", backend="native")
    wanted = torch.from_numpy(expected.weight)
    wanted[~torch.from_numpy(expected.finite)] = NAN
    torch.testing.assert_close(weight.double(), wanted, rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(state.mean.double(), torch.from_numpy(expected.mean), rtol=1e-6, atol=0)


@pytest.mark.parametrize("blocks", (1, 3))
def test_blocks_whose_weights_are_all_zero(scheduler, blocks):
    """If these are all blocks, the batch has no mean weight."""
    logits, t, state = batch_of_weights(300, 3)
    t[: 128 * blocks] = 0.5
    with torch.no_grad():
        state.eval().mean[1] = float("inf")
    call = {"normalizer": state, "divergence": "kl"}
    with on(90, scheduler, "auto"):
        weight = fdk.fdiv_weight(logits, t, backend="native", **call)
    expected = fdk.fdiv_weight(logits, t, backend="reference", **call)
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("normalize", (True, False))
@pytest.mark.parametrize("overflows", (0.0, NAN))
def test_weights_that_overflow(scheduler, overflows, normalize):
    """In a state that no update can make. Those samples have no weight, but their ratios count in the figures."""
    batch = 1025
    case = make((batch, 8), torch.float32, heads=1, divergence="kl", nonfinite="zero")
    state = normalizer(3).eval()
    with torch.no_grad():
        state.mean[1] = overflows
    case = case.but(normalizer=state, normalize_weight=normalize)
    case.t[:128] = 0.5  # a block with only such samples
    case.logits[700] = NAN
    lost = (case.t * 3).floor() == 1
    has = ~lost & case.logits[:, 0].isfinite()
    with on(90, scheduler, "auto") as software:
        software.launches()
        stats = case.run("native", stats=True).stats
        assert [launch.name for launch in software.launches()][:3] == list(WEIGH)
    rest = oracle.weights(case.logits[has], case.t[has], normalizer=state, divergence="kl", normalize_weight=normalize)
    h = torch.full((batch,), NAN, dtype=torch.float64)
    h[has] = torch.from_numpy(rest.weight)
    torch.testing.assert_close(stats.weight, h, rtol=1e-6, atol=0, equal_nan=True)
    all_ratios = oracle.weights(case.logits, case.t, divergence="kl")
    finite, raw = all_ratios.finite, torch.from_numpy(rest.raw)
    figures = [raw.min(), raw.mean(), raw.max(), raw.sum() ** 2 / (batch * (raw**2).sum())]
    figures += [all_ratios.ratio[finite].mean(), all_ratios.clipped[finite].mean()]
    found = torch.stack(stats[1:7])
    torch.testing.assert_close(found, torch.tensor([float(f) for f in figures]).double(), rtol=1e-6, atol=0)
    assert stats.nonfinite_samples == batch - int(has.sum())


# ---- a refused cooperative launch


@pytest.mark.parametrize("captured", (False, True), ids=("at once", "captured"))
@pytest.mark.parametrize("weighed_first", (False, True))
@pytest.mark.parametrize("plan", ("grid:1", "grid:2"))
@pytest.mark.parametrize("granted", (1, 3))
def test_a_context_with_a_part_of_the_device(architecture, granted, plan, weighed_first, captured):
    """The launch is planned anew until it fits. Weights that come first, and move the state, are not launched again."""
    if weighed_first:
        case = make((260, 32), torch.float32, heads=16, normalizer=normalizer(4))
        limits = {"shared_per_block": 5 << 10, "shared_per_multiprocessor": 5 << 10}  # of one block
    else:
        case = make((3, 24_000), torch.float32, normalizer=normalizer(4))
        limits = {"shared_per_multiprocessor": 21 << 10}
    with on(architecture, "random", plan, granted=granted, **limits) as software:
        for _ in range(2):
            software.begin()
            if captured:
                with software.captured() as graph:
                    outcome = case.run("native")
            else:
                check(case)
            *first, flagship = (launch for launch in software.launches() if launch.name != "scale_kernel")
            assert [launch.name for launch in first] == list(WEIGH) * weighed_first
            assert flagship.name == "fdiv_grid_kernel" and flagship.blocks == {1: 1, 3: 2}[granted]
            assert software.last_error() is None
            if captured:
                graph.replay()
                alone = case.run("native")
                assert same_bits(outcome.loss, alone.loss) and same_bits(outcome.grad, alone.grad)
