"""Verdicts within a run, and --compare: what is worse, what is noise, and what is not comparable."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.report import comparisons, reading, terminal

PLAIN = ("wall_us", "wall_low_us", "wall_high_us")


def row(variant="native", median=10.0, **more):
    return {
        "op": "fused_fdiv_loss", "shape_name": "sdxl", "shape": [8, 4, 128, 128], "dtype": "bf16", "formula": "fastgen",
        "variant": variant, "ours": True, "wrong": False, "wrong_because": None, "time_us": median,
        "low_us": median - 1, "high_us": median + 1, "timed_by": "calls", **dict.fromkeys(PLAIN), **more,
    }  # fmt: skip


def peer(median=20.0, **more):
    return row("fastgen eager", median, **{"ours": False, **more})


def on_gpu(wall=50.0, **more):
    """A row that was captured in a graph, with the times of plain calls."""
    return row(**{"timed_by": "graph", **dict(zip(PLAIN, (wall, 0.98 * wall, 1.02 * wall), strict=True)), **more})


def report(*rows, **setting):
    here = {"kind": "cpu", "device": "a CPU", "threads": 2, **setting}
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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (row(), row(), "no difference: 1.00 × (0.82 to 1.22)"),
        (row(), row(median=20.0), "worse: 0.50 × (0.43 to 0.58)"),
        (row(median=20.0), row(), "better: 2.00 × (1.73 to 2.33)"),
        (row(), row(low_us=10.5, time_us=13.0, high_us=15.0), "no difference: 0.77 × (0.60 to 1.05)"),
        (row(), row(low_us=12.6, time_us=12.7, high_us=12.8), "no difference: 0.79 × (0.70 to 0.87)"),  # 14.5 %
        (row(), row(low_us=12.7, time_us=12.8, high_us=12.9), "worse: 0.78 × (0.70 to 0.87)"),
        (on_gpu(), on_gpu(timed_by="wall", median=50.0), "no difference: 1.00 × (0.96 to 1.04)"),
        (row(), row(wrong=True), "worse: wrong now"),
        (row(wrong=True), row(wrong=True), "not compared: wrong now"),
        (row(wrong=True), row(), "not compared: wrong before"),
        (row(), peer(), "worse: no longer there"),
        (row(), row(shape_name="wan"), "not compared: not in this run"),
        (row(), row(shape=[4, 4, 128, 128]), "not compared: not in this run"),
    ],
)  # fmt: skip
def test_an_older_run(old, new, said):
    first, *rest = comparisons.changed(report(old), report(new))
    assert first.row == "fused_fdiv_loss, sdxl, bf16, fastgen, 8×4×128×128, native"
    assert f"{first.verdict}: {first.what}" == said and (first.ratio is not None) == ("×" in said)
    assert [change.what for change in rest] == (["new"] if "not in this run" in said else [])
    assert f"\n{first.verdict}: {first.row}: {first.what}\n" in "\n" + terminal.report_changes([first, *rest], [])


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"device": "another CPU"}, "device: a CPU before, another CPU now"),
        ({}, {"threads": 4}, "threads: 2 before, 4 now"),
        ({"cores": 2}, {"cores": 64}, "cores: 2 before, 64 now"),
        ({}, {"cores": 64}, None),  # the older report does not have it
        ({}, {"kind": "cuda"}, "kind: cpu before, cuda now"),
    ],
)
def test_times_count_on_the_same_machine_alone_rightness_everywhere(before, now, said):
    old, new = report(row(), **before), report(row(median=90.0), **now)
    assert comparisons.apart(old, new) == ([said] if said else [])
    assert [change.verdict for change in comparisons.changed(old, new)] == ([] if said else ["worse"])
    assert [each.what for each in comparisons.changed(old, report(row(wrong=True), **now))] == ["wrong now"]
    assert ("times are not compared" in terminal.report_changes([], comparisons.apart(old, new))) == (said is not None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        ({"schema": 1}, "setting: expected a dict, got NoneType"),
        (report(row(), 3), "rows: row 1 has no 'op'"),
    ],
)
def test_files_that_are_no_reports(content, message, tmp_path):
    file = tmp_path / "old.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):
        reading.load(file)
