"""Empty stand-ins for the CUDA libraries of a CUDA build of torch, so that its CPU code runs without gigabytes of them.

torch's libraries name the CUDA libraries that they need, the versions of symbols there, and the symbols. A stand-in is
a shared library with that name, these versions and these symbols. Each symbol is a function that returns
cudaErrorNoDevice, so torch finds no GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice
OF_THE_INTERPRETER = ("Py", "_Py")
Symbols = dict[str, set[str]]  # {version, or "" for none: names}


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def undefined(library: Path) -> set[tuple[str, str]]:
    """(name, version or "") of the symbols that a library must find elsewhere."""
    found = re.findall(r"^\s+U ([^@\s]+)@*(\S*)$", output("nm", "--dynamic", str(library)), re.MULTILINE)
    return {(name, version) for name, version in found if not name.startswith(OF_THE_INTERPRETER)}


def defined(library: Path) -> set[str]:
    return set(re.findall(r" [A-Za-z] ([^@\s]+)", output("nm", "--dynamic", "--defined-only", str(library))))


def versions(library: Path) -> set[tuple[str, str]]:
    """(library, version) of the symbols that a library needs with a version."""
    text = output("readelf", "--version-info", "--wide", str(library))
    found, file = set(), ""
    for kind, name in re.findall(r"(File|Name): (\S+)", text):
        if kind == "File":
            file = name
        else:
            found.add((file, name))
    return found


def missing(torch: Path) -> dict[str, Symbols]:
    """The symbols that torch's libraries need and this machine lacks, by library."""
    libraries = {*(torch / "lib").glob("lib*.so*"), *torch.glob("_C*.so")}
    found: dict[str, Symbols] = {}
    present = set(libraries)
    for library in libraries:
        for name, path in re.findall(r"^\s+(\S+) => (/\S+|not found)", output("ldd", str(library)), re.MULTILINE):
            if path == "not found":
                found[name] = defaultdict(set)
            else:
                present.add(Path(path))
    holders = {version: file for file, version in set().union(*map(versions, libraries)) if file in found}
    known = set().union(*map(defined, present))
    for name, version in set().union(*map(undefined, libraries)):
        if version in holders:
            found[holders[version]][version].add(name)
        elif not version and name not in known:  # any missing library may define it: all get it
            for symbols in found.values():
                symbols[""].add(name)
    return found


def compile_one(name: str, symbols: Symbols, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch) / "stand_in.c", Path(scratch) / "versions"
        names = sorted(set().union(*symbols.values()))
        source.write_text("".join(f"int {each}(void) {{ return {NO_DEVICE}; }}\n" for each in names))
        versioned = {version: found for version, found in symbols.items() if version}
        lines = (f"{v} {{ global: {'; '.join(sorted(found))}; }};\n" for v, found in versioned.items())
        script.write_text("".join(lines))
        options = [f"-Wl,--version-script={script}"] if versioned else []
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-w", f"-Wl,-soname,{name}", *options,
             "-o", str(folder / name), str(source)], check=True,
        )  # fmt: skip


def make(torch: Path) -> list[str]:
    """Put stand-ins beside torch's own libraries, where torch looks first; return their names."""
    found = missing(torch)
    for name, symbols in found.items():
        compile_one(name, symbols, torch / "lib")
    return sorted(found)
