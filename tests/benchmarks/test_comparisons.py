"""Verdicts within a run, and --compare: what is worse, what is noise, and what is not comparable."""

from __future__ import annotations

import copy
import json

import pytest

import benchmarks.__main__ as cli
from benchmarks import comparisons, terminal


def row(variant="native", median=10.0, spread=1.0, ours=True, **more):
    return {
        "op": "fused_fdiv_loss", "shape_name": "sdxl", "shape": [8, 4, 128, 128], "dtype": "bf16", "formula": "fastgen",
        "variant": variant, "ours": ours, "wrong": False, "wrong_because": None, "time_us": median,
        "low_us": median - spread, "high_us": median + spread, "timed_by": "calls", "launches": 2, "syncs": None,
        "extra_bytes": 1000, "gradient_error": 1e-3, "wall_us": None, "wall_low_us": None, "wall_high_us": None, **more,
    }  # fmt: skip


def report(*rows, **setting):
    here = {"kind": "cpu", "device": "a CPU", "threads": 2, "torch": "2.13", **setting}
    return {"schema": 1, "setting": here, "rows": list(rows), "comparisons": []}


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
    plain = {"wall_us": 50.0, "wall_low_us": 49.0, "wall_high_us": 51.0}
    ours = row(timed_by="graph", **plain)
    peer = row("fastgen eager", 100.0, ours=False, timed_by="wall", wall_us=100.0, wall_low_us=99.0, wall_high_us=101.0)
    (found,) = comparisons.compared([ours, peer])
    assert (found["ratio"], found["timed_by"]) == (2.0, "wall")
    (found,) = comparisons.compared([ours, {**peer, "timed_by": "graph"}])
    assert (found["ratio"], found["timed_by"]) == (10.0, "graph")


def test_only_rows_of_one_case_are_compared():
    assert comparisons.compared([row(), row("fastgen eager", ours=False, dtype="fp32")]) == []


CHANGES = [
    ({}, None),
    ({"time_us": 20.0, "low_us": 19.0, "high_us": 21.0}, "20 (19 to 21) now, +100 %"),
    ({"time_us": 13.0, "low_us": 10.5, "high_us": 15.0}, None),  # intervals overlap
    ({"time_us": 11.8, "low_us": 11.5, "high_us": 12.1}, None),  # apart, but by less than the tolerance
    ({"launches": 3}, "launches 2 before, 3 now"),
    ({"extra_bytes": 2000}, "extra_bytes 1,000 before, 2,000 now"),
    ({"gradient_error": 2e-3}, "error 1.0e-03 before, 2.0e-03 now"),
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
    assert "another machine: times are not compared" in verdict.notes
    verdict = comparisons.changed(old, report(row(launches=9), kind="cuda", device="a GPU"), 0.1)
    assert verdict.changes == [] and verdict.compared == 1


def test_rows_that_came_or_went_or_lack_fields():
    renamed = row("native2")
    poor = {key: row()[key] for key in ("op", "shape_name", "shape", "dtype", "formula", "variant", "ours")}
    verdict = comparisons.changed(report(row()), report(renamed), 0.1)
    assert verdict.compared == 0 and "the two have no row in common" in verdict.notes
    assert [note.split(":")[0] for note in verdict.notes[:2]] == ["no longer there", "new"]
    assert comparisons.changed(report(row()), report(poor), 0.1).changes == []
    other_size = copy.deepcopy(row())
    other_size["shape"] = [4, 4, 128, 128]
    assert comparisons.changed(report(row()), report(other_size), 0.1).compared == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "expected a report of schema 1"), ('{"schema": 1}', "has no 'setting'")],
)
def test_files_that_are_no_reports(text, message, tmp_path):
    file = tmp_path / "old.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        comparisons.load(file)
