"""The command line: fdistill train | compare | sample | export."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

# Nothing of PACKAGES is imported here: --help works without them, and main says which one a command lacks.
from fdistill import config
from fdistill.config import Config, ConfigError, GmmConfig
from fdistill.task import Interrupted

EXIT_DIVERGED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
# The extra `train`, by the names to import and to install.
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
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    # argparse takes no positional arguments after an option: settings may stand anywhere.
    if not hasattr(args, "overrides") or any(argument.startswith("-") for argument in rest):
        parser.parse_args(arguments)
    else:
        args.overrides += rest
    try:
        return args.command(args)
    except ConfigError as error:
        message, status = str(error), EXIT_USAGE
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in PACKAGES:
            raise
        install = " ".join(name for module, name in PACKAGES.items() if module == missing or not _installed(module))
        message, status = f"{missing} is not installed; what the trainer lacks: pip install {install}", EXIT_USAGE
    except Interrupted as stop:
        message, status = f"{stop}. Go on with: {_resume_command(arguments)}", EXIT_INTERRUPTED
    except KeyboardInterrupt:
        message, status = "stopped at once; --resume goes on from the last checkpoint", EXIT_INTERRUPTED
    print(f"fdistill: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fdistill", description="Distill a diffusion teacher into a one-step student.")
    commands = parser.add_subparsers(required=True, metavar="command")
    preset = f"{', '.join(config.presets())}, or a YAML file"

    train = commands.add_parser("train", help="train a student and write runs/<name>/report.html")
    train.add_argument("preset", help=preset)
    train.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as loss.divergence=kl seed=1")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    train.add_argument("--fresh", action="store_true", help="replace what the run's folder holds")
    train.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    train.set_defaults(command=_train)

    compare = commands.add_parser("compare", help="train one student per divergence and seed; one table, one figure")
    compare.add_argument("preset", help=preset)
    compare.add_argument("overrides", nargs="*", metavar="key=value")
    compare.add_argument("--divergences", default="rkl,js,kl", help="comma-separated (default: %(default)s)")
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
    """Before minutes are spent on what can't be measured or drawn in the end."""
    for module in PACKAGES:
        if not _installed(module) and not (isinstance(cfg, GmmConfig) and module in NOT_FOR_GMM):
            raise ModuleNotFoundError(name=module)


def _train(args: argparse.Namespace) -> int:
    from fdistill import run
    from fdistill.checkpoint import Checkpoints

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
        last = Checkpoints(folder / "checkpoints", cfg.keep).latest()
        print(f"{folder}: " + (f"going on from {last.name}" if last else "starting"))
        result = run.train(cfg)
    from fdistill import report

    print(report.summary(folder, result))
    return EXIT_DIVERGED if result.get("diverged") else 0


def _compare(args: argparse.Namespace) -> int:
    divergences = [name.strip() for name in args.divergences.split(",") if name.strip()]
    if not divergences or args.seeds < 1:
        raise ConfigError("compare: expected at least one divergence and one seed")
    _check_packages(config.load(args.preset, args.overrides))
    from fdistill import compare

    print(compare.run_all(args.preset, args.overrides, divergences, args.seeds))
    return 0


def _student_folder(folder: Path) -> tuple[Config, Path]:
    from fdistill import run

    settings = run.settings_of(folder)
    if not (folder / "student").is_dir():
        raise ConfigError(f"{folder} has no student yet; finish it with: fdistill train ... --resume")
    return config.from_dict(settings, to_train=False), folder / "student"


def _sample(args: argparse.Namespace) -> int:
    from fdistill import run

    cfg, student = _student_folder(args.run)
    if args.count < 1:
        raise ConfigError(f"--count: expected at least 1, got {args.count}")
    output = args.output or args.run / "drawn.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    run.task_class(cfg).draw(cfg, student, args.count, args.seed, output)
    print(output)
    return 0


def _export(args: argparse.Namespace) -> int:
    student = _student_folder(args.run)[1]
    if args.folder.exists():
        raise ConfigError(f"{args.folder} exists already")
    shutil.copytree(student, args.folder)
    print(args.folder)
    return 0


def _resume_command(arguments: Sequence[str] | None) -> str:
    given = list(sys.argv[1:] if arguments is None else arguments)
    dropped = [argument for argument in given if argument not in ("--resume", "--fresh")]
    return " ".join(["fdistill", *dropped, *(["--resume"] if dropped[:1] == ["train"] else [])])


if __name__ == "__main__":
    sys.exit(main())
