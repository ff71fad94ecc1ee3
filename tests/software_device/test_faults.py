"""Every fault that the software device has to see, in a kernel with the fault and in the same kernel without it."""

import itertools
import re

import pytest

from tests.software_device import build, device

# By name: a pattern of what the device reports.
FAULTS = {
    "dynamic_out_of_bounds": "write of 4 bytes beyond the shared memory of block 0",
    "static_out_of_bounds": "write of 4 bytes (beyond the|0 bytes behind static) shared memory of block",
    "dynamic_read_out_of_bounds": "read of 4 bytes (beyond the|0 bytes behind dynamic) shared memory of block 0",
    "static_read_out_of_bounds": "read of 4 bytes (beyond the|0 bytes behind static) shared memory of block",
    "cluster_out_of_bounds": "write of 4 bytes (beyond the|0 bytes behind static) shared memory of block",
    "global_read_out_of_bounds": "read of 4 bytes 0 bytes behind the module's memory, .*planted.cu:\\d+, thread 5",
    "uninitialized_global": "read of memory that nothing has written, at byte (28|284) of memory of cudaMalloc",
    "uninitialized_shared": "read of memory that nothing has written, at byte 28 of static shared memory",
    "global_out_of_bounds": "write of 4 bytes 0 bytes behind the module's memory, .*planted.cu:\\d+, thread 5 of block",
    "misaligned": "misaligned write of 16 bytes of the module's memory",
    "shared_race": "race: (read after a write|write after a read) by thread",
    "warp_race": "race: (read after a write|write after a read) by thread",
    "global_race": "race: write after a write by thread 0 of block",
    "relaxed_flag": "race: read after a write by thread 0 of block 1",
    "fenced_flag": "race: read after a write by thread 0 of block 1",
    "relaxed_store": "race: read after a write by thread 0 of block 1",
    "plain_beside_atomic": "race: (write after an atomic read by thread 0 of block 0|read after a write)",
    "read_only_load": "read-only load of memory that this launch has written",
    "divergent_barriers": "divergent barriers: __syncthreads of line",
    "cluster_barrier_alone": "divergent barriers: __syncthreads of line",
    "left_before_barrier": "divergent barriers: ",
    "divergent_warp": "divergent warp: a collective of line",
    "shuffle_from_outside": "a shuffle of line \\d+ from a lane that its mask leaves out",
    "halves_of_warps": "a named barrier of line \\d+ at which a part of a warp has arrived",
    "arrival_in_vain": "a block ends, and 32 threads have arrived at named barrier 2 in vain",
    "livelock": "livelock: 200000 steps, and no end",
    "waiting_grid": "deadlock: .*planted_barriers.cuh:\\d+ \\(as thread 0 of block \\d+ of waiting_grid_kernel\\)",
    "deadlock": "deadlock: .*126 threads wait at __syncthreads, planted_barriers.cuh:\\d+",
    "collectives": "a wrong value",
    "block_scope": "an atomic of block scope, where another block's are",
    "prefetch": "a prefetch that ends 16 bytes behind the module's memory",
    "left_cluster": "access to static shared memory of block 1, which has left its cluster",
    "not_begun_cluster": "access to static shared memory of block 1, which may not have begun",
    "ticket": "a ticket that is 2, not zero, when all is done: number 0",
    "too large a cooperative grid": "too many blocks in cooperative launch",
    "too many threads": "invalid configuration argument",
    "too much shared memory": "invalid argument",
    "too large a cluster": "invalid configuration argument",
    "a fill beside a kernel": "race: write after a write by",
    "streams without an event": "race: write after a write by",
    "a sync in a capture": "operation not permitted when stream is capturing",
}
# This fault shows only if the first block is held back.
LATE = ("left_cluster",)


@pytest.fixture(scope="module")
def planted() -> device.Software:
    library = build.library(90, kernels=[build.HERE / "planted.cu"], with_ops=False)
    software = device.Software(library)
    software.library.software_planted.restype = device.ctypes.c_char_p
    software.use(device.SMALL._replace(multiprocessors=16))
    software.library.software_most_steps(device.ctypes.c_uint64(200_000))
    return software


def run(planted, name, broken):
    found = planted.library.software_planted(name.encode(), device.ctypes.c_bool(broken))
    return None if found is None else found.decode()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(planted, name):
    seen = []
    for scheduler, seed in itertools.product(device.SCHEDULERS, range(4)):
        planted.schedule(scheduler, seed)
        assert run(planted, name, broken=False) is None
        seen.append(run(planted, name, broken=True))
    assert any(seen) if name in LATE else all(seen)
    assert all(re.search(FAULTS[name], text) for text in seen if text), seen


@pytest.mark.parametrize("name", ("shared_race", "deadlock"))
def test_a_fault_leaves_the_device_in_order(planted, name):
    planted.schedule("in order")
    for _ in range(3):
        assert run(planted, name, broken=True) is not None
        assert run(planted, name, broken=False) is None
