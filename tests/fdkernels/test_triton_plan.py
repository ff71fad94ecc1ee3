"""Triton's launch plan: a pure function that covers every element once, fits its limits, and is obeyed."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdkernels._triton.plan import needs_int64, next_power_of_2, spread
from fdkernels.call_shape import CallShape
from fdkernels.fdiv import triton_launch, triton_plan
from fdkernels.fdiv.triton_plan import Limits
from tools.machine_code.cases import call

pytestmark = pytest.mark.cpu_only("a pure function")

GPU = Limits()
EVERY_IMAGE = {"noisy": "bf16", "teacher_uncond": "bf16", "fake_uncond": "bf16"}
ELEMENTS = (
    1,
    2,
    3,
    5,
    31,
    1000,
    3072,
    12_288,
    16_384,
    16_385,
    65_536,
    786_432,
    2_096_640,
    2**31 - 1_000_000,
    2**31 - 5000,
    2**31 - 1,
    2**31,
    2**33 + 5,
)
BATCHES = (1, 2, 3, 8, 64, 1000, 4096)


def plan(batch, elements, **options):
    return triton_plan.plan(CallShape(batch, elements, **options), GPU)


def check_pieces(programs, tiles, tile, elements):
    """Each program's [begin, end), as the kernels compute it, follows the one before."""
    length = tiles * tile
    pieces = [(p * length, min((p + 1) * length, elements)) for p in range(programs)]
    assert pieces[0][0] == 0 and pieces[-1][1] == elements
    assert all(begin < end for begin, end in pieces)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))


def check(planned, batch, elements):
    assert all(v == next_power_of_2(v) for v in (planned.tile, planned.samples, planned.pieces, planned.num_warps))
    if elements < 2**31 + 2**20:
        check_pieces(planned.programs, planned.tiles, planned.tile, elements)
    assert batch * planned.programs < 2**31
    # The end of the last program's share is computed before it is cut to the sample's end.
    assert planned.wide_offsets or planned.programs * planned.tiles * planned.tile <= 2**31 - 1
    if planned.schedule == "whole":
        assert planned.programs == planned.tiles == 1 and planned.tile >= elements
    else:
        assert planned.tiles <= GPU.most_tiles
        # The program that reports holds a block of samples × pieces in registers.
        assert planned.samples * planned.pieces <= 4096 or planned.samples == 1


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("options", ({}, EVERY_IMAGE))
def test_every_element_belongs_to_one_program(batch, elements, options):
    check(plan(batch, elements, heads=2, bins=10, **options), batch, elements)


@given(
    batch=st.integers(1, 5000),
    elements=st.integers(1, 10**7),
    general=st.booleans(),
    heads=st.integers(0, 40),
    bins=st.integers(0, 200),
    mask=st.integers(0, 10**7),
    student=st.sampled_from(("bf16", "fp64")),
)
def test_any_call(batch, elements, general, student, heads, bins, mask):
    options = {"student": student, "heads": heads, "bins": bins, "mask": (1, mask) if mask else None}
    planned = plan(batch, elements, **options, noisy="bf16" if general else None)
    check(planned, batch, elements)
    if planned.schedule == "whole" and heads and not planned.weigh_first:
        assert planned.samples >= batch and planned.samples * max(bins, 1) <= GPU.weighed
    assert 1 <= planned.launches <= 2


@given(elements=st.integers(1, 10**7), tile=st.sampled_from((64, 1024)), programs=st.integers(0, 2000))
def test_a_run_is_shared_without_a_gap(elements, tile, programs):
    tiles, found = spread(elements, tile, programs)
    check_pieces(found, tiles, tile, elements)
    assert found <= max(programs, 1)
    tiles, found = spread(elements, tile, programs, most_tiles=16)
    check_pieces(found, tiles, tile, elements)
    assert tiles <= 16


def test_a_larger_sample_is_never_held_where_a_smaller_is_not():
    schedules = [plan(8, n).schedule for n in range(1, 40_000, 97)]
    assert schedules == sorted(schedules, reverse=True) and set(schedules) == {"whole", "split"}


def test_large_batches_have_fewer_programs_a_sample():
    programs = [plan(batch, 786_432).programs for batch in (1, 2, 4, 8, 16, 64, 256)]
    assert programs == sorted(programs, reverse=True)


@pytest.mark.parametrize(
    ("batch", "elements", "options", "launches"),
    [
        (64, 3 * 32 * 32, {"heads": 3, "bins": 10}, 1),  # CIFAR
        (32, 3 * 64 * 64, {"heads": 3, "bins": 10}, 1),  # ImageNet-64
        (8, 4 * 64 * 64, {"heads": 1, "bins": 10}, 1),  # SD1.5
        (8, 4 * 128 * 128, {"heads": 1, "bins": 10}, 2),  # SDXL
        (2, 16 * 21 * 60 * 104, {}, 2),  # Wan
        (2048, 3 * 32 * 32, {"heads": 3, "bins": 10}, 2),  # weights in a launch of their own
        (2048, 3 * 32 * 32, {}, 1),
        (64, 3 * 32 * 32, {"mask": (64, 3 * 32 * 32)}, 2),  # an N-sized mask is counted while reducing
    ],
)
def test_launches(batch, elements, options, launches):
    assert plan(batch, elements, **options).launches == launches


def test_offsets_need_64_bits_from_2_to_the_31_on():
    assert not needs_int64(2**31 - 1) and needs_int64(2**31)
    assert not plan(1, 2**31 - 2**16).wide_offsets
    assert plan(1, 2**31 - 2**16 + 1).wide_offsets  # 32,768 programs of 16 tiles of 4,096 end at 2³¹
    # Many samples need none: where a sample starts is always in 64 bits.
    assert not plan(4096, 2**24).wide_offsets


def test_the_launcher_obeys_the_plan(monkeypatch):
    """Another plan gives another launch: nothing in between decides for itself."""
    monkeypatch.setattr(triton_plan, "LIMITS", GPU)
    arguments = call((8, 4, 128, 128))
    planned = triton_plan.plan(arguments.shape())
    changed = planned._replace(tile=512, tiles=4, programs=32, num_warps=2, wide_offsets=True, samples=4, pieces=16)
    monkeypatch.setattr(triton_launch, "plan", lambda *_, **__: changed)
    reduce, apply = triton_launch.forward_launches(arguments)[1]
    for launch in (reduce, apply):
        assert launch.programs == 8 * 32
        assert (launch.options["TILE"], launch.options["num_warps"]) == (512, 2)
        assert str(launch.options["OFFSET"]) == "int64"
        assert {32, 4} <= {v for v in launch.arguments if isinstance(v, int)}
    assert (reduce.options["SAMPLES"], reduce.options["PIECES"]) == (4, 16)
    monkeypatch.setattr(triton_launch, "plan", lambda *_, **__: planned._replace(schedule="whole", tile=65_536))
    (only,) = triton_launch.forward_launches(arguments)[1]
    assert only.programs == 8 and only.options["TILE"] == 65_536


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_one_launch_from_logits_to_gradient(monkeypatch, dtype):
    monkeypatch.setattr(triton_plan, "LIMITS", GPU)
    _, launches = triton_launch.forward_launches(call((64, 3, 32, 32), dtype))
    assert [launch.kernel.__name__ for launch in launches] == ["fdiv_fwd_kernel"]
