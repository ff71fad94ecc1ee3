"""`python -m fdkernels plan`: how the CUDA backend would spread a call over a GPU, and why. It needs no GPU."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from fdkernels import devices
from fdkernels.call_shape import DTYPES, REDUCTIONS, CallShape

if TYPE_CHECKING:
    from fdkernels._core import DeviceLimits, Plan


FUNCTIONS = {"fdiv": "fused_fdiv_loss", "implicit": "score_implicit_loss"}
OF_EVERY_OP = ("student", "teacher", "fake", "with_grad", "op")


class Report(NamedTuple):
    """A device, the source of its limits, and how it would serve the call."""

    device: str
    note: str
    limits: DeviceLimits
    plan: Plan
    candidates: list[Plan]


def main(arguments: list[str]) -> None:
    parser = command_line()
    given = parser.parse_args(arguments)
    try:
        from fdkernels import _core
    except ImportError as error:
        parser.exit(1, f"{parser.prog}: fdkernels._core, which makes the plans, is missing or broken: {error}\n")
    call = call_shape(given)
    if call.op != "fdiv":
        for name in CallShape._fields[2:]:
            if name not in OF_EVERY_OP and hasattr(given, name) and getattr(given, name) != parser.get_default(name):
                option = {"dmd_scale": "no-dmd-scale"}.get(name, name.replace("_", "-"))
                parser.error(f"argument --{option}: expected with --op fdiv")
    reports = []
    for device, limits, note in chosen_devices(parser, given.device):
        try:
            plan = _core.plan(call, limits, given.allowed)
        except ValueError as error:
            parser.error(f"{device}: {error}")
        reports.append(Report(device, note, limits, plan, _core.plans(call, limits)))
    if given.json:
        found = [report._asdict() for report in reports]
        print(json.dumps({"shape": given.shape, "call": call._asdict(), "plans": found}, indent=2))
        return
    print(describe_call(given.shape, call))
    for report in reports:
        print("", *describe(report, call.batch * call.elements, has_mask=call.mask is not None), sep="\n")


# ---- the command line


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fdkernels plan",
        description="How the CUDA backend would spread a forward call over a GPU, and why. Times and bytes are"
        " predictions, by a model that knows a device's limits alone.",
    )
    add = parser.add_argument
    add("--shape", type=shape, required=True, metavar="B,C,H,W", help="of student, the batch first")
    add("--op", choices=tuple(FUNCTIONS), default="fdiv", help="fdiv (fused_fdiv_loss), or implicit"
        " (score_implicit_loss), which has sizes, dtypes and --no-grad alone")  # fmt: skip
    add("--student", choices=DTYPES, default="bf16", metavar="DTYPE", help=f"{', '.join(DTYPES)} (bf16)")
    add("--teacher", choices=DTYPES, metavar="DTYPE", help="(student's)")
    add("--fake", choices=DTYPES, metavar="DTYPE", help="(teacher's)")
    add("--teacher-uncond", action="store_true", help="guidance: an unconditional output of teacher's dtype")
    add("--fake-uncond", action="store_true", help="one of fake's")
    add("--raw", action="store_true", help="raw predictions; with the dmd scale or --with-stats x_t is read too")
    add("--multiplier", type=count, default=0, metavar="ENTRIES", help="with this many entries a sample")
    add("--mask", type=mask, metavar="ROWSxENTRIES", help="of 1 or B rows; 8x16384: 16384 entries a row")
    add("--heads", type=count, default=0, help="of the logits; 0: none (rkl, or weight=)")
    add("--bins", type=count, default=0, help="of the normalizer; 0: none")
    add("--counted", action="store_true", help="with count=: no mask has to be counted")
    add("--no-dmd-scale", dest="dmd_scale", action="store_false", help="not scale='dmd'")
    add("--with-stats", action="store_true", help="return_stats")
    add("--no-grad", dest="with_grad", action="store_false", help="the loss alone")
    add("--reduction", choices=REDUCTIONS, default="mean", help="of the loss (mean)")
    names = ", ".join(devices.PRESETS)
    add("--device", metavar="NAME", help=f"{names}, all (of these), or present, cuda:1, ... (this machine's). Default:"
        " present where native serves its GPU, else h200")  # fmt: skip
    add("--allowed", default="auto", metavar="SCHEDULE", help="cluster, cluster:1 to cluster:16, grid,"
        " or grid:1 to grid:64, its teams (any)")  # fmt: skip
    add("--json", action="store_true", help="the same as JSON")
    return parser


def shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(map(int, text.split(",")))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes of at least 1, as in 8,4,128,128, got {text}")
    return sizes


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a count, got {text}")
    return int(text)


def mask(text: str) -> tuple[int, int]:
    rows, _, entries = text.partition("x")
    if not (rows.isdecimal() and entries.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected rows and entries, as in 8x16384, got {text}")
    return int(rows), int(entries)


def call_shape(given: argparse.Namespace) -> CallShape:
    teacher = given.teacher or given.student
    fake = given.fake or teacher
    options = {name: getattr(given, name) for name in CallShape._fields[2:] if hasattr(given, name)}
    return CallShape(given.shape[0], math.prod(given.shape[1:]), **options)._replace(
        teacher=teacher,
        fake=fake,
        teacher_uncond=teacher if given.teacher_uncond else None,
        fake_uncond=fake if given.fake_uncond else None,
        noisy=given.student if given.raw and (given.dmd_scale or given.with_stats) else None,
    )


def chosen_devices(parser: argparse.ArgumentParser, name: str | None) -> list[tuple[str, DeviceLimits, str]]:
    """(name, limits, where the limits come from) of each device to plan for."""
    assumed = "an assumption; at run time the device is asked"
    if name is None:
        reason = why_not_present()
        if reason is not None:
            return [("h200", devices.PRESETS["h200"], f"{assumed}; h200 since no GPU is at hand ({reason})")]
        name = "present"
    if name == "all":
        return [(each, limits, assumed) for each, limits in devices.PRESETS.items()]
    if name in devices.PRESETS:
        return [(name, devices.PRESETS[name], assumed)]
    index = "0" if name == "present" else name.removeprefix("cuda:")
    if name != "present" and not (name.startswith("cuda:") and index.isdecimal()):
        known = ", ".join((*devices.PRESETS, "all", "present"))
        parser.error(f"argument --device: expected one of {known} or cuda:<index>, got {name}")
    try:
        return [(name, devices.present(int(index)), "as CUDA's runtime says")]
    except (ImportError, OSError, RuntimeError) as error:
        parser.error(f"argument --device: {name} can't be asked: {str(error).splitlines()[0]}")


def why_not_present() -> str | None:
    try:
        from fdkernels import backends
    except (ImportError, OSError) as error:
        return f"torch does not import: {error}"
    return backends.unavailable("native", "cuda")


# ---- what is printed


def describe_call(sizes: tuple[int, ...], call: CallShape) -> str:
    mix = call.student if call.teacher == call.student else f"{call.student}, teacher {call.teacher}"
    mix += "" if call.fake == call.teacher else f", fake {call.fake}"
    shape = "×".join(map(str, sizes))
    return f"{FUNCTIONS[call.op]}, forward: {shape}, {call.batch:,} samples of {call.elements:,} elements, {mix}"


def describe(report: Report, size: int, has_mask: bool) -> list[str]:
    limits = report.limits
    lines = [
        f"{report.device}: compute capability {limits['capability'] / 10}, {limits['multiprocessors']} multiprocessors,"
        f" {limits['shared_per_block'] / 1024:g} KiB of shared memory a block, {limits['cache'] / 2**20:g} MiB of L2,"
        f" {limits['bandwidth'] / 1e12:.3g} TB/s",
        f"  resident clusters of {listed(devices.CLUSTER_SIZES)}: {listed(limits['active_clusters'])}",
        f"    {report.note}",
        "",
    ]
    lines += [f"  {what:14} {text}" for what, text in figures(report.plan, size, has_mask)]
    lines += ["", "  considered     predicted"]
    return lines + [f"    {name:12} {text}" for name, text in considered(report)]


def figures(plan: Plan, size: int, has_mask: bool) -> list[tuple[str, str]]:
    team, teams, share = plan["team"], plan["teams"], plan["share"]
    held = plan["held"] * plan["vector"]
    if plan["schedule"] == "grid":
        schedule = f"grid of {teams}: {team} blocks hold a sample together, {teams} side by side"
        clusters = "cooperative, no clusters"
    elif team == 1:
        schedule, clusters = f"cluster of 1: a block holds a sample, {teams} side by side", "no clusters"
    else:
        schedule = f"cluster of {team}: its blocks hold a sample together, {teams} side by side"
        clusters = f"{teams} clusters of {team}"
    samples = "two samples" if plan["buffers"] == 2 else "a sample"
    kept = "all held on chip" if held == share else f"{held:,} of them held on chip"
    again = f", {plan['again']:,} elements of a sample twice (half of L2 is counted on)" if plan["again"] else ""
    counting = int(plan["count_first"])
    first = (plan["launches"] - 1 - counting, "weigh"), (counting, "count")
    general = ", with more than x, τ and f or an odd mix of types" if plan["general"] else ""
    ahead, moved, least = plan["prefetched"], plan["bytes"], plan["minimum_bytes"]
    without = ", a mask's own not counted" if has_mask else ""
    return [
        ("schedule", schedule),
        ("grid", f"{plan['blocks']} blocks of {plan['threads']} threads, {clusters}"),
        ("share", f"{share:,} elements of a sample a block, {kept}"),
        ("shared memory", f"{plan['shared_bytes']:,} bytes a block, dynamic, {samples} at a time"),
        ("vector", f"{plan['vector']} elements an access; kernel {plan['loads']}{general}"),
        ("phases", f"{plan['phases']:.4g}: inputs are read once{again}"),
        ("prefetch", f"{ahead:,} elements of each share of the next sample, into L2" if ahead else "none"),
        ("launches", f"{plan['launches']}" + "".join(f", {n} to {what} first" for n, what in first if n)),
        ("bytes", f"{amount(moved)}, {moved / size:.4g} an element; the minimum is {least / size:.4g}{without}"),
        ("time", f"{microseconds(plan)} predicted, {moved / plan['seconds'] / 1e12:.3g} TB/s"),
    ]


def considered(report: Report) -> list[tuple[str, str]]:
    """Every schedule with its predicted time, and the cluster sizes that can't run."""
    every = (*report.candidates, report.plan)  # a plan of --allowed grid:N may be no candidate
    times = {name_of(candidate): f"{microseconds(candidate):>12}" for candidate in every}
    times[name_of(report.plan)] += "  taken"
    rest = {}
    for size, active in zip(devices.CLUSTER_SIZES, report.limits["active_clusters"], strict=True):
        rest[f"cluster:{size}"] = "a sample does not fit" if active else "the device can't schedule it"
    return [*times.items(), *((name, reason) for name, reason in rest.items() if name not in times)]


def name_of(plan: Plan) -> str:
    return f"{plan['schedule']}:{plan['teams' if plan['schedule'] == 'grid' else 'team']}"


def microseconds(plan: Plan) -> str:
    return f"{plan['seconds'] * 1e6:,.2f} µs"


def amount(size: float) -> str:
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{size / 10**power:.3g} {unit}"
    return f"{size:g} bytes"


def listed(values: Any) -> str:
    return ", ".join(map(str, values))
