"""The CUDA backend's plan: a pure function that covers every element once, fits the device and is the cheapest."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fdkernels import _core
from fdkernels.call_shape import CallShape
from fdkernels.devices import CLUSTER_SIZES, PRESETS
from fdkernels.plans import name_of
from tools.machine_code.cases import FORWARDS, ODD

pytestmark = pytest.mark.cpu_only("a pure function")

H200 = PRESETS["h200"]
INT32_MAX = 2**31 - 1
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
STATIC = 3 * 1024  # the kernels' static shared memory

BATCHES = (1, 2, 3, 8, 64, 133, 1000, 1025, 4096, 2**20)
ELEMENTS = (1, 2, 7, 8, 9, 1000, 3072, 16_384, 57_344, 57_345, 65_536, 786_432, 917_505, 2_096_640, 3_145_728,
            12_582_912, INT32_MAX - 8, INT32_MAX, 2**31, 2**33 + 5)  # fmt: skip

DEVICES = st.sampled_from(tuple(PRESETS.values()))
SAMPLES = st.one_of(st.integers(1, 8), st.integers(1, 5000), st.integers(1, 2**24))
SIZES = st.one_of(st.integers(1, 64), st.integers(1, 10**5), st.integers(1, 2**24), st.integers(INT32_MAX - 9, 2**34))
DTYPES = st.sampled_from(tuple(BYTES))
CALLS = st.fixed_dictionaries(
    {"student": DTYPES},
    optional={
        "teacher": DTYPES,
        "fake": DTYPES,
        "noisy": DTYPES,
        "teacher_uncond": DTYPES,
        "fake_uncond": DTYPES,
        "heads": st.integers(1, 40),
        "dmd_scale": st.booleans(),
        "with_stats": st.booleans(),
        "with_grad": st.booleans(),
        "reduction": st.sampled_from(("mean", "sum", "none")),
    },
)


def plan(batch, elements, *, limits, allowed="auto", **call):
    return _core.plan(CallShape(batch, elements, **call), limits, allowed)


def plans(batch, elements, *, limits, allowed="auto", **call):
    return _core.plans(CallShape(batch, elements, **call), limits, allowed)


def reads(call):
    """Bytes per element of all inputs, and of those that a gradient reads again."""
    call = CallShape(1, 1, **call)
    student, teacher, fake, *others = (BYTES[dtype] for dtype in call.images())
    noisy = 0 if call.noisy is None else BYTES[call.noisy]
    again = teacher + fake + sum(others) - noisy
    return again + (student + noisy if call.dmd_scale or call.with_stats else 0), again


def check(p, batch, elements, limits, call):
    check_shares(p, elements)
    check_limits(p, batch, limits, call)
    read, reread = reads(call)
    with_grad = call.get("with_grad", True)
    written = BYTES[call.get("student", "bf16")] if with_grad else 0
    most = batch * (elements * (read + written) + p["again"] * reread)
    assert p["minimum_bytes"] == pytest.approx(batch * elements * (read + written), rel=1e-15)
    assert p["minimum_bytes"] <= p["bytes"] <= most * (1 + 1e-15)
    assert p["bytes"] == p["minimum_bytes"] or p["again"] > 0
    assert p["phases"] == 1 + p["again"] / elements and p["phases"] <= 2
    assert with_grad or p["again"] == 0
    weighing = 3 if batch > 256 and call.get("bins", 0) <= 128 else 1
    assert p["launches"] == 1 + weighing * p["weigh_first"] + p["count_first"]
    assert not p["weigh_first"] or call.get("heads", 0) > 0
    assert p["blocks"] * p["prefetched"] * read <= limits["cache"] // 4
    assert 0 < p["seconds"] < math.inf and p["bytes"] / p["seconds"] < limits["bandwidth"]


def check_shares(p, elements):
    """`part_of` of csrc/core/share.h: every element belongs to one block, and a block has room for what it holds."""
    share, vector = p["share"], p["vector"]
    parts = [(min(rank * share, elements), min((rank + 1) * share, elements)) for rank in range(p["team"])]
    assert parts[0][0] == 0 and parts[-1][1] == elements
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert share % vector == 0 and p["prefetched"] % vector == 0
    assert 0 <= p["prefetched"] <= share <= INT32_MAX
    assert 1 <= p["held"] * vector <= share
    beyond = sum(max(0, math.ceil((end - begin) / vector) - p["held"]) for begin, end in parts) * vector
    assert p["again"] in (beyond, 0)
    if p["schedule"] == "cluster":
        assert p["held"] * vector == share and p["again"] == 0
    else:
        assert parts[-1][0] < elements  # no block takes part in every sum for nothing


def check_limits(p, batch, limits, call):
    wide = "fp64" in CallShape(batch, 1, **call).images()
    held = p["buffers"] * p["held"] * p["vector"] * (8 if wide else 4)
    weights = 0
    if call.get("heads", 0) > 0 and not p["weigh_first"]:
        weights = 16 * batch + 8 * call.get("bins", 0) + 4 * (batch + batch % 2)
    assert p["shared_bytes"] == held + weights
    assert p["shared_bytes"] + STATIC <= limits["shared_per_block"]
    weighing = 32 if batch <= 32 else 64
    assert p["weighing"] == (weighing if call.get("heads", 0) > 0 and not p["weigh_first"] else 0)
    assert p["threads"] % 32 == 0 and p["threads"] <= (512 if p["general"] or p["schedule"] == "grid" else 576)
    assert 128 <= p["threads"] - p["weighing"] <= 512
    assert p["blocks"] == p["team"] * p["teams"] <= INT32_MAX
    assert 1 <= p["buffers"] <= min(2, batch)
    if p["schedule"] == "grid":
        assert p["teams"] <= min(batch, 64) and p["blocks"] <= limits["multiprocessors"]
        rounds = -(-batch // p["teams"])
        assert p["buffers"] <= rounds
        assert p["team"] * ((rounds + 1) // 2) < 2**32  # a ticket counts arrivals in 32 bits
    else:
        active = dict(zip(CLUSTER_SIZES, limits["active_clusters"], strict=True))
        assert active[p["team"]] > 0 and p["teams"] <= batch
        assert p["blocks"] * p["threads"] <= limits["multiprocessors"] * 1024
    if limits["capability"] < 90:
        assert p["prefetched"] == 0 and (p["schedule"] == "grid" or p["team"] == 1)


@pytest.mark.parametrize("device", PRESETS)
@pytest.mark.parametrize("student", BYTES)
def test_sizes_from_practice_and_at_the_edges(device, student):
    for batch, elements in itertools.product(BATCHES, ELEMENTS):
        check(plan(batch, elements, limits=PRESETS[device], student=student), batch, elements, PRESETS[device],
              {"student": student})  # fmt: skip


@given(batch=SAMPLES, elements=SIZES, limits=DEVICES, call=CALLS, bins=st.integers(0, 200))
def test_any_call(batch, elements, limits, call, bins):
    if "heads" in call:
        call["bins"] = bins
    found = plans(batch, elements, limits=limits, **call)
    for p in found:
        check(p, batch, elements, limits, call)
    best = plan(batch, elements, limits=limits, **call)
    assert best == found[0] == plan(batch, elements, limits=limits, **call)
    assert len({name_of(p) for p in found}) == len(found)
    ordered = plans(batch, elements, limits=limits, **{**call, "with_grad": True, "with_stats": True})
    assert [name_of(p) for p in found] == [name_of(p) for p in ordered]
    assert [p["seconds"] for p in ordered] == sorted(p["seconds"] for p in ordered)


def not_less(after, before):
    return all(after[what] >= before[what] * (1 - 1e-12) for what in ("minimum_bytes", "seconds"))


@given(
    batch=st.integers(1, 5000), elements=SIZES, limits=DEVICES, call=CALLS, bins=st.sampled_from((0, 10, 100)),
    more=st.one_of(st.integers(1, 9), st.integers(1, 10**6)),
)  # fmt: skip
@example(264, 28_160, PRESETS["h100"], {"student": "fp32"}, 0, 512)  # fewer blocks fit a multiprocessor
@example(403, 16_384, PRESETS["h100"], {"student": "bf16", "heads": 2}, 10, 3)
def test_more_work_never_costs_less(batch, elements, limits, call, bins, more):
    if "heads" in call:
        call["bins"] = bins
    p = plan(batch, elements, limits=limits, **call)
    assert not_less(plan(batch + more, elements, limits=limits, **call), p)
    assert not_less(plan(batch, elements + more, limits=limits, **call), p)


@pytest.mark.parametrize("device", PRESETS)
@pytest.mark.parametrize("heads", (1, 4, 64))
def test_weights_that_move_to_a_launch_of_their_own_leave_no_dip(device, heads):
    most = min(1024, 4096 // heads)
    for elements in (*ELEMENTS[:-4], 24_000, 35_911, 50_000):
        row = [plan(b, elements, limits=PRESETS[device], heads=heads, bins=10) for b in range(most - 2, most + 3)]
        assert all(not_less(b, a) for a, b in itertools.pairwise(row))


@given(batch=SAMPLES, elements=SIZES, limits=DEVICES, call=CALLS, factor=st.floats(1, 100))
def test_a_faster_memory_never_costs_time(batch, elements, limits, call, factor):
    faster = {**limits, "bandwidth": limits["bandwidth"] * factor}
    slow, fast = (plan(batch, elements, limits=each, **call) for each in (limits, faster))
    assert fast["seconds"] <= slow["seconds"] * (1 + 1e-12)


@given(batch=SAMPLES, elements=st.integers(1, 10**6), call=CALLS, missing=st.sets(st.sampled_from(CLUSTER_SIZES[1:])))
def test_a_size_that_cannot_be_scheduled_is_not_taken(batch, elements, call, missing):
    active = [0 if size in missing else n for size, n in zip(CLUSTER_SIZES, H200["active_clusters"], strict=True)]
    limits = {**H200, "active_clusters": active}
    everywhere, here = (plans(batch, elements, limits=each, **call) for each in (H200, limits))
    assert here == [p for p in everywhere if p["schedule"] == "grid" or p["team"] not in missing]


def test_the_next_smaller_where_the_largest_cannot_be_scheduled():
    active = [(*H200["active_clusters"][: 5 - without], *(0,) * without) for without in range(5)]
    few = [{**H200, "active_clusters": each} for each in active]
    assert [plan(1, 50_000, limits=limits, allowed="cluster")["team"] for limits in few] == [16, 8, 4, 2, 1]


@given(batch=SAMPLES, elements=SIZES, limits=DEVICES, call=CALLS)
def test_neither_figures_nor_a_gradient_change_the_order_of_the_sums(batch, elements, limits, call):
    """Otherwise, asking for them would change bits of the loss."""
    fields = ("schedule", "team", "teams", "threads", "share", "held", "weigh_first")
    found = {
        tuple(p[name] for name in fields)
        for stats, grad in itertools.product((False, True), repeat=2)
        for p in (plan(batch, elements, **{**call, "with_stats": stats, "with_grad": grad}, limits=limits),)
    }
    assert len(found) == 1


@pytest.mark.parametrize("allowed", ("grid", "grid:2", "cluster", *(f"cluster:{size}" for size in CLUSTER_SIZES)))
def test_allowed(allowed):
    for batch, elements in itertools.product((2, 64, 2000), (1, 3072, 40_000)):
        p = plan(batch, elements, limits=H200, heads=3, bins=10, allowed=allowed)
        assert allowed in (name_of(p), p["schedule"])
        every = plans(batch, elements, limits=H200, heads=3, bins=10)
        assert p == next(q for q in every if allowed in (name_of(q), q["schedule"]))


def test_teams_of_a_grid():
    """As many teams as asked for, without idle ones. Unasked: as many as there can be, and powers of two below."""
    a100 = PRESETS["a100"]
    for batch, asked, teams in ((8, 3, 3), (8, 8, 8), (8, 64, 8), (1, 2, 1), (200, 64, 54), (200, 7, 7)):
        p = plan(batch, 65_536, limits=a100, allowed=f"grid:{asked}")
        assert (p["teams"], p["team"]) == (teams, 108 // teams)
    found = plans(200, 65_536, limits=a100, allowed="grid")
    assert sorted(p["teams"] for p in found) == [1, 2, 4, 8, 16, 32, 54]
    assert [p["teams"] for p in plans(2, 65_536, limits={**a100, "multiprocessors": 1}, allowed="grid")] == [1]


def test_without_clusters_samples_go_side_by_side():
    """SDXL: eight waits in turn cost much more than eight teams of 13 blocks."""
    call = {"limits": PRESETS["a100"], "heads": 1}
    p, one = plan(8, 65_536, **call), plan(8, 65_536, **call, allowed="grid:1")
    assert (name_of(p), p["blocks"], p["buffers"]) == ("grid:8", 104, 1)
    assert p["seconds"] < 20e-6 and one["seconds"] > 30e-6


def test_nothing_that_is_allowed_can_run():
    with pytest.raises(ValueError, match="allowed: .* hold a sample of 60000 elements, got cluster:1"):
        plan(1, 60_000, limits=H200, allowed="cluster:1")
    with pytest.raises(ValueError, match="got cluster:2"):
        plan(1, 8, limits=PRESETS["a100"], allowed="cluster:2")
    assert plans(1, 60_000, limits=H200, allowed="cluster:1") == []


PRACTICE = {
    "CIFAR": (64, 3 * 32 * 32, {}, ("cluster", 1, 1)),
    "ImageNet-64": (32, 3 * 64 * 64, {}, ("cluster", 1, 1)),
    "SD1.5": (8, 4 * 64 * 64, {}, ("cluster", 8, 1)),
    "SDXL": (8, 4 * 128 * 128, {}, ("cluster", 8, 1)),
    "SDXL fp32, x_t, guided": (8, 4 * 128 * 128, {"student": "fp32", "noisy": "fp32", "teacher_uncond": "fp32"},
                               ("cluster", 8, 1)),
    "512 pixels": (8, 3 * 512 * 512, {}, ("grid", 16, 1)),
    "Wan": (2, 16 * 21 * 60 * 104, {}, ("grid", 66, 1)),
    "Wan, one": (1, 16 * 21 * 60 * 104, {}, ("grid", 132, 1)),
    "1024 pixels": (4, 3 * 1024 * 1024, {"student": "fp32"}, ("grid", 132, 2)),
    "2048 pixels": (4, 3 * 2048 * 2048, {}, ("grid", 132, 1)),
    "2^31 elements": (1, 2**31, {}, ("grid", 132, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRACTICE)
def test_practice_on_an_h200(name):
    batch, elements, call, expected = PRACTICE[name]
    p = plan(batch, elements, limits=H200, heads=1, bins=10, **call)
    assert (p["schedule"], p["team"], p["buffers"]) == expected
    assert p["launches"] == 1
    # What a team holds in float32: 224 KB per block, less the few weights of such a small batch.
    held = p["team"] * (H200["shared_per_block"] - STATIC) // 4
    assert p["again"] == pytest.approx(max(0, elements - held), rel=1e-2, abs=0)


@pytest.mark.parametrize(
    ("batch", "options", "first"),
    [
        (512, {"heads": 8}, 0),
        (512, {"heads": 9}, 1),
        (1025, {"heads": 1}, 1),
        (64, {"heads": 64}, 0),
        (64, {"heads": 65}, 1),
        (8, {"heads": 1, "bins": 128}, 0),
        (8, {"heads": 1, "bins": 129}, 1),
        (2000, {}, 0),
    ],
)
def test_weights_of_a_large_batch_are_computed_first(batch, options, first):
    p = plan(batch, 3072, limits=H200, **options)
    assert (p["weigh_first"], p["launches"]) == (first, 1 + first * (3 if batch > 256 else 1))
    large = [plan(b, 12_288, limits=H200, heads=4)["weigh_first"] for b in (1024, 1025)]
    assert large == [False, True]


@pytest.mark.parametrize("device", PRESETS)
def test_weights_are_computed_once_where_float64_is_slow(device):
    """512 samples weighed in each of three blocks of a multiprocessor: 61 µs at a float64 rate of 1/64, 2 µs at 1/2."""
    slow = PRESETS[device]["capability"] in (89, 120)
    for batch in (64, 512):
        p = plan(batch, 3072, limits=PRESETS[device], heads=1, bins=10)
        assert p["weigh_first"] == (slow and batch > 64)
        without = plan(batch, 3072, limits=PRESETS[device])
        assert p["seconds"] - without["seconds"] < 24e-6
    b300 = {**PRESETS["b200"], "capability": 103}
    assert plan(512, 3072, limits=b300, heads=1)["weigh_first"]


def test_weights_are_computed_first_where_samples_need_their_memory():
    """1,024 samples of 140 KB: with 20 KB of weights beside it, no sample fits a block of an A100."""
    call = {"limits": PRESETS["a100"], "heads": 1}
    p, small = plan(1024, 35_911, **call), plan(16, 35_911, **call)
    assert p["weigh_first"] and p["schedule"] == "cluster" and not small["weigh_first"]
    assert p["seconds"] < 225e-6


@pytest.mark.parametrize(
    ("rows", "entries", "reduction", "first"),
    [(1, 16_384, "mean", 0), (4, 4096, "mean", 0), (4, 8192, "mean", 1), (1, 32_768, "mean", 1), (4, 1, "mean", 0),
     (4, 32_768, "sum", 0), (4, 32_768, "none", 0)],
)  # fmt: skip
def test_a_large_mask_is_counted_first(rows, entries, reduction, first):
    p = plan(4, 32_768, limits=H200, mask=(rows, entries), reduction=reduction)
    assert (p["count_first"], p["launches"]) == (first, 1 + first)


def test_counts_that_would_overflow():
    most = 132 * (INT32_MAX // 8) * 8
    assert plan(1, most, limits=H200)["share"] <= INT32_MAX
    with pytest.raises(ValueError, match="allowed: "):
        plan(1, most + 1, limits=H200)
    assert plan(2**26 - 2**21, 1024, limits=H200, allowed="grid:1")["schedule"] == "grid"
    with pytest.raises(ValueError, match="allowed: "):
        plan(2**27, 1024, limits=H200, allowed="grid:1")
    p = plan(2**40, 1024, limits=H200)
    assert p["bytes"] == 2.0**53 and p["schedule"] == "cluster"


def loads_of(call):
    """(type combination, whether it has more than x, τ and f, elements of a vector), as the launcher chooses."""
    names = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
    if call.dtype() == torch.float64:
        return "any_f64", True, 2
    students = {v.dtype for v in (call.student, call.noisy) if v is not None}
    predictions = {v.dtype for v in call.images() if v is not call.student and v is not call.noisy}
    if len(students) > 1 or len(predictions) > 1 or (students != predictions and predictions != {torch.float32}):
        return "any_f32", True, 4
    more = (call.mask.entries, call.noisy, call.teacher_uncond, call.fake_uncond)
    multiplier = call.multiplier.entries
    general = call.prediction != "sample" or any(v is not None for v in more)
    general = general or (multiplier is not None and multiplier.shape[1] > 1)
    name, same = names[call.student.dtype], students == predictions
    return name if same else f"{name}_f32", general, 8 if same and name != "f32" else 4


@pytest.mark.parametrize("name", (*FORWARDS, *ODD))
def test_the_kernel_of_a_call(name):
    call = {**FORWARDS, **ODD}[name]
    p = _core.plan(call.shape(), H200)
    types, general, vector = loads_of(call)
    assert (p["loads"].replace("fp", "f"), p["general"], p["vector"]) == (types, general, vector)
    if call.dmd_scale or call.with_stats:  # then x is read
        bytes_an_element = sum(v.element_size() for v in call.images()) + call.student.element_size() * call.with_grad
        assert p["minimum_bytes"] == call.student.numel() * bytes_an_element
