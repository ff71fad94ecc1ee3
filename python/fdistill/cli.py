"""The command line: fdistill train | compare | sample | export."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

# Do not import PACKAGES here: --help works without them, and main says which one a command lacks.
import fdkernels as fdk
from fdistill import config, stopping
from fdistill.config import Config, ConfigError, GmmConfig
from fdistill.files import FolderError, damage, new_partial, seal, writing
from fdistill.ranges import Range
from fdistill.stopping import EXIT_INTERRUPTED
from fdistill.task import Interrupted
from fdkernels import printing

EXIT_FAULT = EXIT_DIVERGED = 1
EXIT_USAGE = 2
EXIT_UNREAD = 141

# The packages of the extra `train`: import name -> install name.
PACKAGES = {
    "PIL": "pillow",
    "diffusers": "diffusers",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "torchmetrics": "torchmetrics",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
}
NOT_FOR_GMM = {"diffusers", "sklearn", "torchmetrics"}


def main(arguments: Sequence[str] | None = None) -> int:
    printing.accept_any_text()
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    # Settings may stand anywhere, but argparse takes no positional arguments after an option.
    if not hasattr(args, "overrides") or any(argument.startswith("-") for argument in rest):
        parser.parse_args(arguments)
    else:
        args.overrides += rest
    try:
        with stopping.interruptible():
            status = args.command(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `fdistill compare ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNREAD
    except (ConfigError, FolderError) as error:
        message, status = str(error), EXIT_USAGE
    except OSError as error:
        named = f"{config.cut(str(error.filename))}: {error.strerror}" if error.filename else config.cut(str(error))
        message, status = named, EXIT_FAULT
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in PACKAGES:
            raise
        install = " ".join(name for module, name in PACKAGES.items() if module == missing or not _installed(module))
        message, status = f"{missing} is not installed; what the trainer lacks: pip install {install}", EXIT_USAGE
    except Interrupted as stop:
        message, status = f"{stop}. Go on with: {_resume_command(arguments, stop.started)}", EXIT_INTERRUPTED
    except KeyboardInterrupt:
        trains = args.command in (_train, _compare)
        message = "stopped at once" + (f". Go on with: {_resume_command(arguments)}" if trains else "")
        if trains and getattr(args, "fresh", False):
            message += ", or with --fresh where the new run had not begun"
        status = EXIT_INTERRUPTED
    print(f"fdistill: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fdistill", description="Distill a diffusion teacher into a one-step student.")
    commands = parser.add_subparsers(required=True, metavar="command")
    preset = f"{', '.join(config.presets())}, or a YAML file"

    train = commands.add_parser("train", help="train a student and write runs/<name>/report.html")
    train.add_argument("preset", help=preset)
    train.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as loss.divergence=kl, "
        "loss.kind=sid or seed=1: docs/settings.md has all")  # fmt: skip
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    train.add_argument("--fresh", action="store_true", help="replace what the run's folder holds")
    train.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    train.set_defaults(command=_train)

    compare = commands.add_parser("compare", help="train one student per divergence and seed; one table, one figure")
    compare.add_argument("preset", help=preset)
    compare.add_argument("overrides", nargs="*", metavar="key=value")
    known = ", ".join([*fdk.divergences(), "alpha(a)"])
    compare.add_argument("--divergences", default="rkl,js,kl", metavar="NAME,...", help=f"of {known}; NAME-shuffled is "
        "NAME's control: its h permuted within the batch (default: %(default)s)")  # fmt: skip
    compare.add_argument("--seeds", type=int, default=3, help="how many, from `seed` on (default: %(default)s)")
    compare.set_defaults(command=_compare)

    sample = commands.add_parser("sample", help="draw from a run's student in one step")
    sample.add_argument("run", type=Path, help="runs/<name>")
    sample.add_argument("-n", "--count", type=int, default=100)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("-o", "--output", type=Path, help="PNG; default: <run>/drawn.png")
    sample.set_defaults(command=_sample)

    export = commands.add_parser("export", help="copy a run's student out of it")
    export.add_argument("run", type=Path, help="runs/<name>")
    export.add_argument("folder", type=Path)
    export.set_defaults(command=_export)
    return parser


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _check_packages(cfg: Config) -> None:
    """Raise now if a package is missing that the run needs only after minutes of training."""
    for module in PACKAGES:
        if not _installed(module) and not (isinstance(cfg, GmmConfig) and module in NOT_FOR_GMM):
            raise ModuleNotFoundError(name=module)


def _train(args: argparse.Namespace) -> int:
    from fdistill import run

    cfg = config.load(args.preset, args.overrides)
    if args.resume and args.fresh:
        raise ConfigError("--resume and --fresh exclude each other")
    if args.dry_run:
        print(run.plan(cfg))
        return 0
    _check_packages(cfg)
    folder = run.folder_of(cfg)
    if run.prepare(cfg, args.resume, args.fresh):
        print(f"{folder} is finished already; --fresh trains it anew.")
        result = run.result_of(folder) or {}
    else:
        result = run.train(cfg, resume=args.resume, fresh=args.fresh)
    from fdistill import report

    print(report.summary(folder, result))
    return EXIT_DIVERGED if result.get("diverged") else 0


def _compare(args: argparse.Namespace) -> int:
    divergences = [name.strip() for name in args.divergences.split(",") if name.strip()]
    Range(least=1, most=1000).check("--seeds", args.seeds, args.seeds)
    if not divergences:
        raise ConfigError("--divergences: expected at least one")
    _check_packages(config.load(args.preset, args.overrides))
    from fdistill import compare

    return 0 if compare.run_all(args.preset, args.overrides, divergences, args.seeds) else EXIT_DIVERGED


def _student_folder(folder: Path) -> tuple[Config, Path]:
    from fdistill import run
    from fdistill.folder import is_run

    settings = run.settings_of(folder)
    student = folder / "student"
    if not student.is_dir():
        raise ConfigError(f"{folder} has no student yet; finish it with: fdistill train ... --resume")
    fault = damage(student) if is_run(folder) else None  # older runs have no hashes
    if fault:
        again = f"delete {folder / 'metrics.json'}, then train ... --resume exports it anew"
        raise FolderError(f"{student} is damaged ({fault}); {again}")
    return config.from_dict(settings, to_train=False), student


def _output(args: argparse.Namespace, beside: Sequence[str]) -> Path:
    """The path of the picture that `sample` writes. Only the run's own picture may be replaced."""
    output = args.run / "drawn.png" if args.output is None else args.output
    if output.is_dir():
        raise ConfigError(f"--output: expected a file, got the folder {output}")
    if not output.suffix:
        output = output.with_name(f"{output.name}.png")
    if output.suffix.lower() != ".png":
        raise ConfigError(f"--output: expected a name that ends in .png, got {output}")
    for path in (output, *(output.with_suffix(suffix) for suffix in beside)):
        if os.path.lexists(path) and (args.output is not None or path.is_symlink()):
            raise ConfigError(f"{path} exists already")
    output.parent.mkdir(parents=True, exist_ok=True)
    return output


def _sample(args: argparse.Namespace) -> int:
    from fdistill import run

    cfg, student = _student_folder(args.run)
    Range(least=1, most=100_000).check("--count", args.count, args.count)
    config.SEEDS.check("--seed", args.seed, args.seed)
    output = _output(args, beside=[".npy"] if isinstance(cfg, GmmConfig) else [])
    with writing(output):
        run.task_class(cfg).draw(cfg, student, args.count, args.seed, output)
    print(output)
    return 0


def _export(args: argparse.Namespace) -> int:
    student = _student_folder(args.run)[1]
    if os.path.lexists(args.folder):
        raise ConfigError(f"{args.folder} exists already")
    from fdistill.folder import run_around

    around = run_around(args.folder)
    if around is not None:
        raise ConfigError(f"{args.folder} lies in a run, {around}; export to a folder outside")
    with writing(args.folder):
        partial = new_partial(args.folder)
        try:
            shutil.copytree(student, partial, dirs_exist_ok=True)
            seal(partial)
            partial.rename(args.folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    print(args.folder)
    return 0


def _resume_command(arguments: Sequence[str] | None, started: bool = True) -> str:
    """The command that goes on; it keeps `--fresh` if the run that `--fresh` replaces is still there."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--fresh" in given and not started:
        return shlex.join(["fdistill", *given])
    dropped = [argument for argument in given if argument not in ("--resume", "--fresh")]
    return shlex.join(["fdistill", *dropped, *(["--resume"] if dropped[:1] == ["train"] else [])])
