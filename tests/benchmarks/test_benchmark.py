"""`python -m benchmarks` as a program: its report, and what --compare makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAYBE_INT, MAYBE_FLOAT, MAYBE_STR = (int, type(None)), (float, type(None)), (str, type(None))
ROW = {
    "op": str, "shape_name": str, "shape": list, "dtype": str, "formula": str, "variant": str, "ours": bool,
    "backend": MAYBE_STR, "mode": MAYBE_STR, "wrong": bool, "wrong_because": MAYBE_STR, "time_us": float,
    "low_us": float, "high_us": float, "call_us": MAYBE_FLOAT, "call_low_us": MAYBE_FLOAT,
    "call_high_us": MAYBE_FLOAT, "min_bytes": int, "gb_per_s": float, "percent_of_ceiling": MAYBE_FLOAT,
    "counted_bytes": MAYBE_INT, "extra_bytes": MAYBE_INT, "launches": MAYBE_INT, "syncs": MAYBE_INT,
    "gradient_error": float, "predicted_us": MAYBE_FLOAT, "input_sets": int, "graphs": MAYBE_INT, "rounds": int,
}  # fmt: skip
SETTING = {
    "device", "kind", "threads", "torch", "triton", "driver", "cuda", "clocks", "clocks_while_timing", "commit", "date",
    "fdkernels", "command", "load_average", "load_average_after", "compile_modes",
}  # fmt: skip
KEYS = ["schema", "setting", "method", "formulas", "ceiling", "rows", "comparisons", "skipped"]


def run(*arguments, **more):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, **more)


def test_a_run_its_report_and_its_comparison(tmp_path):
    file = tmp_path / "report.json"
    settings = "fused_fdiv_loss fdiv_weight --shapes tiny --dtype fp32 --rounds 7 --threads 1 --mode eager --device cpu"
    done = run(*settings.split(), "--json", file, stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert list(report) == KEYS and report["schema"] == 1
    assert set(report["setting"]) >= SETTING and report["setting"]["threads"] == 1
    assert report["setting"]["command"] == f"python -m benchmarks {settings}"
    assert report["ceiling"]["low"] <= report["ceiling"]["gb_per_s"] <= report["ceiling"]["high"]
    found = [(row["formula"], row["variant"]) for row in report["rows"]]
    names = {"fastgen": "fastgen", "dmd2_pixel": "dmd2", "dmd2_latent": "dmd2", "weight": "fastgen"}
    assert list(report["formulas"]) == list(names)
    ours = found[0][1]
    assert found == [(name, v) for name, peer in names.items() for v in (ours, f"{peer} eager")]
    for row in report["rows"]:
        assert not {key: row.get(key) for key, kind in ROW.items() if not isinstance(row.get(key), kind)}
        assert 0 < row["low_us"] <= row["time_us"] <= row["high_us"] and not row["wrong"]
        assert row["gb_per_s"] == pytest.approx(row["min_bytes"] / row["time_us"] / 1e3)
        assert row["rounds"] == 7 and row["timed_by"] == "calls" and row["graphs"] is None
        assert row["extra_bytes"] > 0 and row["launches"] > 0
        moved = row["counted_bytes"] if row["variant"] != "native" else row["min_bytes"]
        if row["formula"] == "weight":
            assert row["percent_of_ceiling"] is row["predicted_us"] is None
        else:
            assert row["percent_of_ceiling"] == pytest.approx(100 * row["gb_per_s"] / row["ceiling_gb_per_s"])
            assert row["predicted_us"] == pytest.approx(moved / row["ceiling_gb_per_s"] / 1e3)
        assert row["variant"] in done.stdout
    assert len(report["comparisons"]) == 4
    assert all(each["kind"] == "unavailable" for each in report["skipped"])


def test_a_reader_that_has_gone_is_not_complained_of(tmp_path):
    """`python -m benchmarks --json F | head`"""
    file = tmp_path / "report.json"
    reader, writer = os.pipe()
    os.close(reader)
    settings = "fused_fdiv_loss --shapes tiny --dtype fp32 --rounds 6 --baseline none --device cpu"
    done = run(*settings.split(), "--json", file, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(file.read_text())["rows"]) == 1
