"""Puts fdkernels' functions in place of a trainer's functions, and the trainer's back."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import io
import sys
import textwrap
import tokenize
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Function = Callable[..., Any]
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


class Replacement(NamedTuple):
    module: str
    name: str
    """A function of the module, or "Class.method"."""
    ours: Function | None
    """None: the trainer's function stays; a replaced method of its class does its work itself and does not call it."""
    known: tuple[str, ...]
    """Fingerprints of the trainer's function in the states that `ours` was written for."""
    of: tuple[str, ...] = ()
    """Of a method that is not called: attributes that hold the networks which have it; none: the object itself."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Integration:
    """The functions of one trainer that fdkernels replaces.

    Args:
        trainer: its name, repository and the state that was read.
        partial: a part of the modules is enough, such as one of a trainer's two recipes.
    """

    def __init__(self, trainer: str, partial: bool = False) -> None:
        self.trainer = trainer
        self.partial = partial
        self.replacements: list[Replacement] = []
        self._installed: dict[Replacement, tuple[Function, Function]] = {}  # the trainer's function and ours
        self._accepts_changed = False
        self._absorbed: dict[Replacement, tuple[Function, ...]] = {}  # the trainer's function, and ours if any

    def replaces(self, module: str, name: str, *known: str) -> Callable[[Function], Function]:
        """A decorator: the function replaces the trainer's, if that has one of the known fingerprints.

        For arguments that it does not serve it returns NotImplemented, and the trainer's function runs.
        """

        def register(ours: Function) -> Function:
            self.replacements.append(Replacement(module, name, ours, known))
            return ours

        return register

    def absorbs(self, module: str, name: str, *known: str, of: tuple[str, ...] = ()) -> None:
        """A function that the trainer's replaced functions call and ours do not, because they contain its formula.

        `apply` refuses it like the others where its code is not known. For an object that has another such method, in
        its class or of its own, the trainer's functions run, with a warning; with `of`, for an object whose attributes
        of these names hold such a network, in wrappers or not.
        """
        self.replacements.append(Replacement(module, name, None, known, of))

    def apply(self, accept_changed: bool = False) -> tuple[str, ...]:
        """Replace the trainer's functions, also in each module that has imported them by name.

        Methods are replaced in their class; a subclass that overrides one keeps its own. Nothing is replaced if one of
        the functions is refused. A second call changes nothing.

        Args:
            accept_changed: also replace functions whose code differs from the states that the adapter was written for.
                Compare the code with the formulas in docs/integrations.md first.

        Returns:
            The names of the replaced functions.

        Raises:
            ImportError: the trainer cannot be imported, for any reason that it has.
            RuntimeError: the trainer lacks a function, or has one with other parameters or other code than the adapter
                was written for; the message says what differs.
        """
        if self.applied():
            return tuple(map(str, self._installed))
        self._take_back()  # what a reload of a module, or another patch, has left of an earlier call
        originals, missing = {}, []
        for replacement in self.replacements:
            try:
                importlib.import_module(replacement.module)
            except ImportError as error:
                missing.append(f"{replacement.module}: {error}")
                continue
            except Exception as error:  # such as that of code which asks for a GPU while it is imported
                missing.append(f"{replacement.module}: {type(error).__name__}: {error}")
                if self.partial:
                    warnings.warn(f"{self.trainer} is replaced in part: {missing[-1]}", stacklevel=2)
                continue
            originals[replacement] = self._check(replacement, accept_changed)
        if missing and not (self.partial and any(each.ours for each in originals)):
            raise ImportError(f"{self.trainer} cannot be imported from here: {'; '.join(dict.fromkeys(missing))}")
        self._installed = {
            each: (original, self._stand_in(original, each.ours))
            for each, original in originals.items()
            if each.ours is not None
        }
        stand_ins = {str(each): (stand_in,) for each, (_, stand_in) in self._installed.items()}
        self._absorbed = {
            each: (getattr(original, "__func__", original), *stand_ins.get(str(each), ()))
            for each, original in originals.items()
            if each.ours is None and "." in each.name
        }
        self._accepts_changed = accept_changed
        for replacement, (original, installed) in self._installed.items():
            _rebind(replacement, original, installed)
        return tuple(map(str, self._installed))

    def undo(self) -> None:
        """Put the trainer's functions back; without `apply`, nothing.

        Raises:
            RuntimeError: something else has replaced a function since `apply`; undo that first.
        """
        for replacement, (original, installed) in self._installed.items():
            current = _current(replacement)
            if current is not installed and _place(current) != _place(original):  # the same place: it was reloaded
                raise RuntimeError(f"{replacement}: something else has replaced it since apply(); undo that first")
        self._take_back()

    def _take_back(self) -> None:
        for replacement, (original, installed) in self._installed.items():
            _rebind(replacement, installed, original)
        self._installed = {}

    def applied(self) -> bool:
        """Whether fdkernels' functions are in place."""
        return bool(self._installed) and all(_current(each) is new for each, (_, new) in self._installed.items())

    @contextlib.contextmanager
    def patched(self, accept_changed: bool = False) -> Iterator[tuple[str, ...]]:
        """`apply` for a with block. If it was applied before the block, it is so after it."""
        before = self.applied()
        names = self.apply(accept_changed)
        try:
            yield names
        finally:
            if not before:
                self.undo()
            elif not self._installed:  # after an undo() in the block
                self.apply(self._accepts_changed)

    def describe(self) -> str:
        """Whether the trainer can be imported and its functions are known, from its files alone."""
        files = {each: file for each in self.replacements if (file := _file_of(each.module)) is not None}
        if not any(each.ours for each in files) or (len(files) < len(self.replacements) and not self.partial):
            return "not importable"
        unknown = [
            str(each) for each, file in files.items() if _fingerprint(_source(file, each.name)) not in each.known
        ]
        state = f"unknown: {', '.join(unknown)}" if unknown else "in a known state"
        return f"importable ({next(iter(files.values()))}), {state}"

    def _stand_in(self, original: Function, ours: Function) -> Function | staticmethod[..., Any]:
        """`ours` under the name of the original, as a function that nobody else has."""

        @functools.wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            overridden = self._overridden(args[0]) if args else None
            result = ours(*args, **kwargs) if overridden is None else NotImplemented
            if overridden is not None:
                warnings.warn(f"{overridden}: the trainer's {original.__qualname__} runs", stacklevel=2)
            return original(*args, **kwargs) if result is NotImplemented else result

        return staticmethod(replaced) if isinstance(original, staticmethod) else replaced

    def _overridden(self, obj: Any) -> str | None:
        """Which object or network has another method than the absorbed one, if one has."""
        for each, known in self._absorbed.items():
            owner, name = _owner(each)
            for holder in _holders(obj, owner, name, each.of):
                if _method(holder, name) not in known:
                    return f"{type(holder).__qualname__}.{name} is not what fdkernels does in its place"
        return None

    def _check(self, replacement: Replacement, accept_changed: bool) -> Function:
        original = _current(replacement)
        if original is None:
            raise RuntimeError(f"{replacement}: {self.trainer} has it; the one that is installed does not")
        theirs, ours = (None if each is None else _parameters(each) for each in (original, replacement.ours))
        if ours is not None and theirs != ours:
            raise RuntimeError(f"{replacement}: expected the parameters {ours} of {self.trainer}, got {theirs}")
        if not accept_changed and _fingerprint(inspect.getsource(original)) not in replacement.known:
            raise RuntimeError(
                f"{replacement}: its code differs from that of {self.trainer}. If it still computes what "
                "docs/integrations.md says, use apply(accept_changed=True)"
            )
        return original


def _holders(obj: Any, owner: type, name: str, of: tuple[str, ...]) -> Iterator[Any]:
    """The object itself if it is an owner; with `of`, all modules of its networks that have the method."""
    if not of and isinstance(obj, owner):
        yield obj
    for network in (getattr(obj, attribute, None) for attribute in of):
        if network is not None:
            modules = network.modules() if hasattr(network, "modules") else (network,)
            yield from [each for each in modules if _method(each, name) is not None] or [network]


def _method(obj: Any, name: str) -> Any:
    """A method of an object or of its class as a function, without running a __getattr__, which wrappers have."""
    found = getattr(obj, "__dict__", {}).get(name) or getattr(type(obj), name, None)
    return getattr(found, "__func__", found)


def _owner(replacement: Replacement) -> tuple[Any, str]:
    owner: Any = sys.modules.get(replacement.module)
    *classes, name = replacement.name.split(".")
    for part in classes:
        owner = getattr(owner, part, None)
    return owner, name


def _current(replacement: Replacement) -> Function | None:
    owner, name = _owner(replacement)
    function: Function | None = getattr(owner, "__dict__", {}).get(name)
    return function


def _rebind(replacement: Replacement, old: Function, new: Function) -> None:
    """Put the new function where the old one is: in its class or module, and in modules that imported it by name."""
    if _current(replacement) is old:
        setattr(*_owner(replacement), new)
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is old:
                setattr(module, name, new)


def _place(function: Any) -> Any:
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return function if code is None else (code.co_filename, code.co_name)


def _parameters(function: Function) -> str:
    parameters = inspect.signature(function).parameters.values()
    return str(inspect.Signature([each.replace(annotation=inspect.Parameter.empty) for each in parameters]))


def _fingerprint(source: str) -> str:
    """A hash of a function's tokens, without comments, docstrings and layout."""
    text, begins = [], False
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(source)).readline):
        is_docstring = begins and token.type == tokenize.STRING
        if token.type not in LAYOUT and not is_docstring:
            text.append(token.string)
        begins = token.type in LAYOUT and (begins or token.type in (tokenize.NEWLINE, tokenize.INDENT))
    bare = "".join("".join(text).split())  # Python 3.12 splits f-strings into tokens, without their inner spaces
    return hashlib.sha256(bare.encode()).hexdigest()[:12]


def _file_of(module: str) -> Path | None:
    """The file of a module, found without importing it or its package."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    files = (Path(folder, *rest).with_suffix(".py") for folder in folders)
    return next((file for file in files if file.is_file()), None)


def _source(file: Path, name: str) -> str:
    """The source of a function or "Class.method" in a file; "" if the file has none."""
    source = file.read_text(encoding="utf-8", errors="replace")
    scope: Any = ast.parse(source)
    for part in name.split("."):
        scope = next((node for node in scope.body if getattr(node, "name", None) == part), None)
        if scope is None:
            return ""
    first = min([scope.lineno, *(decorator.lineno for decorator in scope.decorator_list)])
    return "\n".join(source.splitlines()[first - 1 : scope.end_lineno])
