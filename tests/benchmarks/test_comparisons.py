"""Verdicts within a run, and --compare: what is worse, what is noise, and what is not comparable."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

import benchmarks.__main__ as cli
from benchmarks import comparisons, setting, terminal

PLAIN = ("wall_us", "wall_low_us", "wall_high_us", "call_us", "call_low_us", "call_high_us")


def on_gpu(wall=50.0, call=20.0, **more):
    """Captured in a graph, with the times of plain calls."""
    times = [at for median in (wall, call) for at in (median, 0.98 * median, 1.02 * median)]
    return row(**{"timed_by": "graph", "syncs": 0, **dict(zip(PLAIN, times, strict=True)), **more})


def row(variant="native", median=10.0, spread=1.0, ours=True, **more):
    return {
        "op": "fused_fdiv_loss", "shape_name": "sdxl", "shape": [8, 4, 128, 128], "dtype": "bf16", "formula": "fastgen",
        "variant": variant, "ours": ours, "wrong": False, "wrong_because": None, "time_us": median,
        "low_us": median - spread, "high_us": median + spread, "timed_by": "calls", "launches": 2, "syncs": None,
        "extra_bytes": 1000, "gradient_error": 1e-3, **dict.fromkeys(PLAIN), **more,
    }  # fmt: skip


def report(*rows, **setting):
    here = {"kind": "cpu", "device": "a CPU", "threads": 2, "torch": "2.13", **setting}
    return {"schema": 1, "setting": here, "ceiling": {}, "rows": list(rows), "comparisons": [], "skipped": []}


@pytest.mark.parametrize(
    ("ours", "peer", "verdict"),
    [(10.0, 20.0, "faster"), (20.0, 10.0, "slower"), (10.0, 11.5, "no difference"), (10.0, 10.0, "no difference")],
)
def test_verdicts(ours, peer, verdict):
    (found,) = comparisons.compared([row(median=ours), row("fastgen eager", peer, ours=False)])
    assert found["verdict"] == verdict and found["ratio"] == pytest.approx(peer / ours)
    assert found["low"] == pytest.approx((peer - 1) / (ours + 1)) and found["high"] == pytest.approx(
        (peer + 1) / (ours - 1)
    )
    text = terminal.verdict_text(found, several=False)
    assert ("SLOWER" in text) == (verdict == "slower") and ("no different" in text) == (verdict == "no difference")
    assert any(verdict in line for line in terminal.summary([found])[1:]) == (verdict != "faster")


def test_a_wrong_row_is_not_compared():
    for wrong in ("native", "fastgen eager"):
        rows = [row(), row("fastgen eager", 20.0, ours=False)]
        next(each for each in rows if each["variant"] == wrong)["wrong"] = True
        (found,) = comparisons.compared(rows)
        assert found["verdict"] == "wrong" and found["ratio"] is None
        assert terminal.verdict_text(found, several=False) == "not compared"


def test_a_graph_is_not_compared_with_plain_calls():
    ours = on_gpu(wall=50.0)
    peer = on_gpu(wall=100.0, variant="fastgen eager", median=100.0, ours=False, timed_by="wall")
    (found,) = comparisons.compared([ours, peer])
    assert (found["ratio"], found["timed_by"]) == (2.0, "wall")
    (found,) = comparisons.compared([ours, {**peer, "timed_by": "graph"}])
    assert (found["ratio"], found["timed_by"]) == (10.0, "graph")


def test_only_rows_of_one_case_are_compared():
    assert comparisons.compared([row(), row("fastgen eager", ours=False, dtype="fp32")]) == []


# What --compare says is worse, if anything.
CHANGES = [
    ({}, None),
    ({"time_us": 20.0, "low_us": 19.0, "high_us": 21.0}, "20 (19 to 21) now, +100 %"),
    ({"time_us": 13.0, "low_us": 10.5, "high_us": 15.0}, None),  # intervals overlap
    ({"time_us": 11.8, "low_us": 11.5, "high_us": 12.1}, None),  # apart, but by less than the tolerance
    ({"time_us": 13.0, "low_us": 12.7, "high_us": 14.0}, "13 (12.7 to 14) now, +30 %"),
    ({"launches": 3}, "launches 2 before, 3 now"),
    ({"extra_bytes": 2000}, "extra_bytes 1,000 before, 2,000 now"),
    ({"extra_bytes": 1005}, None),
    ({"gradient_error": 2e-3}, "error 1.0e-03 before, 2.0e-03 now"),
    ({"gradient_error": 1.4e-3}, None),
    ({"wrong": True, "wrong_because": "off by 1"}, "wrong now: off by 1"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_regressions(change, said, tmp_path, capsys):
    files = tmp_path / "old.json", tmp_path / "new.json"
    for file, content in zip(files, (report(row()), report(row(**change))), strict=True):
        file.write_text(json.dumps(content))
    code = cli.main(["--compare", *map(str, files)])
    out = capsys.readouterr().out
    assert code == (0 if said is None else 1)
    assert f"1 rows of fdkernels compared: {0 if said is None else 1} worse, 0 better" in out
    assert said is None or said in out
    assert cli.main(["--compare", *map(str, files), "--tolerance", "9"]) == (1 if said and "µs" not in out else 0)


def worse(old, new, tolerance=0.1, **setting):
    return [change.what for change in comparisons.changed(report(old), report(new, **setting), tolerance).regressions]


ON_GPU = [
    ({}, None),
    ({"call": 400.0}, "host's part of a call 20 µs (19.6 to 20.4) before, 400 (392 to 408) now, +1900 %"),
    ({"wall": 90.0}, "plain calls 50 µs (49 to 51) before, 90 (88.2 to 91.8) now, +80 %"),
    ({"median": 20.0}, "10 µs (9 to 11) before, 20 (19 to 21) now, +100 %"),
    ({"syncs": 1}, "syncs 0 before, 1 now"),
    # A graph's time and that of plain calls are two things: that it is lost is what is worse.
    ({"timed_by": "wall", "median": 50.0}, "no longer captured in a CUDA graph"),
]


@pytest.mark.parametrize(("change", "said"), ON_GPU)
def test_regressions_of_a_gpu(change, said):
    assert worse(on_gpu(), on_gpu(**change)) == ([] if said is None else [said])


def test_a_graph_that_is_won_is_not_worse():
    assert worse(on_gpu(timed_by="wall", median=50.0), on_gpu()) == []
    assert worse(on_gpu(timed_by="wall", median=10.0), on_gpu(median=50.0)) == []


@pytest.mark.parametrize(
    ("before", "now", "counts"),
    [(1e-8, 1.9e-7, False), (1e-8, 2.1e-7, True), (1.9e-7, 2.8e-7, False), (1.9e-7, 3e-7, True)],
)
def test_an_error_counts_beyond_a_few_roundings(before, now, counts):
    assert bool(worse(row(gradient_error=before), row(gradient_error=now))) == counts
    assert worse(row(gradient_error=before), row(gradient_error=now), kind="cuda", device="a GPU") == []


def test_what_became_better_fails_nothing():
    verdict = comparisons.changed(report(row()), report(row(median=4.0, launches=1)), 0.1)
    assert len(verdict.changes) == 2 and not verdict.regressions


def test_peers_do_not_regress():
    slow = [report(row("fastgen eager", median, ours=False), row()) for median in (10.0, 90.0)]
    assert comparisons.changed(*slow, 0.1).changes == []


def test_another_machine_is_said_and_its_times_do_not_count():
    old, new = report(row()), report(row(median=90.0, launches=3), device="another CPU", torch="2.14")
    verdict = comparisons.changed(old, new, 0.1)
    assert [change.what for change in verdict.regressions] == ["launches 2 before, 3 now"]
    assert "device: a CPU before, another CPU now" in verdict.notes and "torch: 2.13 before, 2.14 now" in verdict.notes
    assert "another machine: times are not compared" in verdict.notes and not verdict.times_compared
    verdict = comparisons.changed(old, report(row(launches=9), kind="cuda", device="a GPU"), 0.1)
    assert verdict.changes == [] and verdict.compared == 1
    assert worse(row(), row(median=90.0), threads=4) == []
    assert len(worse(row(), row(wrong=True), kind="cuda")) == 1


UNFIT = {"cpu_busy_before_percent": 50.5, "cpu_busy_while_timing_percent": 10.1}


@pytest.mark.parametrize(("name", "percent"), UNFIT.items())
@pytest.mark.parametrize("older", [True, False])
def test_times_of_a_busy_machine_do_not_count(name, percent, older):
    settings = [{name: percent}, {name: 9.9}] if older else [{name: 9.9}, {name: percent}]
    old, new = (report(row(median=median), **more) for median, more in zip((10.0, 260.0), settings, strict=True))
    verdict = comparisons.changed(old, new, 0.1)
    assert (verdict.changes, verdict.times_compared) == ([], False)
    assert any(f"in the {'older' if older else 'newer'} run other work" in note for note in verdict.notes)
    fit = comparisons.changed(report(row(), **{name: 9.9}), report(row(median=260.0), **{name: 9.9}), 0.1)
    assert fit.times_compared and len(fit.regressions) == 1


def test_more_threads_than_cores_are_no_measurement():
    pair = [report(row(median=median), threads=8, cores=2) for median in (10.0, 90.0)]
    verdict = comparisons.changed(*pair, 0.1)
    assert (verdict.changes, verdict.times_compared) == ([], False)
    assert "8 threads shared 2 cores" in verdict.notes[0]


def test_a_busy_host_slows_no_graph():
    busy = {"kind": "cuda", "cpu_busy_before_percent": 80.0}
    slower = report(on_gpu(median=20.0, wall=500.0, call=400.0), **busy)
    verdict = comparisons.changed(report(on_gpu(), kind="cuda"), slower, 0.1)
    assert [change.what for change in verdict.regressions] == ["10 µs (9 to 11) before, 20 (19 to 21) now, +100 %"]
    calls = [report(on_gpu(timed_by="wall", median=median), **busy) for median in (10.0, 90.0)]
    verdict = comparisons.changed(*calls, 0.1)
    assert (verdict.changes, verdict.times_compared) == ([], False)


@pytest.mark.parametrize("key", comparisons.SAME_IF_KNOWN)
def test_a_machine_of_the_same_name_can_be_another(key):
    old, new = (report(row(median=median), **{key: n}) for n, median in ((2, 10.0), (64, 90.0)))
    verdict = comparisons.changed(old, new, 0.1)
    assert (verdict.changes, verdict.times_compared) == ([], False) and f"{key}: 2 before, 64 now" in verdict.notes
    assert comparisons.changed(report(row()), new, 0.1).times_compared  # the older report does not tell


def test_rows_without_times_are_no_comparison_of_times():
    untimed = report(row(time_us=None, low_us=None, high_us=None))
    verdict = comparisons.changed(untimed, untimed, 0.1)
    assert (verdict.compared, verdict.times_compared) == (1, False)


def test_other_work_is_what_is_not_idle_and_not_ours(monkeypatch):
    """Of 1,000 ticks on all cores 300 were idle and 500 ours."""
    readings = iter([(10_000, 4_000.0), (11_000, 4_800.0)])
    monkeypatch.setattr(setting.OtherWork, "ticks", staticmethod(lambda: next(readings)))
    assert setting.OtherWork().percent() == 20.0


def test_a_process_beside_this_one_is_seen():
    if not pathlib.Path("/proc/stat").exists():
        pytest.skip("only Linux tells")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        found = setting.cpu_busy_percent(1.0)
        other.kill()
    assert found is not None and found > 60 / os.cpu_count()
    began = time.process_time()
    ticks = setting.OtherWork.ticks()
    while time.process_time() - began < 0.3:
        pass
    assert setting.OtherWork.ticks()[1] - ticks[1] >= 0.25 * os.sysconf("SC_CLK_TCK")  # ours is not others'


def test_a_row_that_is_lost_is_worse():
    """Where the newer run had its case: else it was not asked for."""
    verdict = comparisons.changed(report(row(), row("triton")), report(row("triton"), row("reference")), 0.1)
    (lost,) = verdict.regressions
    assert str(lost) == "worse  fused_fdiv_loss, sdxl, bf16, fastgen, native, 8×4×128×128: no longer there"
    assert [note.split(":")[0] for note in verdict.notes] == ["new"]
    verdict = comparisons.changed(report(row(), row(dtype="fp32")), report(row()), 0.1)
    assert verdict.changes == [] and [note.split(":")[0] for note in verdict.notes] == ["not in this run"]
    # A peer's row is there, ours is not.
    assert worse(row(), row("fastgen eager", ours=False)) == ["no longer there"]
    verdict = comparisons.changed(report(row(), row("fastgen eager", ours=False)), report(row()), 0.1)
    assert verdict.changes == [] and verdict.notes == []


def test_nothing_in_common():
    verdict = comparisons.changed(report(row()), report(row(shape_name="wan")), 0.1)
    assert (verdict.compared, verdict.times_compared, verdict.changes) == (0, False, [])
    assert "the two have no row in common" in verdict.notes
    assert comparisons.changed(report(row()), report(row(shape=[4, 4, 128, 128])), 0.1).compared == 0


def test_fields_that_older_reports_lack():
    poor = {key: row()[key] for key in comparisons.NEEDED}
    for pair in ((row(), poor), (poor, row())):
        assert comparisons.changed(*map(report, pair), 0.1).changes == []


def without(key):
    return {name: value for name, value in report(row()).items() if name != key}


TORN = [
    ("{", "not JSON"),
    ([], "expected a report of schema 1, got None"),
    ({**report(), "schema": 2}, "expected a report of schema 1, got 2"),
    ({"schema": 1}, "setting: expected a dict, got NoneType"),
    *((without(part), f"{part}: expected a {kind.__name__}, got NoneType") for part, kind in comparisons.PARTS.items()),
    ({**report(), "rows": {}}, "rows: expected a list, got dict"),
    (report(row(), {**row(), "shape": 5}), "rows: row 1, shape: expected a list of sizes, got 5"),
    (report({**row(), "low_us": "9"}), "rows: row 0, low_us: expected a number, got '9'"),
    (report(row(), 3), "rows: row 1 has no 'op'"),
    *(
        (report({name: value for name, value in row().items() if name != key}), f"rows: row 0 has no '{key}'")
        for key in comparisons.NEEDED
    ),
]


@pytest.mark.parametrize(("content", "message"), TORN)
def test_files_that_are_no_reports(content, message, tmp_path, capsys):
    file, whole = tmp_path / "old.json", tmp_path / "new.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    whole.write_text(json.dumps(report(row())))
    with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):
        comparisons.load(file)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--compare", str(whole), str(file)])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
