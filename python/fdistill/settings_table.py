"""Prints docs/settings.md from the types in `config.py`: `python -m fdistill.settings_table > docs/settings.md`."""

from __future__ import annotations

import json
import typing
from typing import Annotated, Any

from fdistill import config

HEAD = """# Settings

*For people who train with fdistill* ([trainer.md](trainer.md)).

Every setting, printed by `python -m fdistill.settings_table` from the types in `python/fdistill/config.py`. NaN and
infinity are refused everywhere. Where 0 switches something off, null does too. `<role>` is student, fake or
discriminator. The default is that of the class; a preset may have another.

What a setting decides says when it may change: of a run that is there, the training is fixed; `--resume` takes a change
of the evaluation, which measures a finished run anew, and of the presentation.

| setting | default | expected | unit and meaning | decides | only of |
|---|---|---|---|---|---|
"""


def table() -> str:
    rows: dict[str, list[str]] = {}  # row -> the tasks that have the setting
    for task, cls in config.TASKS.items():
        defaults = config.flat(config.as_dict(cls()))
        for key, kind in config.kinds(cls).items():
            if not _repeated(key):
                rows.setdefault(_row(key, kind, defaults[key]), []).append(task)
    every = list(config.TASKS)
    return HEAD + "".join(f"{row} {'' if tasks == every else ', '.join(tasks)} |\n" for row, tasks in rows.items())


def _repeated(key: str) -> bool:
    return key.startswith(("fake.", "discriminator."))


def _row(key: str, kind: Any, default: Any) -> str:
    name, decides = key.replace("student.", "<role>."), "training"
    if key in config.EVALUATION | config.PRESENTATION:
        decides = "evaluation" if key in config.EVALUATION else "presentation"
    return f"| `{name}` | `{json.dumps(default)}` | {config.in_words(kind)} | {_unit(kind)} | {decides} |"


def _unit(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return args[1].unit
    return _unit(args[0]) if origin is tuple else ""


if __name__ == "__main__":
    print(table(), end="")
