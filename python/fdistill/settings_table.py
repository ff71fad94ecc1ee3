"""Prints docs/settings.md from the types in `config.py`: `python -m fdistill.settings_table > docs/settings.md`."""

from __future__ import annotations

import json
import typing
from typing import Annotated, Any

from fdistill import config

HEAD = """# Settings

Every setting, printed by `python -m fdistill.settings_table` from the types in `python/fdistill/config.py`. NaN and
infinity are refused everywhere. Where 0 switches something off, null does too. `<role>` is student, fake or
discriminator. The default is that of the class; a preset may have another.

What a setting decides says when it may change: of a run that is there, the training is fixed; `--resume` takes a change
of the evaluation, which measures a finished run anew, and of the presentation.

| setting | default | expected | unit and meaning | decides |
|---|---|---|---|---|
"""


def table() -> str:
    kinds: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for cls in config.TASKS.values():
        kinds |= config.kinds(cls)
        defaults |= config.flat(config.as_dict(cls()))
    return HEAD + "".join(_row(key, kind, defaults[key]) for key, kind in kinds.items() if not _repeated(key))


def _repeated(key: str) -> bool:
    return key.startswith(("fake.", "discriminator."))


def _row(key: str, kind: Any, default: Any) -> str:
    name, decides = key.replace("student.", "<role>."), "training"
    if key in config.EVALUATION | config.PRESENTATION:
        decides = "evaluation" if key in config.EVALUATION else "presentation"
    expected, unit = _expected(kind)
    return f"| `{name}` | `{json.dumps(default)}` | {expected} | {unit} | {decides} |\n"


def _expected(kind: Any) -> tuple[str, str]:
    """In words, and the unit."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        number, limits = args
        return limits.text(number), limits.unit
    if origin is tuple:
        words, unit = _expected(args[0])
        return f"{'some' if args[-1] is Ellipsis else len(args)}, each {words}", unit
    return {bool: "true or false", str: "text"}.get(kind, "lists of roles"), ""


if __name__ == "__main__":
    print(table(), end="")
