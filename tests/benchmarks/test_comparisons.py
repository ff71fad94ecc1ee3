"""Verdicts within a run, and --compare: what is worse, what is noise, and what is not comparable."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks.cases import setting
from benchmarks.report import comparisons, reading, terminal

PLAIN = ("wall_us", "wall_low_us", "wall_high_us", "call_us", "call_low_us", "call_high_us")


def row(variant="native", median=10.0, **more):
    return {
        "op": "fused_fdiv_loss", "shape_name": "sdxl", "shape": [8, 4, 128, 128], "dtype": "bf16", "formula": "fastgen",
        "variant": variant, "ours": True, "wrong": False, "wrong_because": None, "time_us": median,
        "low_us": median - 1, "high_us": median + 1, "timed_by": "calls", "launches": 2, "syncs": None,
        "extra_bytes": 1000, "gradient_error": 1e-3, **dict.fromkeys(PLAIN), **more,
    }  # fmt: skip


def peer(median=20.0, **more):
    return row("fastgen eager", median, **{"ours": False, **more})


def on_gpu(wall=50.0, call=20.0, **more):
    """Captured in a graph, with the times of plain calls."""
    times = [at for median in (wall, call) for at in (median, 0.98 * median, 1.02 * median)]
    return row(**{"timed_by": "graph", "syncs": 0, **dict(zip(PLAIN, times, strict=True)), **more})


def report(*rows, **setting):
    here = {"kind": "cpu", "device": "a CPU", "threads": 2, "torch": "2.13", **setting}
    return {"schema": 1, "setting": here, "ceiling": {}, "rows": list(rows), "comparisons": [], "skipped": []}


@pytest.mark.parametrize(
    ("ours", "other", "verdict"),
    [(10.0, 20.0, "faster"), (20.0, 10.0, "slower"), (10.0, 11.5, "no difference"), (10.0, 10.0, "no difference")],
)
def test_verdicts_are_printed_wins_and_losses_alike(ours, other, verdict):
    (found,) = comparisons.compared([row(median=ours), peer(other), peer(dtype="fp32")])
    assert found["verdict"] == verdict and found["ratio"] == pytest.approx(other / ours)
    ends = ((other - 1) / (ours + 1), (other + 1) / (ours - 1))
    assert (found["low"], found["high"]) == pytest.approx(ends)
    text = terminal.verdict_text(found, several=False)
    assert ("SLOWER" in text) == (verdict == "slower") and ("no different" in text) == (verdict == "no difference")
    assert any(verdict in line for line in terminal.summary([found])[1:]) == (verdict != "faster")


@pytest.mark.parametrize("rows", [[row(wrong=True), peer()], [row(), peer(wrong=True)]])
def test_a_wrong_row_is_not_compared(rows):
    (found,) = comparisons.compared(rows)
    assert found["verdict"] == "wrong" and found["ratio"] is None
    assert terminal.verdict_text(found, several=False) == "not compared"


@pytest.mark.parametrize(("timed_by", "ratio"), [("wall", 2.0), ("graph", 10.0)])
def test_a_graph_is_not_compared_with_plain_calls(timed_by, ratio):
    other = on_gpu(wall=100.0, variant="fastgen eager", median=100.0, ours=False, timed_by=timed_by)
    (found,) = comparisons.compared([on_gpu(wall=50.0), other])
    assert (found["ratio"], found["timed_by"]) == (ratio, timed_by)


def compare(old, new, before=None, now=None):
    """(what is worse, the verdict) of two rows, in two settings."""
    verdict = comparisons.changed(report(old, **(before or {})), report(new, **(now or before or {})), 0.1)
    return [change.what for change in verdict.regressions], verdict


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (row(), row(), None),
        (row(), row(median=20.0), "10 µs (9 to 11) before, 20 (19 to 21) now, +100 %"),
        (row(), row(low_us=10.5, time_us=13.0, high_us=15.0), None),  # intervals overlap
        (row(), row(low_us=11.5, time_us=11.8, high_us=12.1), None),  # apart, but by less than the tolerance
        (row(), row(launches=3), "launches 2 before, 3 now"),
        (row(), row(extra_bytes=2000), "extra_bytes 1,000 before, 2,000 now"),
        (row(), row(gradient_error=2e-3), "error 1.0e-03 before, 2.0e-03 now"),
        (row(), row(gradient_error=1.4e-3), None),
        (row(gradient_error=1e-8), row(gradient_error=1.9e-7), None),  # a few roundings
        (row(gradient_error=1e-8), row(gradient_error=2.1e-7), "error 1.0e-08 before, 2.1e-07 now"),
        (row(), row(wrong=True, wrong_because="off by 1"), "wrong now: off by 1"),
        (row(), row(median=4.0, launches=1), None),  # better
        (peer(10.0), peer(90.0), None),  # a peer's
        (row(), peer(), "no longer there"),
        (on_gpu(), on_gpu(call=400.0),
         "host's part of a call 20 µs (19.6 to 20.4) before, 400 (392 to 408) now, +1900 %"),
        (on_gpu(), on_gpu(wall=90.0), "plain calls 50 µs (49 to 51) before, 90 (88.2 to 91.8) now, +80 %"),
        (on_gpu(), on_gpu(syncs=1), "syncs 0 before, 1 now"),
        # A graph's time and that of plain calls are two things: that it is lost is what is worse.
        (on_gpu(), on_gpu(timed_by="wall", median=50.0), "no longer captured in a CUDA graph"),
        (on_gpu(timed_by="wall", median=10.0), on_gpu(median=50.0), None),
        # Fields that older reports lack, and times that are not there.
        (row(), {key: row()[key] for key in reading.NEEDED}, None),
        (row(), row(time_us=None, low_us=None, high_us=None), None),
    ],
)  # fmt: skip
def test_what_is_worse(old, new, said):
    assert compare(old, new)[0] == ([] if said is None else [said])


BUSY, APART = "other work took part of the CPU", "another machine: times are not compared"


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"cpu_busy_before_percent": 9.9}, {"cpu_busy_while_timing_percent": 9.9}, None),
        ({"cpu_busy_before_percent": 50.5}, {}, f"in the older run {BUSY}"),
        ({}, {"cpu_busy_while_timing_percent": 10.1}, f"in the newer run {BUSY}"),
        ({"threads": 8, "cores": 2}, {"threads": 8, "cores": 2}, "8 threads shared 2 cores"),
        ({}, {"device": "another CPU"}, APART),
        ({}, {"threads": 4}, APART),
        ({"cores": 2}, {"cores": 64}, "cores: 2 before, 64 now"),
        ({}, {"cores": 64}, None),  # the older report does not tell
        ({}, {"kind": "cuda", "device": "a GPU"}, APART),
    ],
)
def test_times_count_on_the_same_machine_at_rest_alone(before, now, said):
    """Launches do on another of the same kind, rightness everywhere."""
    worse, verdict = compare(row(), row(median=90.0, launches=3), before, now or {"torch": "2.13"})
    assert verdict.times_compared == (said is None) and any("+800 %" in text for text in worse) == (said is None)
    assert said is None or any(said in note for note in verdict.notes)
    assert ("launches 2 before, 3 now" in worse) == ("kind" not in now)
    assert len(compare(row(), row(wrong=True), before, now)[0]) == 1


def test_a_busy_host_slows_no_graph():
    busy = {"kind": "cuda", "cpu_busy_before_percent": 80.0}
    worse, _ = compare(on_gpu(), on_gpu(median=20.0, wall=500.0, call=400.0), {"kind": "cuda"}, busy)
    assert worse == ["10 µs (9 to 11) before, 20 (19 to 21) now, +100 %"]
    worse, verdict = compare(on_gpu(timed_by="wall"), on_gpu(timed_by="wall", median=90.0), busy)
    assert (worse, verdict.times_compared) == ([], False)


def test_a_row_that_is_lost_is_worse_where_the_newer_run_had_its_case():
    verdict = comparisons.changed(report(row(), row("triton")), report(row("triton"), row("reference")), 0.1)
    (lost,) = verdict.regressions
    assert str(lost) == "worse  fused_fdiv_loss, sdxl, bf16, fastgen, native, 8×4×128×128: no longer there"
    assert [note.split(":")[0] for note in verdict.notes] == ["new"]
    for other in (row(shape_name="wan"), row(shape=[4, 4, 128, 128])):
        _, verdict = compare(row(), other)
        assert (verdict.compared, verdict.times_compared, verdict.changes) == (0, False, [])
        assert "the two have no row in common" in verdict.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ({"schema": 1}, "setting: expected a dict, got NoneType"),
        (report(row(), {**row(), "shape": 5}), "rows: row 1, shape: expected a list of sizes, got 5"),
        (report({**row(), "low_us": "9"}), "rows: row 0, low_us: expected a number, got '9'"),
        (report(row(), 3), "rows: row 1 has no 'op'"),
    ],
)
def test_files_that_are_no_reports(content, message, tmp_path):
    file = tmp_path / "old.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):
        reading.load(file)


@pytest.mark.skipif(not pathlib.Path("/proc/stat").exists(), reason="only Linux tells")
def test_other_work_is_what_is_not_idle_and_not_ours(monkeypatch):
    """A process beside this one; then 1,000 ticks on all cores, of which 300 were idle and 500 ours."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        found = setting.cpu_busy_percent(1.0)
        other.kill()
    assert found is not None and found > 60 / os.cpu_count()
    readings = iter([(10_000, 4_000.0), (11_000, 4_800.0)])
    monkeypatch.setattr(setting.OtherWork, "ticks", staticmethod(lambda: next(readings)))
    assert setting.OtherWork().percent() == 20.0
