"""The error of a bad setting, and how messages show a value."""

from __future__ import annotations

import json
import reprlib

MOST_SHOWN = 200  # characters of a value in a message
_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxstring = 3, 9, 9, 80


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type or impossible; the message names it."""


def shown(value: object) -> str:
    """A value for a message, cut short: a few YAML aliases can stand for a gigabyte."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)  # in YAML's words
    try:
        return cut(_short.repr(value))
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return f"a long {type(value).__name__}"


def cut(text: str, most: int = MOST_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def sentence(error: BaseException, most: int = 500) -> str:
    """The message of another library's error on one line, cut short."""
    return cut(" ".join(str(error).split()), most)
