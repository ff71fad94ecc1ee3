"""What a thread of the CUDA kernels does with its part of a sample: options, layouts and tails, against the oracle."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

import fdkernels as fdk
from fdkernels.fdiv import ops
from fdkernels.fdiv.arguments import FdivArguments
from tests.cases import make, normalizer, same_bits
from tests.fdkernels import test_runs, test_stats
from tests.fdkernels.test_triton_schedules import OPTIONS, held_out
from tests.host.run import Team, forward

TEAMS = {
    "a block": Team(1, 32),
    "one thread": Team(1, 1),
    "four blocks": Team(4, 64),
    "five blocks, half held": Team(5, 32, held=0.5),
    "nothing held": Team(3, 96, held=0.0),
    "more blocks than vectors": Team(400, 32),
}


@pytest.fixture(params=TEAMS)
def team(request):
    return TEAMS[request.param]


@pytest.fixture
def native(host, team, monkeypatch):
    """The native backend with the CUDA kernels' functions in place of the CPU's."""
    monkeypatch.setitem(ops._FORWARD, "native", lambda *arguments: forward(host, FdivArguments(*arguments), team))
    return "native"


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("option", OPTIONS)
def test_options(native, option, reduction):
    held_out(OPTIONS[option], reduction=reduction).check(native)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64), ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_dtypes(native, option, dtype):
    held_out(OPTIONS[option], dtype).check(native)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("option", ("plain", "mask per frame", "epsilon, guided"))
def test_float32_predictions(native, option, dtype):
    held_out(OPTIONS[option], dtype, predictions=torch.float32).check(native)


@pytest.mark.parametrize("types", [*itertools.product((torch.bfloat16, torch.float16, torch.float32), repeat=3)])
def test_any_mix(native, types):
    case = held_out(OPTIONS["plain"])
    case.but(**{n: getattr(case, n).to(t) for n, t in zip(("student", "teacher", "fake"), types, strict=True)}).check(
        native
    )


@pytest.mark.parametrize("elements", (1, 2, 3, 7, 8, 9, 31, 64, 65, 127, 255, 1023, 1025, 4099))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("option", ("plain", "mask"))
def test_lengths(native, elements, dtype, option):
    mask = torch.rand(3, elements, generator=torch.Generator().manual_seed(elements)) < 0.6
    for batch in (1, 3):
        case = make((batch, elements), dtype, seed=elements, divergence="rkl", heads=None)
        if option == "mask":
            case = case.but(mask=mask[:batch])
        case.check(native)


@pytest.mark.parametrize("values", ((0.06, 0.18, 2.83), (1.72, 2.2, 2.87), (2.4, 2.12, 1.89)))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_data_that_rounds_one_way(native, dtype, values):
    x, teacher, fake = (torch.full((2, 8400), value, dtype=dtype) for value in values)
    make(x.shape, dtype, divergence="rkl", heads=None).but(student=x, teacher=teacher, fake=fake).check(native)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("moved", ("student", "teacher", "fake"))
def test_misaligned(native, dtype, moved):
    case = make((3, 264), dtype, seed=5)
    buffer = torch.full((3 * 264 + 40,), torch.nan, dtype=dtype)
    buffer[17 : 17 + 3 * 264] = getattr(case, moved).flatten()
    case.but(**{moved: buffer[17 : 17 + 3 * 264].view(3, 264)}).check(native)


def test_nothing_beyond_a_tensor_is_read(native):
    """Every input lies in a sea of NaN."""

    def island(v):
        sea = torch.full((v.shape[0] + 2, v.numel() // v.shape[0] + 24), torch.nan, dtype=v.dtype)
        sea[1:-1, 8:-16] = v.flatten(1)
        return sea[1:-1, 8:-16].view(v.shape)

    for option in ("plain", "epsilon, guided"):
        case = held_out(OPTIONS[option], torch.bfloat16)
        moved = {n: island(getattr(case, n)) for n in ("student", "teacher", "fake")}
        case.but(**moved).check(native)


@pytest.mark.parametrize("bad", ("student", "teacher", "fake"))
@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("nonfinite", ("propagate", "zero"))
def test_a_bad_element(native, bad, value, nonfinite):
    for option in ("normalizer", "mask full", "scale per row"):
        if option == "scale per row" and bad == "student":
            continue  # without the dmd scale the loss does not read it
        case = held_out(OPTIONS[option] | {"nonfinite": nonfinite})
        poisoned = getattr(case, bad).clone()
        mask = case.options.get("mask")
        index = 0 if mask is None else int(mask[3].flatten().nonzero()[0])
        poisoned[3].view(-1)[index] = value
        outcome = case.but(**{bad: poisoned}).check(native)
        kept = torch.ones_like(poisoned[3], dtype=torch.bool) if mask is None else mask[3]
        gradient = outcome.grad[3][kept]
        assert gradient.isnan().all() if nonfinite == "propagate" else not outcome.grad[3].any()


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_a_masked_element_may_be_anything(native, value):
    case = held_out(OPTIONS["mask full"])
    masked = ~case.options["mask"]
    spoiled = {n: getattr(case, n).masked_fill(masked, value) for n in ("student", "teacher", "fake")}
    outcome = case.but(**spoiled).run(native, stats=True)
    assert outcome.grad.isfinite().all() and outcome.loss.isfinite() and outcome.stats.nonfinite_samples == 0
    assert not outcome.grad[masked].any()


@pytest.mark.parametrize("size", (1e-25, 1e-21, 1e22, 1e30))
@pytest.mark.parametrize("option", ("plain", "mask full", "scale per row"))
def test_squares_that_float32_cannot_hold(native, option, size):
    case = held_out(OPTIONS[option])
    scale = case.options.get("scale")
    changes = {} if scale is None else {"scale": scale / size}
    tensors = {n: getattr(case, n) * size for n in ("student", "teacher", "fake")}
    case.but(**tensors, eps=0.0, **changes).check(native)


def test_a_fake_score_that_is_the_teacher(native):
    case = held_out(OPTIONS["plain"])
    outcome = case.but(fake=case.teacher.clone()).run(native, stats=True)
    assert outcome.loss == 0 and not outcome.grad.any() and outcome.stats.relative_gap == 0


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_figures_change_no_bit_of_the_loss(native, value):
    """Without the dmd scale x enters figures alone, whatever it is."""
    case = held_out(OPTIONS["no scale"])
    student = case.student.clone()
    student[2].view(-1)[5] = value
    case = case.but(student=student)
    plain, with_figures = case.run(native), case.run(native, stats=True)
    assert same_bits(plain.loss, with_figures.loss) and same_bits(plain.grad, with_figures.grad)
    assert with_figures.stats.nonfinite_samples == 0


def test_coefficients_beyond_float32(native):
    """x_t is a hundred times x0: a and c, rounded to float32, would shift x0 by more than the sums may be off."""
    generator = torch.Generator().manual_seed(8)
    clean, noise = torch.rand(3, 40, generator=generator) + 1, torch.rand(3, 40, generator=generator) + 1
    sigma = torch.tensor([61.3, 77.7, 99.1])
    noisy = clean + sigma[:, None] * noise
    teacher = noise + 0.001 * torch.rand(3, 40, generator=generator)
    prediction = fdk.Prediction("epsilon", noisy, alpha=torch.full((3,), 0.9993), sigma=sigma)
    case = make((3, 40), heads=None, prediction=prediction)
    outcome = case.but(student=clean, teacher=teacher, fake=teacher + 0.001).run(native)
    expected = case.but(student=clean, teacher=teacher, fake=teacher + 0.001).expected()
    torch.testing.assert_close(outcome.loss.double(), torch.as_tensor(expected.loss), rtol=4e-7, atol=0)


def test_figures(native):
    for option in ("normalizer", "mask full", "epsilon, guided", "flow per frame"):
        case = held_out(OPTIONS[option])
        found, expected = case.run(native, stats=True).stats, case.run("reference", stats=True).stats
        for name in ("grad_norm", "relative_gap", "nonfinite_samples"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=0)


def test_long_sums(host, monkeypatch):
    """A thread that adds 65,536 elements: float sums become double before rounding shows."""
    monkeypatch.setitem(
        ops._FORWARD, "native", lambda *arguments: forward(host, FdivArguments(*arguments), Team(1, 1, held=0.1))
    )
    case = make((1, 65536), seed=3, heads=None)
    outcome, expected = case.run("native"), case.expected()
    torch.testing.assert_close(outcome.loss.double(), torch.as_tensor(expected.loss), rtol=2e-7, atol=0)


# ---- operands that runs of elements share: what tests/fdkernels/test_runs.py asks of every backend


@pytest.fixture
def few_lengths(monkeypatch):
    monkeypatch.setitem(test_runs.SOME, "native", (5, 64))


@pytest.mark.parametrize("name", test_runs.TABLES)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_lengths_of_runs(native, name, dtype):
    for length in (1, 3, 4, 8, 65):  # multiples of a vector, and lengths that cut one
        test_runs.shared(name, length, dtype, reduction="none").check(native)


@pytest.mark.parametrize("nonfinite", ("propagate", "zero"))
def test_a_bad_entry(native, few_lengths, nonfinite):
    test_runs.test_a_bad_scale(native, "scale", nonfinite, torch.inf)


@pytest.mark.parametrize("name", ("scale", "levels, x unread", "mask of elements"))
def test_squares_that_underflow_in_part(native, few_lengths, name):
    test_runs.test_squares_that_underflow_in_part(native, name, torch.float32)


def test_images_of_any_size(native, few_lengths):
    test_runs.test_images_of_any_size(native, 1e-22)


@pytest.mark.parametrize("name", ("student", "teacher", "noisy"))
def test_figures_of_what_a_mask_hides(native, name):
    for case in test_stats.hidden(name, torch.inf, (2, 3, 2, 4, 5)):
        found, expected = case.run(native, stats=True).stats, case.expected().stats
        for figure in ("grad_norm", "relative_gap", "nonfinite_samples"):
            assert getattr(found, figure).item() == pytest.approx(expected[figure], rel=2e-6)


def test_rows_with_a_stride_of_their_own(native):
    case = make((4, 3, 2, 4, 4), heads=None, reduction="none")
    generator = torch.Generator().manual_seed(3)
    wide = torch.rand(8, 5, 1, 1, 1, generator=generator)
    for rows in (wide[:4, :1], wide[::2, 1:4], wide[3:4, 1:4]):
        case.but(mask=rows < 0.6, scale=rows + 0.1).check(native)
        case.but(mask=(wide < 0.6)[::2, 1:4], scale=rows).check(native)


# ---- slicing


@pytest.mark.parametrize("vector", (2, 4, 8))
def test_threads_cover_a_sample_once(host, vector):
    choose = random.Random(vector)
    for _ in range(60):
        elements = choose.choice((1, 5, vector, 100, 1000, choose.randrange(1, 5000)))
        blocks, threads = choose.choice((1, 2, 3, 16, 132)), choose.choice((1, 32, 96, 512))
        share = math.ceil(math.ceil(elements / vector) / blocks) * vector
        held = choose.randrange(0, share // vector + 1)
        for aligned in (True, False):
            found = [
                (i, rank, kept)
                for rank in range(blocks)
                for thread in range(threads)
                for i, kept in host.visited(vector, elements, share, held, rank, thread, threads, aligned)
            ]
            assert sorted(i for i, _, _ in found) == list(range(elements))
            assert all(kept == ((i - rank * share) // vector < held) for i, rank, kept in found)


def test_shares_of_huge_samples(host):
    for elements in (2**31 - 1, 2**31, 2**33 + 12345, 2**40 + 1):
        for blocks in (1, 16, 132, 148):
            share = -(-elements // (8 * blocks)) * 8
            parts = [host.part(elements, share, rank) for rank in range(blocks)]
            assert parts[0][0] == 0 and parts[-1][1] == elements
            assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize("vector", (2, 4, 8))
def test_entries_of_tables(host, vector):
    choose = random.Random(vector)
    for _ in range(3000):
        rows = choose.choice((1, 2, 3, 7, 16, 1000, 2**20, 2**33 + 1))
        inner = choose.choice((1, 2, 3, 4, 8, 12, 1001, 2**20, 2**31 + 3))
        i = choose.choice((0, 1, 2**31 - 3, 2**32 - 2, 2**40 + 5, choose.randrange(2**44)))
        i = i // vector * vector  # vectors start at their own multiples
        assert host.entries(vector, rows, inner, i) == [(i + k) // inner % rows for k in range(vector)]


def test_kept_entries_of_a_mask(host):
    wide = torch.rand(9, 7, generator=torch.Generator().manual_seed(2)) < 0.5
    for mask in (wide, wide[:, 2:5], wide[::2, :6], wide[:, :1], wide[:1]):
        rows, entries = mask.shape
        given = (mask.data_ptr(), False, mask.stride(0), entries, 1)
        for step in (1, 4, 100):
            assert sum(host.kept_entries(given, rows, first, step) for first in range(step)) == mask.sum()
    shared = (wide.data_ptr(), False, 0, 7, 1)
    assert sum(host.kept_entries(shared, 3, first, 5) for first in range(5)) == 3 * wide[0].sum()


def test_division(host):
    choose = random.Random(0)
    for _ in range(3000):
        i, by = choose.randrange(2 ** choose.randrange(1, 62)), choose.randrange(1, 2 ** choose.randrange(1, 40))
        assert host.divided(i, by) == i // by


def test_the_normalizer_is_the_cases_own(native):
    """The oracle sees the state before, the backend leaves the state after: a check of this file's own plumbing."""
    case = held_out({"normalizer": lambda: normalizer(3)})
    assert isinstance(case.options["normalizer"], fdk.RatioNormalizer)
    case.check(native)
