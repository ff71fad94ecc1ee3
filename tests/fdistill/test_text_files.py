"""Text files are UTF-8, whatever the machine's locale is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [file for folder in ("python", "benchmarks", "fdkernels") for file in sorted((ROOT / folder).rglob("*.py"))]


def without_encoding(source):
    """The lines of calls that open a text file and leave its encoding to the locale."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if name not in ("open", "read_text", "write_text") or owner == "os":
            continue
        texts = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        binary = name == "open" and any(isinstance(text, str) and "b" in text for text in texts)
        if not binary and "encoding" not in {keyword.arg for keyword in call.keywords}:
            yield call.lineno


def test_every_text_file_has_its_encoding():
    assert len(FILES) > 50
    assert {file: lines for file in FILES if (lines := list(without_encoding(file.read_text(encoding="utf-8"))))} == {}


@pytest.mark.parametrize("call", ["p.read_text()", "p.write_text(t)", "open(p)", "p.open('a')", "open(p, 'w')"])
def test_a_missing_encoding_is_seen(call):
    assert list(without_encoding(call)) == [1]
    assert not list(without_encoding(call[:-1] + (", " if call[-2] != "(" else "") + "encoding='utf-8')"))
    assert not list(without_encoding("open(p, 'rb'); os.open(p, 0)"))
