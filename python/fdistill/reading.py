"""Reads settings as plain values from presets, YAML files and the files that they start from. Executes nothing."""

from __future__ import annotations

import difflib
import functools
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from fdistill.messages import ConfigError, cut, sentence, shown


def presets() -> list[str]:
    folder = resources.files("fdistill") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def layers(source: str) -> list[dict[str, Any]]:
    """The settings of a preset or file and of all files that it starts from, the base first."""
    found: dict[str, dict[str, Any]] = {}  # by the file's real path, since one file may be named in several ways
    chain, base = [], source
    while base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{chain[-1]}: preset: expected a name or a path, got {shown(base)}")
        chain.append(base)
        text, place = _text(base), os.path.realpath(base)
        if place in found:
            raise ConfigError(f"preset: expected no cycle of files, got {cut(' -> '.join(chain), 500)}")
        found[place] = mapping(text, base)
        base = found[place].pop("preset", None)
    return [*reversed(found.values())]


def _text(source: str) -> str:
    if source in presets():
        return (resources.files("fdistill") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    if not source.endswith((".yaml", ".yml")):
        nearest = difflib.get_close_matches(source[:80], presets(), n=1)
        hint = f"did you mean {nearest[0]!r}? Presets: " if nearest else "expected "
        raise ConfigError(f"unknown preset {shown(source)}; {hint}{', '.join(presets())}, or the path of a .yaml file")
    if not os.path.isfile(source):  # Path.is_file raises on a name too long
        raise ConfigError(f"no such file: {cut(source)}")
    return file_text(source)


def file_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        fault = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise ConfigError(f"{path}: expected text in UTF-8, got {fault}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def mapping(text: str, source: str) -> dict[str, Any]:
    """The settings in a file's text."""
    settings = parsed(text, f"{source}: not valid YAML")
    if settings is None:
        raise ConfigError(f"{source}: expected a mapping of settings, got an empty file")
    if not isinstance(settings, dict):
        raise ConfigError(f"{source}: expected a mapping of settings, got {type(settings).__name__}")
    return settings


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises if it holds anything else."""
    text = file_text(str(path))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        fault = sentence(error) if text.strip() else "an empty file"
        raise ConfigError(f"{path}: expected a JSON object, got {fault}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def parsed(text: str, fault: str) -> Any:
    """The value of a YAML text; raises with `fault` in front."""
    import yaml  # here, so that --help works without it

    try:
        return yaml.load(text, Loader=_loader())
    # PyYAML's constructors raise all of these: for a date in month 13, an integer too long, brackets without end.
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{fault}: {sentence(error)}") from None


@functools.cache
def _loader() -> Any:
    """`yaml.SafeLoader`, except that a mapping with the same key twice is refused: YAML forbids it, PyYAML does not."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            # Check here: when the mapping is constructed, PyYAML has already merged the keys of `<<` into it.
            node = super().compose_mapping_node(anchor)
            lines: dict[tuple[str, str], int] = {}
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    raise yaml.YAMLError(f"the key {shown(key.value)} stands twice, in lines {lines[name]} and {line}")
                lines[name] = line
            return node

    return Loader
