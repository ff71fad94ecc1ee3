"""Command line of the benchmark."""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import math
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks.cases.formulas import FORMULAS, OPS
from benchmarks.cases.setting import setting_of_run
from benchmarks.cases.shapes import DEFAULT_DTYPES, DTYPES, GAN, GROUPS, SHAPES, STEP, STEPS, Case
from benchmarks.cases.variants import COMPILE_MODES, MODES
from benchmarks.measure.rows import Options, Skipped
from benchmarks.measure.run import run
from benchmarks.measure.timing import FEWEST_FOR_AN_INTERVAL
from benchmarks.report import comparisons, terminal
from benchmarks.report.reading import Report, load
from fdkernels import backends, printing
from fdkernels._op.checks import did_you_mean

# The quick choice: formulas, shapes and dtypes if the command names none, the most telling first.
QUICK = {
    "cpu": "fastgen cifar,pixels512,wan2 fp32,bf16; weight cifar fp32; dmd2_latent sdxl fp32; self_forcing wan bf16;"
    " noising,denoising,sid sdxl bf16; sid,sim pixels512 fp32; dmd2_pixel imagenet64 fp32; fastgen_scaled wan2 bf16;"
    " gan_generator,gan_discriminator heads,many_heads,patches fp32; relativistic,r1 heads,patches fp32;"
    " dmd2_pixel,dmd2_latent tiny fp32",
    "cuda": "fastgen cifar,pixels512_large,sdxl,wan,cifar_large bf16,fp32; self_forcing wan,wan_large bf16;"
    " dmd2_latent,noising,denoising,sid sdxl,sdxl_large bf16; sid,sim cifar_large fp32; weight cifar,cifar_large fp32;"
    " dmd2_pixel imagenet64,pixels1024_large fp32;"
    " gan_generator,gan_discriminator,relativistic,r1 heads,patches bf16;"
    " fastgen_scaled cifar,pixels512_large bf16",
}
# The quick choice of the op step, which runs only where it is named.
QUICK_STEPS = {
    "cpu": "fastgen_student,fastgen_fake_score sdxl,wan bf16; self_forcing_student,self_forcing_fake_score wan bf16;"
    " clip,average small_network,edm_network fp32",
    "cuda": "fastgen_student,fastgen_fake_score sdxl,wan,sdxl_large,wan_large bf16;"
    " self_forcing_student,self_forcing_fake_score wan,wan_large bf16; clip,average small_network,edm_network fp32",
}
QUICK_SECONDS = {"cpu": 100.0, "cuda": 420.0}
DEFAULT_MODES = {"cpu": ("eager", "compile"), "cuda": tuple(MODES)}
# The backends that are timed by default. Triton on a CPU is its interpreter: for tests, not for timing.
KERNELS = {"cpu": ("native",), "cuda": ("native", "triton")}
PEERS = tuple(name for name, formula in FORMULAS.items() if formula.op == "fused_fdiv_loss")
# Exit codes, beside argparse's 2; 130 is what a shell gives for Ctrl-C.
WORSE, NOT_COMPARED, INTERRUPTED = 1, 3, 130
EXAMPLES = """examples:
  python -m benchmarks fused_fdiv_loss --shapes sdxl,wan --dtype bf16 --html speed.html
  python -m benchmarks --shapes 8,4,128,128 --baseline fastgen --mode eager,compile,max-autotune
  python -m benchmarks step                                   whole steps of a trainer, in minutes
  python -m benchmarks --json new.json --compare old.json     exit code 1 where something became worse
  python -m benchmarks --compare old.json new.json            the same, without a run

exit code: 1 where fdkernels is wrong, fails, was not measured, or (--compare) is worse beyond the noise or lost a row;
3 where --compare found no times to compare (no row in common, another machine); 2 for a bad argument; 130 after Ctrl-C.
"""
# Options that say where to write, not what is measured.
WHERE = re.compile(r" --(?:json|html|compare)[ =]('[^']*'|\S)+")


def choice_of(what: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    names = tuple(known)

    def parse(text: str) -> list[str]:
        found = list(dict.fromkeys(text.split(",")))
        for name in found:
            if name not in names:
                raise argparse.ArgumentTypeError(f"unknown {what} {name!r}{did_you_mean(name, names)}")
        return found

    return parse


def shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Parse names of shapes, or one shape's sizes."""
    if not text[:1].isdecimal():
        named = choice_of("shape", (*SHAPES, *GROUPS))(text)
        return {name: SHAPES[name].sizes for each in named for name in GROUPS.get(each, (each,))}
    sizes = tuple(int(part) if part.isdecimal() else 0 for part in text.replace("x", ",").split(","))
    if len(sizes) < 2 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected two sizes or more, of at least 1, as in 8,4,128,128; got {text!r}")
    return {",".join(map(str, sizes)): sizes}


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description="fdkernels against the peers' chains, eager and compiled, and against the machine's bandwidth."
        " Lists are separated by commas.",
    )  # fmt: skip
    add = parser.add_argument
    add("ops", nargs="?", type=choice_of("op", OPS), help=f"of {', '.join(OPS)}; default: all but {STEP}")
    add("--shapes", type=shapes, help=f"{', '.join(SHAPES)}, a group of them ({', '.join(GROUPS)}), or one shape's"
        " sizes: 8,4,128,128. Default: a quick choice")  # fmt: skip
    add("--dtype", type=choice_of("dtype", DTYPES), help=f"of {', '.join(DTYPES)}; default:"
        f" {', '.join(DEFAULT_DTYPES)}; fdiv_weight has fp32 alone")  # fmt: skip
    add("--backend", type=choice_of("backend", ("auto", *backends.BACKENDS)), help=f"of auto,"
        f" {', '.join(backends.BACKENDS)}; default: what the device has of native and triton")  # fmt: skip
    add("--baseline", type=choice_of("baseline", (*PEERS, "none")), help="the peer whose formula is timed, ours and"
        f" theirs: {', '.join(PEERS)}; none: fastgen's, ours alone. Default: those trained at a shape")  # fmt: skip
    add("--mode", type=choice_of("mode", MODES), help=f"of {', '.join(MODES)}, of the baselines; default: all, but for"
        " max-autotune on a CPU, where it makes the same code")  # fmt: skip
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--rounds", type=int, help=f"{FEWEST_FOR_AN_INTERVAL} or more; default: 40 on a CPU, 30 on a GPU")
    add("--seconds", type=float, help="after which no case is begun; default: no limit, but for the quick choice"
        f" of ops {QUICK_SECONDS['cpu']:g} on a CPU, {QUICK_SECONDS['cuda']:g} on a GPU")  # fmt: skip
    add("--json", type=Path, help="write the report there")
    add("--html", type=Path, help="write a page there")
    add("--compare", nargs="+", type=Path, metavar="JSON", help="OLD: compare this run with it; OLD NEW: compare these"
        " two without a run")  # fmt: skip
    return parser


def cases_of(given: argparse.Namespace, device: str, error: Callable[[str], NoReturn]) -> list[Case]:
    """The requested cases, formula by formula."""
    ops = given.ops or [op for op in OPS if op != STEP]
    peers = ["fastgen"] if given.baseline == ["none"] else given.baseline or []
    if "none" in peers:
        error("--baseline: expected none alone, or names without it")
    if peers and "fused_fdiv_loss" not in ops:
        error(f"--baseline: the peers of {ops[0]} are fixed")
    quick = [[names.split(",") for names in line.split()] for line in quick_choice(given)[device].split(";")]
    if is_quick(given):
        return [
            FORMULAS[name].case(shape, SHAPES[shape].sizes, dtype)
            for names, shape_names, dtypes in quick
            for name, shape, dtype in itertools.product(names, shape_names, dtypes)
            if FORMULAS[name].op in ops
        ]
    found: list[Case] = []
    shape_list = given.shapes or {shape: SHAPES[shape].sizes for _, names, _ in quick for shape in names}
    for name, formula in FORMULAS.items():
        if formula.op not in ops or (peers and name not in peers):
            continue
        for shape_name, sizes in shape_list.items():
            why_not = formula.why_not(sizes)
            if why_not is not None:
                if name in peers and given.shapes:
                    error(f"--shapes {shape_name}: {why_not}")
                continue
            natural = SHAPES[shape_name].formulas if shape_name in SHAPES else ("fastgen", *GAN, *STEPS)
            if name in peers or not formula.images or name in natural:
                found += [formula.case(shape_name, sizes, dtype) for dtype in given.dtype or DEFAULT_DTYPES]
    return list(dict.fromkeys(found))


def is_quick(given: argparse.Namespace) -> bool:
    return not (given.shapes or given.dtype or given.baseline)


def quick_choice(given: argparse.Namespace) -> dict[str, str]:
    return QUICK_STEPS if given.ops == [STEP] else QUICK


def backends_of(given: argparse.Namespace, device: str, error: Callable[[str], NoReturn]) -> list[str]:
    if not given.backend:
        return [name for name in KERNELS[device] if backends.unavailable(name, device) is None] or ["reference"]
    for name in given.backend:
        reason = None if name == "auto" else backends.unavailable(name, device)
        if reason is not None:
            error(f"--backend {name}: not available on {device}: {reason}")
    return list(dict.fromkeys(backends.choose(name, device) for name in given.backend))


def command(arguments: Sequence[str]) -> str:
    """The command that measures the same again, without the files it wrote."""
    return WHERE.sub("", shlex.join(["python", "-m", "benchmarks", *arguments]))


def check_files(given: argparse.Namespace, error: Callable[[str], NoReturn]) -> list[Report]:
    """Load the reports of --compare, and check that the others can be written, before minutes are spent."""
    for name, path in (("--json", given.json), ("--html", given.html)):
        if path is not None and not path.parent.is_dir():
            error(f"{name} {path}: there is no folder {path.parent}")
    try:
        if given.html is not None:
            importlib.import_module("benchmarks.report.page")
    except ImportError as failure:
        error(f"--html: {failure}: pip install {failure.name}")
    if len(given.compare or ()) > 2:
        error(f"--compare: expected OLD.json or OLD.json NEW.json, got {len(given.compare)} files")
    try:
        return [load(path) for path in given.compare or ()]
    except ValueError as failure:
        error(f"--compare: {failure}")


def finish(report: Report, given: argparse.Namespace, old: Report | None, say: Callable[[str], object]) -> int:
    """Write the page, compare, and return the exit code."""
    if given.html is not None:
        page = importlib.import_module("benchmarks.report.page").render(report)
        given.html.write_text(page, encoding="utf-8")
    faults = faults_of(report)
    for fault in faults:
        say(f"fdkernels {fault}")
    if old is None:
        return WORSE if faults else 0
    changes = comparisons.changed(old, report)
    say(f"\nagainst {given.compare[0]}\n{terminal.report_changes(changes, comparisons.apart(old, report))}")
    if faults or any(change.verdict == "worse" for change in changes):
        return WORSE
    return 0 if any(change.ratio is not None for change in changes) else NOT_COMPARED


def faults_of(report: Report) -> list[str]:
    ours = [row for row in report["rows"] if row["ours"]]
    wrong = [f"{r['variant']}, {r['shape_name']} {r['dtype']}: {r['wrong_because']}" for r in ours if r["wrong"]]
    failed = [f"{s['what']}: {s['why']}" for s in report["skipped"] if s["kind"] == "failed" and s["ours"]]
    missing = [] if ours else ["was not measured"]
    return [*(f"is wrong: {text}" for text in wrong), *(f"failed: {text}" for text in failed), *missing]


def main(arguments: Sequence[str] | None = None) -> int:
    printing.accept_any_text()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = command_line()
    given = parser.parse_args(arguments)
    old = check_files(given, parser.error)
    say = functools.partial(print, flush=True)
    if len(old) == 2:
        for name, value in vars(parser.parse_args([])).items():
            if name not in ("compare", "html") and getattr(given, name) != value:
                parser.error(f"{name}: expected a run, but --compare OLD NEW makes none")
        return finish(old[1], given, old[0], say)
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no CUDA or ROCm device")
    # normalize_weight warns of a batch of two videos; here only the time matters.
    warnings.filterwarnings("ignore", message="normalize_weight over")
    cases = cases_of(given, device, parser.error)
    if not cases:
        parser.error("nothing to time: no formula of these ops is trained at these shapes; name it with --baseline")
    alone = given.baseline == ["none"]
    if alone and given.mode:
        parser.error("--mode: expected a baseline, but --baseline is none")
    modes = [] if alone else [MODES[mode] for mode in given.mode or DEFAULT_MODES[device]]
    rounds = given.rounds if given.rounds is not None else 40 if device == "cpu" else 30
    if rounds < FEWEST_FOR_AN_INTERVAL:
        parser.error(f"--rounds: expected at least {FEWEST_FOR_AN_INTERVAL}, got {rounds}")
    options = Options(device, backends_of(given, device, parser.error), modes, rounds)
    seconds = given.seconds
    if seconds is None:
        seconds = QUICK_SECONDS[device] if is_quick(given) and given.ops != [STEP] else math.inf
    compile_modes = [COMPILE_MODES[mode] or "default" for mode in modes if mode in COMPILE_MODES]
    here = setting_of_run(device, command(arguments), compile_modes)
    say(introduction(here, len(cases)))
    why_not = {name: None if given.backend else backends.unavailable(name, device) for name in KERNELS[device]}
    missing = [Skipped(name, f"unavailable: {why}", "unavailable") for name, why in why_not.items() if why]
    report = run(cases, options, here, seconds=seconds, file=given.json, unavailable=missing, say=say)
    for each in report["skipped"]:
        say(f"skipped {each['what']}: {each['why']}")
    say("\n".join(["", *terminal.summary(report["comparisons"])]))
    return finish(report, given, old[0] if old else None, say)


def introduction(here: dict[str, Any], count: int) -> str:
    names = ("device", "threads", "clocks", "torch", "triton", "driver", "cuda", "fdkernels", "commit", "load_average")
    said = ", ".join(f"{name} {here[name]}" for name in names if here.get(name) is not None)
    return (
        f"{said}\n{count} cases, forward + backward (fdiv_weight: forward); ×: a row's time over ours, and its interval"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # the file of --json has the cases that were finished
        sys.exit(INTERRUPTED)
