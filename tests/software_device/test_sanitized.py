"""Address and undefined-behavior sanitizers on the software device see planted faults, and nothing in the library.

`make software-device` runs all small cases in every way (`python -m tests.software_device.sanitized`).
"""

import ctypes
import json
import re

import pytest

from tests.software_device import build, device, sanitized

pytestmark = pytest.mark.skipif(sanitized.runtime() is None, reason=sanitized.MISSING)

# Faults that only a sanitizer sees, and a pattern of its report.
UNDEFINED = {
    "beyond_local_array": "stack-buffer-overflow .*planted_undefined.cu:\\d+, thread 9 of block 0",
    "out_of_scope": "stack-use-after-scope .*planted_undefined.cu:\\d+, thread 0 of block 0",
    "shift": "planted_undefined.cu:\\d+:\\d+: runtime error: shift exponent 32 is too large",
    "signed_overflow": "planted_undefined.cu:\\d+:\\d+: runtime error: signed integer overflow",
    "cast": "planted_undefined.cu:\\d+:\\d+: runtime error: 3e\\+09 is outside the range of representable values",
    "index": "planted_undefined.cu:\\d+:\\d+: runtime error: index 4 out of bounds for type",
}
# Faults that the device itself sees by the calls for accesses, which a sanitized library does not have.
BOUNDS = {
    "dynamic_out_of_bounds": "use-after-poison .*planted.cu:\\d+, thread 63 of block 0",
    "dynamic_read_out_of_bounds": "use-after-poison .*planted.cu:\\d+, thread 9 of block 0",
    "cluster_out_of_bounds": "use-after-poison .*planted.cu:\\d+, thread 3 of block 0",
    "static_out_of_bounds": "insufficient space for an object of type 'float'|use-after-poison",
    "static_read_out_of_bounds": "insufficient space for an object of type 'const unsigned int'|use-after-poison",
    "global_out_of_bounds": "index 256 out of bounds for type|global-buffer-overflow",
}


@pytest.mark.parametrize(("source", "faults"), (("planted_undefined.cu", UNDEFINED), ("planted.cu", BOUNDS)))
def test_faults_are_reported(source, faults):
    sanitized.planted_library(source)
    done = sanitized.child(("--planted", source, *faults), capture=True)
    assert done.returncode == 0, done.stderr
    for name, (sound, broken) in json.loads(done.stdout).items():
        assert sound == [0, ""], name
        code, text = broken
        assert code != 0 and re.search(faults[name], text, re.DOTALL), f"{name}: {text}"


def test_the_device_alone_does_not_see_them():
    software = device.Software(build.library(90, kernels=[build.HERE / "planted_undefined.cu"], with_ops=False))
    software.library.software_planted.restype = ctypes.c_char_p
    software.use(device.SMALL)
    for name in UNDEFINED:
        assert software.library.software_planted(name.encode(), ctypes.c_bool(True)) is None, name


def test_small_cases():
    sanitized.library(90, few=True)
    plans, cases = (
        ("auto", "cluster:2", "grid:2"),
        ("one element", "mask of every element", "bad samples", "odd and long"),
    )
    done = sanitized.child(("--few", "--architectures", "90", "--plans", *plans, "--cases", *cases), capture=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok") == len(plans) * len(cases), done.stdout
